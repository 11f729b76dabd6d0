"""Searching settings: the space, the ledger of trials, what is optimised, and what came out; no Ray here."""
