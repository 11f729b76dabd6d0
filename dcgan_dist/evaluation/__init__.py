"""What a network learned, measured: features, classifiers on them, protocols, controls, diversity."""
