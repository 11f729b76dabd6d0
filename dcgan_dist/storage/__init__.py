"""Files of this host and on object storage: one interface, one policy of trying again, a cache, and locks."""
