"""Samples of the same z all through a run: the grids that people look at, and signals of the generator's health."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.runs.checkpoints import RAW, name_of
from dcgan_dist.runs.documents import Signals
from dcgan_dist.training.averaging import GeneratorAverage
from dcgan_dist.training.sampling import fixed_inputs, grid_columns, make_grid, sample_feature_maps, to_uint8
from dcgan_dist.training.setup import dtype_of
from dcgan_dist.training.signals import WINDOW, filter_oscillation, filter_swing, mean_activations, sample_distance
from dcgan_dist.training.step import Players

Grids = dict[str, npt.NDArray[np.uint8]]  # by name, uint8 (rows, columns, channels)


class FixedSamples:
    """The fixed z of a run, the generators that are sampled with it, and the history of their filters.

    Attributes:
        z: (sample_count, z_dim).
        history: float32 (log lines, filters), mean activations of the last `signals.WINDOW` log lines, oldest first.
    """

    def __init__(self, players: Players, average: GeneratorAverage | None, config: Config, world: World) -> None:
        self.history = torch.zeros(0, 0)
        self._generator, self._average, self._autocast = players.generator.network, average, players.autocast
        self._config, self._world = config, world
        self._image_range = players.image_range
        z, y = fixed_inputs(config.model, config.seed, config.training.sample_count)
        self.z, self._y = z.to(world.device, dtype_of(config)), y.to(world.device, dtype_of(config))

    def signals(self) -> Signals:
        """Measure the raw generator and extend the history; {} on all ranks but the leader, who writes the rows."""
        if not self._world.is_leader:
            return {}
        images, hidden = self._draw(self._generator)
        means = mean_activations(hidden)[None]
        self.history = torch.cat([self.history, means] if len(self.history) else [means])[-WINDOW:]
        return {
            "sample_distance": sample_distance(images, self._image_range),
            "filter_oscillation": filter_oscillation(self.history),
            "filter_swing": filter_swing(self.history),
        }

    def grids(self, step: int) -> Grids:
        """Return a grid of the generator's samples; with an average, one of it and one of the raw weights."""
        name = name_of(step)
        generators = {name: self._generator}
        if self._average is not None:
            generators = {name: self._average.measure(), f"{RAW}{name}": self._generator}
        grids = {}
        for name, generator in generators.items():
            images, _ = self._draw(generator)
            columns = grid_columns(len(images), self._config.model.classes or 0)
            grids[name] = make_grid(to_uint8(images, self._image_range), columns)
        return grids

    def _draw(self, generator: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with self._autocast():
            return sample_feature_maps(generator, self.z, self._y, self._config.model)
