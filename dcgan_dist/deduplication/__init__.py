"""Near-duplicates: the autoencoder, the codes, their groups, and the page by which a person judges them."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.deduplication.removal import deduplicate
from dcgan_dist.deduplication.summary import Summary

__all__ = ["Summary", "deduplicate"]
