"""What `bench` measures: each figure beside its baseline, in turn, in one run."""
