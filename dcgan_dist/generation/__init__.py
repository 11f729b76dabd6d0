"""Samples of trained generators, in any number: drawn by seed or from given z, and written in several formats."""
