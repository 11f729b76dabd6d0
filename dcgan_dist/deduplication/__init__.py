"""Near-duplicates: the autoencoder, the codes, their groups, and the page by which a person judges them."""

from dcgan_dist.deduplication.removal import Summary, deduplicate

__all__ = ["Summary", "deduplicate"]
