"""The nearest of any number of rows of bytes, exactly: no distance is rounded, and of equally near rows the first wins.

Squared Euclidean distances between rows of uint8 are whole numbers, but of 784 pixels they can exceed 2²⁴, above which
float32 has gaps. Pixels minus 128 fit into int8, of which products of matrices are exact (and on a CPU fast). Where
there are none such, float32 does: no sum of up to 1,024 such products exceeds 2²⁴. It is only used to find which rows
may be nearer than the nearest so far, whose distances are then computed in whole numbers. That is few: the millionth
row is nearer than all before it for one image in a million.
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
_WHOLE = 20_000  # most columns of which distances, and their parts, fit into int32
_EXACT = 1024  # most columns of which a sum of products of centred bytes fits into the 24 bits of a float32
_BLOCK = 256  # rows that a product is computed for at once, so that it stays near the cores
_BLOCK_ON_GPU = 4096
_FAR = torch.iinfo(torch.int64).max


@lru_cache(maxsize=1)
def has_exact_int8() -> bool:
    """Whether this processor multiplies matrices of int8 exactly: some without instructions for it saturate."""
    extremes = torch.tensor([[-128], [127]], dtype=torch.int8).expand(2, 256).contiguous().repeat(16, 1)
    products = torch._int_mm(extremes, extremes.T)
    return torch.equal(products.long(), extremes.long() @ extremes.long().T)


@dataclass(frozen=True)
class Found:
    """The nearest row of each image: of equally near ones that which was given first.

    Attributes:
        distances: squared Euclidean distances, int64 (m,); the largest int64 where no row was given yet.
        rows: numbers of the rows, int64 (m,); -1 where no row was given yet.
    """

    distances: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def then(self, later: Found) -> Found:
        """Return the nearest rows of these and of others that come after all of these."""
        is_nearer = later.distances < self.distances
        return Found(np.where(is_nearer, later.distances, self.distances), np.where(is_nearer, later.rows, self.rows))


class NearestRows:
    """Finds for each of some images the nearest of the rows that `add` is given, block by block.

    Args:
        images: uint8 (m, d).
        device: where to compute.
    """

    def __init__(self, images: Bytes, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # Where all images have the same value, a row is as far from each of them.
        self._differs = np.flatnonzero((images != images[:1]).any(axis=0))
        self._same = np.flatnonzero((images == images[:1]).all(axis=0))
        self._value_of_same = torch.from_numpy(images[0, self._same].astype(np.int32)).to(self.device)
        columns = len(self._differs)
        fits = columns >= 2 and images.shape[1] <= _WHOLE  # of one column, torch 2.13 gives no product but noise
        self._is_whole = self.device.type == "cpu" and fits and has_exact_int8()
        self._dtype = torch.int8 if self._is_whole else torch.float32 if columns <= _EXACT else torch.float64
        self._images = self._centred(images)
        self._norms = self._squares(self._images)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._distances = torch.full((len(self._images),), _FAR, dtype=torch.int64, device=self.device)
        self._rows = torch.full_like(self._distances, -1)

    @property
    def found(self) -> Found:
        """The nearest of all rows so far."""
        return Found(self._distances.cpu().numpy().copy(), self._rows.cpu().numpy().copy())

    def add(self, rows: Bytes, first: int) -> None:
        """Look through rows, uint8 (n, d), which bear the numbers from `first` on, all higher than those before."""
        block = _BLOCK if self.device.type == "cpu" else _BLOCK_ON_GPU
        for start in range(0, len(rows), block):
            self._add(rows[start : start + block], first + start)

    def _centred(self, rows: Bytes) -> Tensor:
        """Return the columns that differ, minus 128; to int8 that is a change of the highest bit."""
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
        # The squared distance is that of the image from the centre, plus this, minus twice the product.
        own = self._squares(x) + rest.square().sum(dim=1)
        parts = self._products(x, self._images).mul_(-2).add_(own[:, None])
        # Of floats, `own` and the sum may be rounded.
        error = 4 + float(own.max()) * 2**-22 if parts.dtype == torch.float32 else 0.0
        asked = torch.nonzero(parts.amin(dim=0).double() - error < self._distances - self._norms).squeeze(1)
        if not len(asked):
            return
        products = self._products(x, self._images[asked]).long()
        distances = own[:, None] + self._norms[asked] - 2 * products
        nearest = distances.amin(dim=0)
        # Which of equal values argmin takes is not said; of these numbers, none are equal.
        numbers = torch.arange(len(x), device=self.device)[:, None]
        places = torch.where(distances == nearest, numbers, len(x)).amin(dim=0)
        is_nearer = nearest < self._distances[asked]
        asked, nearest, places = asked[is_nearer], nearest[is_nearer], places[is_nearer]
        self._distances[asked] = nearest
        self._rows[asked] = first + places


__all__ = ["Bytes", "Found", "NearestRows"]
