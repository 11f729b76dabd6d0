"""Start runs and sweeps on a Ray cluster; the only package that imports Ray."""
