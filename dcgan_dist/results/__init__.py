"""What a run leaves behind: its directory and the files in it. Imports no torch."""
