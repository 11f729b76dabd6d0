"""Run directories on a disk or on object storage: one process at a time writes, any process reads; without torch."""
