"""What a run is on a disk or on object storage: written by one process at a time, read by any; no torch."""
