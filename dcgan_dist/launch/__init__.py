"""Ways of starting runs on a cluster; the only place that imports ray."""
