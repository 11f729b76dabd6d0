"""The single-layer k-means features of Coates, Ng and Lee (2011), the first row of the paper's Table 1.

Patches of 6x6 pixels are normalised in contrast, whitened (ZCA) and clustered. For each patch of an image, at every
position, the "triangle" activations max(0, mean distance - distance) to all centroids are computed, and summed over the
four quadrants of the image: 4 values for each centroid. Classifiers get each value minus its mean, divided by its
standard deviation over the training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import xxhash
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.data.images import Pixels
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.tasks import Rows, Values
from dcgan_dist.storage.files import write_atomically, writing

PATCH = 6  # pixels
CONTRAST_FLOOR = 10.0  # added to a patch's variance, of values from 0 to 255
WHITENING_FLOOR = 0.1  # added to the eigenvalues
SPREAD_FLOOR = 0.01  # added to a feature's variance
ITERATIONS = 50
_BLOCK = 4096  # patches whose distances to all centroids are computed at once
_REVISION = 1


@dataclass(frozen=True)
class KMeansFeatures:
    """The extractor of these features (see `feature_files.Extractor`); made by `fit_kmeans`."""

    weights: str
    key: str
    image_size: int
    channels: int
    dimension: int
    device: str
    dtype: str = "float16"

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Array:
        """See `Extractor`."""
        tensors = _loaded(self.weights, self.device)
        side = self.image_size - PATCH + 1
        middle = (side + 1) // 2
        rows = np.empty((len(images), self.dimension), dtype=self.dtype)
        for number, image in enumerate(images):
            pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float()
            patches = torch.nn.functional.unfold(pixels[None], PATCH)[0].T
            triangle = _triangle(whiten(patches, tensors["mean"], tensors["whitening"]), tensors["centroids"])
            maps = triangle.view(side, side, -1)
            quadrants = [maps[i, j].sum((0, 1)) for i in _halves(middle) for j in _halves(middle)]
            rows[number] = torch.cat(quadrants).cpu().numpy()
        return rows


def _halves(middle: int) -> tuple[slice, slice]:
    return slice(None, middle), slice(middle, None)


@lru_cache(maxsize=2)
def _loaded(path: str, device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in safetensors.torch.load_file(path).items()}


def whiten(patches: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Return patches, (n, values from 0 to 255), normalised in contrast, minus their mean over the data, whitened."""
    variance, middle = torch.var_mean(patches, dim=1, keepdim=True)
    return ((patches - middle) / torch.sqrt(variance + CONTRAST_FLOOR) - mean) @ whitening


def _triangle(patches: Tensor, centroids: Tensor) -> Tensor:
    distances = torch.cdist(patches, centroids, compute_mode="use_mm_for_euclid_dist")
    return (distances.mean(dim=1, keepdim=True) - distances).clamp_min_(0)


def fit_kmeans(
    pixels: Array,
    rows: Rows,
    data_digest: str,
    cache: Path,
    *,
    image_size: int,
    channels: int,
    centroids: int,
    patches: int,
    seed: int,
    device: torch.device,
) -> KMeansFeatures:
    """Fit centroids to patches of training images, or load them from the cache.

    Args:
        pixels: uint8 images as rows, (count, image_size * image_size * channels).
        rows: numbers of the training images.
        data_digest: digest of the data set.
        cache: folder where the centroids are kept.
        image_size: side of the images in pixels.
        channels: 1 or 3.
        centroids: number of centroids.
        patches: number of patches to fit to.
        seed: seed of the patches and the initial centroids.
        device: where to compute.

    Raises:
        StorageError: the disk of the cache is full.
    """
    which = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows).tobytes())
    about = (_REVISION, data_digest, which, image_size, channels, centroids, patches, seed)
    key = f"kmeans-{xxhash.xxh3_128_hexdigest(repr(about).encode())}"
    path = cache / "networks" / f"{key}.safetensors"
    if not path.exists():
        random = np.random.default_rng(seed)
        drawn = draw_patches(pixels, rows, image_size, channels, patches, random)
        tensors = cluster(torch.from_numpy(drawn).to(device), centroids, random)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}))
    return KMeansFeatures(str(path), key, image_size, channels, 4 * centroids, str(device))


def draw_patches(
    pixels: Array, rows: Rows, image_size: int, channels: int, count: int, random: np.random.Generator
) -> Array:
    """Return `count` patches at random positions of random images, float32 (count, channels * 36), channels first."""
    images = rows[random.integers(0, len(rows), count)]
    tops, lefts = random.integers(0, image_size - PATCH + 1, (2, count))
    drawn = np.empty((count, channels, PATCH, PATCH), dtype=np.float32)
    for number, (row, top, left) in enumerate(zip(images.tolist(), tops.tolist(), lefts.tolist(), strict=True)):
        image = pixels[row].reshape(image_size, image_size, channels)
        drawn[number] = image[top : top + PATCH, left : left + PATCH].transpose(2, 0, 1)
    return drawn.reshape(count, -1)


def cluster(
    patches: Tensor, count: int, random: np.random.Generator, iterations: int = ITERATIONS
) -> dict[str, Tensor]:
    """Return the mean and whitening of patches, and `count` centroids of the whitened ones (Lloyd's algorithm)."""
    variance, middle = torch.var_mean(patches, dim=1, keepdim=True)
    even = (patches - middle) / torch.sqrt(variance + CONTRAST_FLOOR)
    mean = even.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(even.T.double()))
    whitening = (vectors @ torch.diag((values + WHITENING_FLOOR).rsqrt()) @ vectors.T).float()
    white = (even - mean) @ whitening
    first = random.standard_normal((count, white.shape[1]), dtype=np.float32)
    centroids = torch.from_numpy(first).to(patches.device) * 0.1
    for _ in range(iterations):
        sums, sizes = torch.zeros_like(centroids), centroids.new_zeros(count)
        squares = centroids.square().sum(dim=1)
        for block in white.split(_BLOCK):
            nearest = torch.addmm(squares, block, centroids.T, alpha=-2).argmin(dim=1)
            sums.index_add_(0, nearest, block)
            sizes.index_add_(0, nearest, torch.ones_like(nearest, dtype=sizes.dtype))
        centroids = sums / sizes.clamp_min(1)[:, None]
        empty = torch.nonzero(sizes == 0)[:, 0]
        if len(empty):  # clusters without a patch start again from random patches
            chosen = random.integers(0, len(white), len(empty))
            centroids[empty] = white[torch.from_numpy(chosen).to(white.device)]
    return {"mean": mean, "whitening": whitening, "centroids": centroids}


@dataclass(frozen=True)
class Standardised:
    """Features minus their mean, divided by their standard deviation, both over the training images."""

    values: Values
    mean: Array
    spread: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Values`."""
        return self.values.shape

    def __getitem__(self, rows: Rows) -> Array:
        """See `Values`."""
        result: Array = (self.values[rows].astype(np.float32) - self.mean) / self.spread
        return result


def standardise(values: Values, test_values: Values, rows: Rows) -> tuple[Standardised, Standardised]:
    """Return the features of the data and of the test set, standardised by the statistics of the training `rows`."""
    total = np.zeros(values.shape[1])
    squares = np.zeros(values.shape[1])
    for block in np.array_split(np.sort(rows), -(-len(rows) // 512)):
        part = values[block].astype(np.float64)
        total += part.sum(axis=0)
        squares += (part * part).sum(axis=0)
    mean = total / len(rows)
    spread = np.sqrt(np.maximum(squares / len(rows) - mean * mean, 0) + SPREAD_FLOOR)
    statistics = mean.astype(np.float32), spread.astype(np.float32)
    return Standardised(values, *statistics), Standardised(test_values, *statistics)
