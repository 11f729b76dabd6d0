"""A sweep's settings, read once for the driver and all trials."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dcgan_dist.config import Config
from dcgan_dist.settings import override
from dcgan_dist.sweeps.objective import Objective
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space
from dcgan_dist.training.setup import open_data, resolve_config

# Settings that decide how many steps a run of so many epochs has.
_LENGTH = {
    *("data.path", "data.image_member", "model.name", "model.image_size", "model.channels"),
    *("training.batch_size", "training.updates", "training.epochs", "training.steps"),
}


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does.

    Attributes:
        config: its settings.
        space: what is searched.
        objective: what is maximised.
    """

    config: SweepConfig
    space: Space
    objective: Objective

    @classmethod
    def of(cls, config: SweepConfig) -> SweepPlan:
        """Read the settings of a sweep.

        Raises:
            ConfigError: the space or the objective is none.
        """
        return cls(config, Space.parse(config.space), Objective.parse(config.objective))

    def in_steps(self) -> SweepPlan:
        """Return the plan with the length of runs in steps, if all trials have the same: the data are opened once.

        Raises:
            ConfigError, DataError: as `with_steps`.
        """
        if self.config.train.training.steps is not None or not _LENGTH.isdisjoint(self.space.keys):
            return self
        return replace(self, config=replace(self.config, train=with_steps(self.config.train)))

    @property
    def trials(self) -> int:
        """How many trials the sweep has in all."""
        if self.config.search != "grid":
            return self.config.trials
        return len(self.space.grid(self.config.train.seed, self.config.trials))


def with_steps(config: Config) -> Config:
    """Return the settings of a run with its length in steps instead of epochs.

    Raises:
        ConfigError: the settings do not fit the data.
        DataError: the data cannot be read.
    """
    steps = resolve_config(config, open_data(config)).training.steps
    return override(config, {"training.epochs": None, "training.steps": steps})


__all__ = ["SweepPlan", "with_steps"]
