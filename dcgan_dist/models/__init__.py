"""The networks: pure `nn.Module`s, independent of ranks, devices and files."""

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.models.build import build_networks, initialise
from dcgan_dist.models.family import Family, families, family_of
from dcgan_dist.models.network import Discriminator, Generator

__all__ = ["Discriminator", "Family", "Generator", "build_networks", "families", "family_of", "initialise"]
