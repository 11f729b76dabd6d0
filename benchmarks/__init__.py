"""Measure figures beside their baselines, in turn in one run: ``python -m benchmarks WHAT``, in a checkout."""
