"""Find near-duplicates among the images of a set of shards, as section 4.1 of the paper does."""
