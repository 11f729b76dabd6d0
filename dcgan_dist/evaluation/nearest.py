"""Exact nearest neighbours among any number of rows of bytes: no distance is rounded, and of ties the first row wins.

Squared Euclidean distances between rows of uint8 are integers, but for 784 pixels they can exceed 2²⁴, above which
float32 cannot represent all integers. Pixels minus 128 fit into int8, whose matrix products are exact (and fast on a
CPU). Where these are not available, float32 is used: no sum of up to 1,024 such products exceeds 2²⁴. These products
only find the rows that may be nearer than the nearest so far; the distances of these rows are then computed in
integers. There are few of them: the millionth row is nearer than all before it for one image in a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed

Bytes = npt.NDArray[np.uint8]

_CENTRE = 128
_WHOLE = 20_000  # columns up to which distances, and their parts, fit into int32
_EXACT = 1024  # columns up to which a sum of products of centred bytes fits into the 24 bits of a float32
_BLOCK = 256  # rows of a product, few enough that it stays in the CPU's caches
_BLOCK_ON_GPU = 4096
_FAR = torch.iinfo(torch.int64).max


@lru_cache(maxsize=1)
def has_exact_int8() -> bool:
    """Return whether this processor multiplies matrices of int8 exactly; processors without VNNI may saturate."""
    extremes = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, 256).contiguous().repeat(16, 1)
    products = torch._int_mm(extremes, extremes.T)
    return torch.equal(products.long(), extremes.long() @ extremes.long().T)


@dataclass(frozen=True)
class Neighbours:
    """The nearest row of each image; among equally near rows, the first one.

    Attributes:
        distances: squared Euclidean distances, int64 (m,); the largest int64 if there are no rows.
        rows: numbers of the rows, int64 (m,); -1 if there are no rows.
    """

    distances: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def merge(self, later: Neighbours) -> Neighbours:
        """Return the nearest rows among these and `later`, whose rows have higher numbers."""
        is_nearer = later.distances < self.distances
        distances = np.where(is_nearer, later.distances, self.distances)
        return Neighbours(distances, np.where(is_nearer, later.rows, self.rows))


class NearestRows:
    """A search for the nearest row of each image; `add` gives it the rows, block by block.

    Args:
        images: the images, uint8 (m, d).
        device: where to compute.
    """

    def __init__(self, images: Bytes, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # Columns in which all images are equal add the same to the distances of a row from all images.
        self._differs = np.flatnonzero((images != images[:1]).any(axis=0))
        self._same = np.flatnonzero((images == images[:1]).all(axis=0))
        self._value_of_same = torch.from_numpy(images[0, self._same].astype(np.int32)).to(self.device)
        columns = len(self._differs)
        fits = columns >= 2 and images.shape[1] <= _WHOLE  # with one column, torch 2.13 returns noise
        self._is_whole = self.device.type == "cpu" and fits and has_exact_int8()
        self._dtype = torch.int8 if self._is_whole else torch.float32 if columns <= _EXACT else torch.float64
        self._images = self._centred(images)
        self._norms = self._squares(self._images)
        self.reset()

    def reset(self) -> None:
        """Remove all rows."""
        self._distances = torch.full((len(self._images),), _FAR, dtype=torch.int64, device=self.device)
        self._rows = torch.full_like(self._distances, -1)

    @property
    def found(self) -> Neighbours:
        """The nearest of all rows so far."""
        return Neighbours(self._distances.cpu().numpy().copy(), self._rows.cpu().numpy().copy())

    def add(self, rows: Bytes, first: int) -> None:
        """Add rows, uint8 (n, d), with the numbers from `first` on, which are higher than all numbers before."""
        block = _BLOCK if self.device.type == "cpu" else _BLOCK_ON_GPU
        for start in range(0, len(rows), block):
            self._add(rows[start : start + block], first + start)

    def _centred(self, rows: Bytes) -> Tensor:
        """Return the columns that differ, minus 128; for int8 that flips the highest bit."""
        wanted = rows[:, self._differs]
        if self._is_whole:
            return torch.from_numpy((wanted ^ _CENTRE).view(np.int8))
        return torch.from_numpy(wanted).to(self.device, self._dtype).sub_(_CENTRE)

    def _squares(self, x: Tensor) -> Tensor:
        return x.to(torch.int32).square().sum(dim=1)

    def _products(self, x: Tensor, images: Tensor) -> Tensor:
        """Return the exact products of rows (n, d) and images (m, d), (n, m)."""
        if self._is_whole:
            products: Tensor = torch._int_mm(x, images.T)
            return products
        return x @ images.T

    def _add(self, rows: Bytes, first: int) -> None:
        x = self._centred(rows)
        rest = torch.from_numpy(rows[:, self._same]).to(self.device, torch.int32) - self._value_of_same
        # Squared distance = norm of the image + own - 2 * product.
        own = self._squares(x) + rest.square().sum(dim=1)
        parts = self._products(x, self._images).mul_(-2).add_(own[:, None])
        # In float32, `own` and the sum may be rounded.
        error = 4 + float(own.max()) * 2**-22 if parts.dtype == torch.float32 else 0.0
        asked = torch.nonzero(parts.amin(dim=0).double() - error < self._distances - self._norms).squeeze(1)
        if not len(asked):
            return
        products = self._products(x, self._images[asked]).long()
        distances = own[:, None] + self._norms[asked] - 2 * products
        nearest = distances.amin(dim=0)
        # argmin does not specify which of several equal values it takes: take the smallest index.
        numbers = torch.arange(len(x), device=self.device)[:, None]
        indices = torch.where(distances == nearest, numbers, len(x)).amin(dim=0)
        is_nearer = nearest < self._distances[asked]
        asked, nearest, indices = asked[is_nearer], nearest[is_nearer], indices[is_nearer]
        self._distances[asked] = nearest
        self._rows[asked] = first + indices


__all__ = ["Bytes", "NearestRows", "Neighbours"]
