"""The control on pixels by k nearest neighbours, scored on the same splits as the discriminator's features."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.labelled import Labels
from dcgan_dist.evaluation.tasks import Classifier, Rows, Values

NEIGHBOURS = (1.0, 3.0, 5.0, 9.0, 15.0, 25.0)
_TRAINING_BLOCK = 8192  # training rows whose distances are computed at once


@dataclass(frozen=True)
class Pixels:
    """Rows of uint8 pixels that are read as float32 in [-1, 1].

    A memory map is pickled as the name of its file, so the other process has to see the same file.
    """

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Values`."""
        return self.values.shape

    def __getitem__(self, rows: Rows) -> Array:
        """See `Values`."""
        return self.values[rows].astype(np.float32) / 127.5 - 1

    def __reduce__(self) -> tuple[Callable[..., Pixels], tuple[Any, ...]]:
        """Return how to make this object again, for pickling."""
        values = self.values
        if isinstance(values, np.memmap) and isinstance(values.base, mmap.mmap):  # the whole map, not a view of a part
            return _mapped, (str(values.filename), values.dtype.str, values.offset, values.shape)
        return Pixels, (values,)


def _mapped(path: str, dtype: str, offset: int, shape: tuple[int, ...]) -> Pixels:
    return Pixels(np.memmap(path, dtype, "r", offset, shape))


@dataclass(frozen=True)
class NearestNeighbours:
    """The k-nearest-neighbour classifier, by Euclidean distance; the k nearest training images vote for their class."""

    device: torch.device
    grid: tuple[float, ...] = NEIGHBOURS
    parameter: str = "k"

    def fit(
        self, values: Values, labels: Labels, draws: Sequence[Rows], grid: Sequence[float], classes: int
    ) -> Iterator[Sequence[Classifier]]:
        """See `Learner`."""
        for rows in draws:
            counts = [min(int(k), len(rows)) for k in grid]
            neighbours = _Neighbours(values, rows, torch.from_numpy(labels[rows]), max(counts), self.device)
            yield [_Vote(neighbours, k, classes) for k in counts]


@dataclass
class _Neighbours:
    """Training images. The neighbours of the last test images are kept, because every k needs the same ones."""

    values: Values
    rows: Rows
    labels: Tensor
    most: int
    device: torch.device
    _last: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the labels of the nearest training images, the nearest first, (n, most)."""
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._find(x.to(self.device).float()))
        return self._last[1]

    def _find(self, x: Tensor) -> Tensor:
        nearest = torch.full((len(x), self.most), float("inf"), device=self.device)
        found = torch.zeros(len(x), self.most, dtype=torch.int64, device=self.device)
        for start in range(0, len(self.rows), _TRAINING_BLOCK):
            part = slice(start, start + _TRAINING_BLOCK)
            block = torch.from_numpy(self.values[self.rows[part]]).to(self.device).float()
            # The square of x is left out: it is the same for all training rows.
            distances = torch.addmm(block.square().sum(1), x, block.T, alpha=-2)
            labels = self.labels[part].to(self.device).expand(len(x), -1)
            nearest, order = torch.cat((nearest, distances), 1).topk(self.most, largest=False)
            found = torch.cat((found, labels), 1).gather(1, order)
        return found.cpu()


@dataclass(frozen=True)
class _Vote:
    neighbours: _Neighbours
    k: int
    classes: int

    def predict(self, x: Tensor) -> Tensor:
        """See `Classifier`; if two classes get equally many votes, the class of the nearer image wins."""
        labels = self.neighbours.nearest(x)[:, : self.k]
        # The additions to the votes sum to less than one vote, and each is more than all later ones together.
        weights = 1 + 0.5 ** torch.arange(1.0, self.k + 1)
        votes = torch.zeros(len(x), self.classes)
        return votes.scatter_add_(1, labels, weights.expand(len(x), -1)).argmax(1)
