"""Near-duplicates: the autoencoder, the binary codes, groups of equal codes, and a page to check the result by eye."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.deduplication.removal import deduplicate
from dcgan_dist.deduplication.summary import Summary

__all__ = ["Summary", "deduplicate"]
