"""The paper's figures: what a trained generator and discriminator have learned. Each figure has its own module."""

import dcgan_dist.vector_math  # noqa: F401 - the first import: equal bits in every process need it
