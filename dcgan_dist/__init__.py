"""Train DCGANs on millions of images over many GPUs and hosts, and score what they learned."""

__version__ = "0.1.0"
