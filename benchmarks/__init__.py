"""Measure figures and their baselines, alternating in one run: ``python -m benchmarks WHAT``, in a checkout."""
