"""A sweep's settings, read once for the driver and all trials."""

from __future__ import annotations

from dataclasses import dataclass

from dcgan_dist.sweeps.objective import Objective
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space


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

    @property
    def trials(self) -> int:
        """How many trials the sweep has in all."""
        if self.config.search != "grid":
            return self.config.trials
        return len(self.space.grid(self.config.train.seed, self.config.trials))


__all__ = ["SweepPlan"]
