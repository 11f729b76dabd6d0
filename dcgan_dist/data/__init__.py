"""From sources of images to shards, and from shards to batches."""
