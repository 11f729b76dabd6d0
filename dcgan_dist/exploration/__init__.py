"""The paper's figures: what a trained generator and discriminator have learned, a file for each."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
