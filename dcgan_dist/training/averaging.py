"""The averaged generator: an exponential moving average of the generator's weights over the images it was updated with.

    after each update with B images, the n-th to before the (n + B)-th:
        keep    = product over these images of min(decay, (1 + k) / (10 + k)),  k = n … n + B - 1
        average = keep * average + (1 - keep) * generator

So a decay means the same at every batch size and number of workers, and the average forgets its random start: early on
it reaches back over about a ninth of the images so far. Training does not use it; samples and scores do.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


def kept_share(decay: float, first: int, count: int) -> float:
    """Return the share of the average that is kept after an update with images `first` to before `first + count`."""
    # (1 + k) / (10 + k) reaches the decay at this k; over the images before, the product telescopes to nine factors.
    full = math.ceil((10 * decay - 1) / (1 - decay))
    warm = min(max(full, first), first + count)
    rising = math.prod((first + j) / (warm + j) for j in range(1, 10))
    return rising * decay ** (first + count - warm)


class GeneratorAverage:
    """The average of a generator's weights and of its batch norm's running statistics.

    Attributes:
        network: a generator with the averages as its weights; in float32 where the generator trains in bfloat16.
        first_step: the step of training at which the average began.
    """

    def __init__(self, generator: nn.Module, decay: float, batch_size: int) -> None:
        self.network = copy.deepcopy(generator).requires_grad_(False)
        self.first_step = 0
        self._decay, self._batch_size = decay, batch_size

    def begin(self, generator: nn.Module, step: int) -> None:
        """Begin with the weights of a generator, those after `step`."""
        with torch.no_grad():
            for mine, theirs in zip(_tensors(self.network), _tensors(generator), strict=True):
                mine.copy_(theirs)
        self.first_step = step

    @torch.no_grad()
    def update(self, generator: nn.Module, step: int, finite: torch.Tensor) -> None:
        """Take in the weights after a step of training.

        Args:
            generator: the network that trains.
            step: number of the step that has just been made.
            finite: () 0 where it was taken back, so that the average shall stay as it is; nothing waits for it.
        """
        images = (step - 1 - self.first_step) * self._batch_size
        share = (1 - kept_share(self._decay, images, self._batch_size)) * finite
        average = [tensor for tensor in _tensors(self.network) if tensor.is_floating_point()]
        difference = torch._foreach_sub([t for t in _tensors(generator) if t.is_floating_point()], average)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(average, difference)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*(parameter.detach() for parameter in network.parameters()), *network.buffers()]
