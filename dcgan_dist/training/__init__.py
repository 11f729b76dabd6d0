"""The training loop, its steps and its checkpoints."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
