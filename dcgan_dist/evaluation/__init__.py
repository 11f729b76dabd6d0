"""Scores of what a network has learned: features, classifiers on them, protocols, controls, diversity of samples."""
