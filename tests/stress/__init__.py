"""Does the same computation give the same bits in every process, on a machine whose cores are taken?

Run outside the quick suite, since it takes an hour: see `python -m tests.stress --help`.
"""
