"""Samples of trained generators, in any number: drawn by seed or from given z, and written in several formats."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
