"""What must stay identical while the code moves: `python -m tests.golden` compares two checkouts."""
