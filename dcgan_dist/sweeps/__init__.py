"""Hyperparameter sweeps: the search space, the ledger of trials, objectives, and results. Imports no Ray."""
