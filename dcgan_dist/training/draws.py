"""Random draws as functions of (seed, purpose, step, index in the global batch), never of a generator's history.

Every rank draws for the whole global batch and takes its own rows, so that a run does not depend on the number of
ranks, and resuming at any step needs no stored generator state. Philox is a counter-based generator: its key is
(seed, purpose) and its counter starts at the step.
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import torch

from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.training.setup import dtype_of


def _generator(seed: int, purpose: str, step: int) -> np.random.Generator:
    key = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.array([0, step, 0, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw_z(
    seed: int, purpose: str, step: int, count: int, z_dim: int, distribution: Literal["uniform", "normal"]
) -> torch.Tensor:
    """Draw noise vectors: float32 (count, z_dim) from U(-1, 1) or N(0, 1); row i depends on i, not on count."""
    generator = _generator(seed, f"z/{purpose}", step)
    if distribution == "uniform":
        z = generator.random((count, z_dim), dtype=np.float32) * np.float32(2) - np.float32(1)
    else:
        z = generator.standard_normal((count, z_dim), dtype=np.float32)
    return torch.from_numpy(z)


def draw_labels(seed: int, purpose: str, step: int, count: int, classes: int) -> torch.Tensor:
    """Draw class labels uniformly: int64 (count,); all 0 where there are no classes."""
    generator = _generator(seed, f"labels/{purpose}", step)
    return torch.from_numpy(generator.integers(0, max(classes, 1), count, dtype=np.int64))


def draw_dropout(seed: int, purpose: str, step: int, count: int, units: int) -> torch.Tensor:
    """Draw what dropout decides by: float32 (count, units) from U[0, 1); row i depends on i, not on count."""
    if units == 0:
        return torch.zeros(count, 0)
    return torch.from_numpy(_generator(seed, f"dropout/{purpose}", step).random((count, units), dtype=np.float32))


class Draws:
    """This rank's rows of the random draws of each step, on the device."""

    def __init__(self, config: Config, world: World, dropout_units: int) -> None:
        self._config, self._world, self._dropout_units, self._dtype = config, world, dropout_units, dtype_of(config)
        self.own_slots = world.share(torch.arange(config.training.batch_size))

    def noise(self, purpose: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z (n, z_dim) and one-hot y (n, classes) of generated images."""
        model, seed, batch = self._config.model, self._config.seed, self._config.training.batch_size
        classes = model.classes or 0
        z = draw_z(seed, purpose, step, batch, model.z_dim, model.z_distribution)
        y = one_hot(draw_labels(seed, purpose, step, batch, classes), classes)
        device = self._world.device
        return self._world.share(z).to(device, self._dtype), self._world.share(y).to(device, self._dtype)

    def dropout(self, purpose: str, step: int, slots: torch.Tensor) -> torch.Tensor:
        """Return what the discriminator's dropout decides by, (n, units), for images at `slots` of the global batch."""
        draws = draw_dropout(self._config.seed, purpose, step, self._config.training.batch_size, self._dropout_units)
        return draws[slots].to(self._world.device)


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return labels (n,) as float32 (n, classes); width 0 when there are no classes, zeros for no label (-1)."""
    if classes == 0:
        return torch.zeros(len(labels), 0)
    return torch.nn.functional.one_hot(labels.clamp_min(0), classes).float() * (labels >= 0)[:, None]
