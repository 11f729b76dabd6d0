"""Train DCGANs on millions of images over many GPUs and hosts, and score what they learned."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m dcgan_dist.NAME` is looking for its module; what that imports takes a while
    from dcgan_dist.stopping import end_at_once, set_handler

    set_handler(end_at_once)

__version__ = "0.1.0"
