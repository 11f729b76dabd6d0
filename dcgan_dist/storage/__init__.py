"""Files on this host and on object storage: one interface, one retry policy, a cache, and locks."""
