"""What a network learned, measured: features, classifiers on them, protocols, controls, diversity."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
