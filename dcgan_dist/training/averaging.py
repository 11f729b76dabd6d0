"""The averaged generator: an exponential moving average of the generator's weights over the images it was updated with.

    after an update with B images, which makes it n + B in all:
        keep    = product of min(decay, (1 + k) / (10 + k)) over k = n … n + B - 1
        average = keep * average + (1 - keep) * generator

So a decay means the same at every batch size and number of workers, and the average forgets its random start: early on
it reaches back over about a ninth of the images so far. Training does not use it; samples and scores do.

Averaged weights make activations of their own, so the statistics of batch norm are measured on samples when they are
used, not averaged along: that scored better (docs/log.md).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from dcgan_dist.config import Config
from dcgan_dist.training.sampling import measure_statistics


def kept_share(decay: float, first: int, count: int) -> float:
    """Return the share of the average that is kept after an update with images `first` to before `first + count`."""
    # (1 + k) / (10 + k) reaches the decay at this k; over the images before, the product telescopes to nine factors.
    full = math.ceil((10 * decay - 1) / (1 - decay))
    warm = min(max(full, first), first + count)
    rising = math.prod((first + j) / (warm + j) for j in range(1, 10))
    return rising * decay ** (first + count - warm)


class GeneratorAverage:
    """The average of a generator's weights.

    Attributes:
        network: a generator with them; in float32 where the one that trains computes in bfloat16.
        first_step: the step of training at which the average began.
    """

    def __init__(self, generator: nn.Module, config: Config) -> None:
        """Begin with a copy of the generator, whose batch norm must not be synchronised: one rank measures alone."""
        self.network = copy.deepcopy(generator).requires_grad_(False)
        self.first_step = 0
        self._config = config
        self._is_measured = False

    def begin(self, generator: nn.Module, step: int) -> None:
        """Restart the average from a generator's weights, those after `step`."""
        with torch.no_grad():
            for mine, theirs in zip(self.network.parameters(), generator.parameters(), strict=True):
                mine.copy_(theirs)
        self.first_step, self._is_measured = step, False

    @torch.no_grad()
    def update(self, generator: nn.Module, step: int, finite: torch.Tensor) -> None:
        """Take in the weights after a step of training.

        Args:
            generator: the network that trains.
            step: number of the step that has just been made.
            finite: () 0 where it was taken back, so that the average shall stay as it is; nothing waits for it.
        """
        settings = self._config.training
        images = (step - 1 - self.first_step) * settings.batch_size
        share = (1 - kept_share(settings.average, images, settings.batch_size)) * finite
        average: list[torch.Tensor] = [*self.network.parameters()]
        difference = torch._foreach_sub([parameter.detach() for parameter in generator.parameters()], average)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(average, difference)
        self._is_measured = False

    def measure(self) -> nn.Module:
        """Return the network, after measuring the statistics of its batch norm if the weights have changed since."""
        if not self._is_measured:
            measure_statistics(self.network, self._config.model, self._config.seed)
            self._is_measured = True
        return self.network
