"""Scores of what a network has learned: features, classifiers on them, protocols, controls, diversity of samples."""

import dcgan_dist.vector_math  # noqa: F401 - the first import: equal bits in every process need it
