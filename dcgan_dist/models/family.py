"""The families of networks: those in `FAMILIES` of the files of this package."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from dcgan_dist.config import ModelConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.models.network import Discriminator, Generator

# The settings that all families have.
COMMON = frozenset(
    {"name", "image_size", "channels", "classes", "z_dim", "z_distribution", "slope", "sample_statistics"}
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of networks.

    Attributes:
        name: the `model.name` that selects it.
        is_conditional: whether both networks take the label of an image.
        generator: creates a generator from settings, image size, channels and classes.
        discriminator: creates a discriminator from the same arguments.
        settings: names of its settings in `ModelConfig`, in addition to the common ones.
        is_dense: whether all its layers are dense, and initialised differently from convolutions.
    """

    name: str
    is_conditional: bool
    generator: Callable[[ModelConfig, int, int, int], Generator]
    discriminator: Callable[[ModelConfig, int, int, int], Discriminator]
    settings: frozenset[str]
    is_dense: bool = False

    def check(self, config: ModelConfig) -> None:
        """Check settings before the networks are built.

        Raises:
            ConfigError: a setting that the family does not have was changed, or `classes` does not fit it.
        """
        others = [name for name, other in families().items() if other.is_conditional != self.is_conditional]
        if self.is_conditional and config.classes == 0:
            raise ConfigError(
                f"model.classes is 0: {self.name} needs data with labels; or take {' or '.join(others)}, which does not"
            )
        if not self.is_conditional and config.classes:
            raise ConfigError(
                f"model.classes is {config.classes}: {self.name} takes no labels: take 0, or {' or '.join(others)}"
            )
        known = COMMON | self.settings
        for entry in dataclasses.fields(config):
            value = getattr(config, entry.name)
            if entry.name not in known and value != entry.default:
                raise ConfigError(
                    f"model.{entry.name} is {value!r}: {self.name} has no such setting, leave it out; it has "
                    f"{', '.join(sorted(self.settings))}"
                )


def families() -> dict[str, Family]:
    """Return all families by name."""
    package = sys.modules[__package__]  # not imported, since the package imports this file
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    files = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {family.name: family for file in files for family in getattr(file, "FAMILIES", ())}


def family_of(config: ModelConfig) -> Family:
    """Return the family of some settings, after it has checked them.

    Raises:
        ConfigError: there is no family of that name, or the settings do not fit it.
    """
    known = families()
    if config.name not in known:
        raise ConfigError(f"model.name is {config.name!r}: take one of {', '.join(known)}")
    known[config.name].check(config)
    return known[config.name]
