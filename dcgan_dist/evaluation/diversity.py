"""Metrics of samples in a feature space: how close they are to real images, how varied, and whether they are copies.

All metrics use exact distances between rows of features, computed block by block in bounded memory:

- `compare`: precision and recall (Kynkäänniemi et al. 2019, k = 3), density and coverage (Naeem et al. 2020, k = 5),
  the mean distance of two samples (small after a collapse), and the Fréchet distance of the two sets.
- `judge_copies`: whether samples are nearer to training images than other real images are.

The intervals of `compare` come from a delete-a-group jackknife: both sets are cut into 20 groups, the metric is
computed 20 times without group g of both, and the interval is 2.09 standard errors (Student's t, 19 degrees of freedom)
to both sides. Unlike the bootstrap, the jackknife never repeats an image; a repeated image would be a neighbour at
distance 0 and spoil metrics that use neighbours. Its variance is on average not smaller than the true one (Efron and
Stein 1981). The metrics have a bias that depends on n, so only scores of equal n can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.tasks import Z95

Floats = npt.NDArray[np.float64]

GROUPS = 20
NEIGHBOURS_OF_PRECISION = 3
NEIGHBOURS_OF_COVERAGE = 5
FRECHET_IMAGES = 5000
"""Images of each set that a Fréchet distance needs; with fewer, it depends more on their number than on the images."""

_T95 = 2.093  # of Student's t with GROUPS - 1 degrees of freedom
_BLOCK_VALUES = 1 << 24  # distances in memory at once
_SAME = 1e-13  # a squared distance below this share of the squared lengths is rounding error: the rows are the same
_CANDIDATES = 4  # training images, nearest by float32, whose distances are computed again in float64
_RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A number with its 95% interval, and the number of images of the smaller set."""

    value: float
    ci95: tuple[float, float]
    n: int


class Rows:
    """A set of feature rows in float64 on a device, cut into groups of about equal size.

    Args:
        values: (n, d); n at least 2 * `GROUPS`, and enough without any one group.
        device: where to compute.
        centre: subtracted from all rows, because distances of small numbers are more exact; the same for all sets that
            are compared; if None, the mean.
    """

    def __init__(self, values: Array, device: torch.device, centre: Tensor | None = None) -> None:
        x = torch.from_numpy(np.array(values, dtype=np.float64)).to(device)
        self.centre = x.mean(dim=0) if centre is None else centre
        self.x = x - self.centre
        self.squares = self.x.square().sum(dim=1)
        self.count = len(x)
        bounds = [number * self.count // GROUPS for number in range(GROUPS + 1)]
        self.groups = [slice(low, high) for low, high in pairwise(bounds)]

    def blocks(self, other: Rows) -> Iterator[tuple[int, slice, Tensor]]:
        """Yield for each block of rows its group, its slice, and the squared distances to another set, (block, n)."""
        size = max(1, _BLOCK_VALUES // other.count)
        for number, group in enumerate(self.groups):
            for start in range(group.start, group.stop, size):
                rows = slice(start, min(start + size, group.stop))
                lengths = self.squares[rows, None] + other.squares
                squared = torch.addmm(lengths, self.x[rows], other.x.T, alpha=-2)
                yield number, rows, squared.masked_fill_(squared < _SAME * lengths, 0.0)


@dataclass(frozen=True)
class Neighbourhoods:
    """Distances within a set. Entry g of an array is computed without group g, the last entry with all rows.

    Attributes:
        radii: by k, the squared distance of each row to its k-th nearest other row, (GROUPS + 1, n).
        distances: mean distance of two rows, (GROUPS + 1,).
    """

    radii: dict[int, Tensor]
    distances: Floats


def measure_neighbourhoods(rows: Rows, ks: tuple[int, ...]) -> Neighbourhoods:
    """Return the radii and the mean distance of a set."""
    most = max(ks)
    radii = {k: rows.x.new_empty(GROUPS + 1, rows.count) for k in ks}
    sums = rows.x.new_zeros(GROUPS, GROUPS)
    for number, block, squared in rows.blocks(rows):
        itself = torch.arange(block.start, block.stop, device=squared.device)
        local = torch.arange(len(itself), device=squared.device)
        squared[local, itself] = 0.0
        lengths = squared.sqrt()
        sums[number] += torch.stack([lengths[:, group].sum() for group in rows.groups])
        squared[local, itself] = torch.inf
        # The nearest rows of a union of groups are among the nearest rows of each group.
        nearest = [
            squared[:, group].topk(min(most, group.stop - group.start), largest=False)[0] for group in rows.groups
        ]
        for left_out in range(GROUPS + 1):
            candidates = torch.cat([part for group, part in enumerate(nearest) if group != left_out], dim=1)
            closest = candidates.topk(most, largest=False)[0]
            for k in ks:
                radii[k][left_out, block] = closest[:, k - 1]
    distances = np.empty(GROUPS + 1)
    for left_out in range(GROUPS + 1):
        kept = [group for group in range(GROUPS) if group != left_out]
        count = sum(rows.groups[group].stop - rows.groups[group].start for group in kept)
        distances[left_out] = float(sums[kept][:, kept].sum()) / (count * (count - 1))
    return Neighbourhoods(radii, distances)


def measure_support(centres: Rows, radii: Tensor, points: Rows) -> tuple[Floats, Floats, Floats]:
    """Measure which balls around the rows of one set contain rows of another set.

    Args:
        centres: centres of the balls.
        radii: squared radii of the balls, as in `Neighbourhoods`.
        points: the other set.

    Returns:
        The share of points that lie in at least one ball, the mean number of balls that a point lies in, and the share
        of balls that contain at least one point; entry g without group g of both sets, the last with all,
        (GROUPS + 1,).
    """
    balls = radii.clone()
    for left_out, group in enumerate(centres.groups):
        balls[left_out, group] = -1.0  # contains nothing
    inside, hits = np.zeros(GROUPS + 1), np.zeros(GROUPS + 1)
    nearest = radii.new_full((GROUPS, centres.count), torch.inf)  # from each centre to the nearest point of each group
    for number, _, squared in points.blocks(centres):
        nearest[number] = torch.minimum(nearest[number], squared.amin(dim=0))
        for left_out in range(GROUPS + 1):
            if left_out != number:
                counts = (squared <= balls[left_out]).sum(dim=1)
                inside[left_out] += int((counts > 0).sum())
                hits[left_out] += int(counts.sum())
    held = np.empty(GROUPS + 1)
    numbers, shares = np.empty(GROUPS + 1), np.empty(GROUPS + 1)
    for left_out in range(GROUPS + 1):
        kept = [group for group in range(GROUPS) if group != left_out]
        numbers[left_out] = sum(points.groups[group].stop - points.groups[group].start for group in kept)
        shares[left_out] = sum(centres.groups[group].stop - centres.groups[group].start for group in kept)
        held[left_out] = int((nearest[kept].amin(dim=0) <= balls[left_out]).sum())
    return inside / numbers, hits / numbers, held / shares


def _moments(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mean (d,) and covariance (d, d): first without each group, last of all rows."""
    sums = torch.stack([rows.x[group].sum(dim=0) for group in rows.groups])
    products = torch.stack([rows.x[group].T @ rows.x[group] for group in rows.groups])
    total, product = sums.sum(dim=0), products.sum(dim=0)
    for left_out in range(GROUPS + 1):
        without = left_out < GROUPS
        count = rows.count - (rows.groups[left_out].stop - rows.groups[left_out].start if without else 0)
        mean = (total - sums[left_out] if without else total) / count
        squares = product - products[left_out] if without else product
        yield mean, (squares - count * torch.outer(mean, mean)) / (count - 1)


def root_of(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance; negative eigenvalues are rounding errors and count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def frechet_distance(mean: Tensor, root: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Return the squared Fréchet distance of two normal distributions (Heusel et al. 2017), all in float64.

    The trace of the square root of the product A B of the covariances equals that of the root of A^½ B A^½. The latter
    is symmetric and has no negative eigenvalues except by rounding, so nothing is inverted, and singular covariances
    are no problem.

    Args:
        mean: mean of the first distribution, (d,).
        root: `root_of` the covariance of the first, (d, d).
        other_mean: mean of the second, (d,).
        other_covariance: covariance of the second, (d, d).
    """
    inner = root @ other_covariance @ root
    trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    variances = root.square().sum() + other_covariance.trace()
    return max(0.0, float((mean - other_mean).square().sum() + variances - 2 * trace))


def jackknife(values: Floats, n: int, lowest: float = 0.0, highest: float = np.inf) -> Metric:
    """Return a metric with its interval, from its values without each group and, last, of all images.

    If all values are 0 or all are 1, the jackknife gives no error; then the interval is that of such a share of n
    independent images.
    """
    *without, value = values.tolist()
    error = float(np.sqrt((GROUPS - 1) * np.var(without)))
    if error == 0 and highest == 1 and value in (0.0, 1.0):
        return _always(value, n)
    return Metric(value, (max(lowest, value - _T95 * error), min(highest, value + _T95 * error)), n)


def _always(share: float, n: int) -> Metric:
    """Return a share of 0 or 1 of n images with Wilson's interval."""
    room = Z95 * Z95 / (n + Z95 * Z95)
    return Metric(share, (1 - room, 1.0) if share else (0.0, room), n)


class Reference:
    """Real images with which samples are compared.

    Args:
        values: features of images that were drawn at random from the data, (n, d).
        device: where to compute.
    """

    def __init__(self, values: Array, device: torch.device) -> None:
        self.rows = Rows(values, device)
        self.device = device
        self.neighbourhoods = measure_neighbourhoods(self.rows, (NEIGHBOURS_OF_PRECISION, NEIGHBOURS_OF_COVERAGE))

    @cached_property
    def _roots(self) -> list[tuple[Tensor, Tensor]]:
        return [(mean, root_of(covariance)) for mean, covariance in _moments(self.rows)]

    def frechet_distances(self, samples: Rows) -> Floats:
        """Return the Fréchet distances, (GROUPS + 1,): entry g without group g of both sets, the last of all rows."""
        both = zip(self._roots, _moments(samples), strict=True)
        return np.array([frechet_distance(*real, *generated) for real, generated in both])

    def compare(self, values: Array, frechet: bool = True) -> dict[str, Metric]:
        """Compare samples with the real images.

        Args:
            values: features of the samples, (n, d).
            frechet: whether to compute the Fréchet distance.

        Returns:
            precision: share of samples that are at most as far from some real image as that image's 3rd nearest
                neighbour (they look real).
            recall: share of real images that are that close to some sample, by the samples' neighbours (nothing is
                missing).
            density: number of balls around real images, with the radius of the 5th nearest neighbour, that contain a
                sample on average, divided by 5 (about 1 for real images; unlike precision, robust to an outlier).
            coverage: share of these balls that contain a sample (unlike recall, robust to outliers among the samples).
            sample_distance: mean distance of two samples.
            distance_ratio: `sample_distance` divided by the same of real images; far below 1 after a collapse.
            frechet_distance: Fréchet distance of normal distributions with the sets' means and covariances; 0 is best.
        """
        samples = Rows(values, self.device, self.rows.centre)
        n = min(samples.count, self.rows.count)
        own = measure_neighbourhoods(samples, (NEIGHBOURS_OF_PRECISION,))
        real = self.neighbourhoods
        precision, _, _ = measure_support(self.rows, real.radii[NEIGHBOURS_OF_PRECISION], samples)
        recall, _, _ = measure_support(samples, own.radii[NEIGHBOURS_OF_PRECISION], self.rows)
        _, balls, coverage = measure_support(self.rows, real.radii[NEIGHBOURS_OF_COVERAGE], samples)
        metrics = {
            "precision": jackknife(precision, n, highest=1.0),
            "recall": jackknife(recall, n, highest=1.0),
            "density": jackknife(balls / NEIGHBOURS_OF_COVERAGE, n),
            "coverage": jackknife(coverage, n, highest=1.0),
            "sample_distance": jackknife(own.distances, n),
            "distance_ratio": jackknife(own.distances / real.distances, n),
        }
        if frechet:
            metrics["frechet_distance"] = jackknife(self.frechet_distances(samples), n)
        return metrics


def nearest_distances(values: Array, training: Array, device: torch.device, block: int = 4096) -> Floats:
    """Return the distance of each row to the nearest training row, (n,).

    The training rows are read in blocks and may be memory-mapped. The four nearest candidates are found by products in
    float32; their distances, and the smallest of these, are computed by differences in float64.

    Args:
        values: (n, d).
        training: (m, d).
        device: where to compute.
        block: training rows in memory at once.
    """
    centre = torch.from_numpy(np.asarray(training[:block], dtype=np.float32).mean(axis=0)).to(device)
    x = torch.from_numpy(np.array(values, dtype=np.float32)).to(device) - centre
    most = min(_CANDIDATES, len(training))
    best = torch.full((len(x), most), torch.inf, device=device)
    found = torch.zeros(len(x), most, dtype=torch.int64, device=device)
    size = max(1, _BLOCK_VALUES // block)
    for start in range(0, len(training), block):
        y = torch.from_numpy(np.array(training[start : start + block], dtype=np.float32)).to(device) - centre
        squares = y.square().sum(dim=1)
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            # The square of the row is left out: it is the same for all training rows.
            scores = torch.addmm(squares, x[part], y.T, alpha=-2)
            near, at = scores.topk(min(most, len(y)), largest=False)
            joined, order = torch.cat((best[part], near), dim=1).topk(most, largest=False)
            found[part] = torch.cat((found[part], at + start), dim=1).gather(1, order)
            best[part] = joined
    rows = found.cpu().numpy()
    distances = np.empty(len(x))
    for row, candidates in enumerate(rows):
        difference = np.asarray(training[np.sort(candidates)], np.float64) - np.asarray(values[row], np.float64)
        distances[row] = np.sqrt(np.square(difference).sum(axis=1).min())
    return distances


def judge_copies(samples: Floats, held_out: Floats, seed: int) -> dict[str, Metric]:
    """Compare the distances of samples to the nearest training image with those of held-out real images.

    A sample that is smoother than real images is close to many of them without being a copy. So `auc` above 0.5 means
    that samples are close to the training set, and `near_copies` far above 0.01 means that some are copies.

    Args:
        samples: distances of samples, (n,).
        held_out: distances of real images that were not trained on, (m,).
        seed: seed of the bootstrap.

    Returns:
        auc: probability that a sample is nearer to its nearest training image than a held-out image is to its own; 0.5
            if nothing is memorised, 1 if all samples are copies. The interval is DeLong's.
        distance_ratio: median distance of the samples divided by that of the held-out images; bootstrap interval.
        near_copies: share of samples that are nearer than 99% of the held-out images; about 0.01 if nothing is
            memorised. Bootstrap interval, over both sets.
    """
    n, m = len(samples), len(held_out)
    metrics = {"auc": _auc(samples, held_out)}
    value = _median_ratio(samples, held_out), _near_copies(samples, held_out)
    drawn = np.empty((_RESAMPLES, 2))
    for number in range(_RESAMPLES):
        source = np.random.default_rng([seed, number])
        a, b = samples[source.integers(0, n, n)], held_out[source.integers(0, m, m)]
        drawn[number] = _median_ratio(a, b), _near_copies(a, b)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    metrics["distance_ratio"] = Metric(value[0], (float(low[0]), float(high[0])), min(n, m))
    metrics["near_copies"] = Metric(value[1], (float(low[1]), float(high[1])), min(n, m))
    return metrics


def _median_ratio(samples: Floats, held_out: Floats) -> float:
    typical = float(np.median(held_out))
    return float(np.median(samples)) / typical if typical else float("nan")


def _near_copies(samples: Floats, held_out: Floats) -> float:
    return float((samples < np.quantile(held_out, 0.01)).mean())


def _auc(samples: Floats, held_out: Floats) -> Metric:
    """Return the probability that a sample's distance is the smaller one (ties count half), with its interval."""
    n, m = len(samples), len(held_out)

    def shares(of: Floats, among: Floats) -> Floats:
        """Return the share of `among` that is larger than each value of `of`; ties count half."""
        ordered = np.sort(among)
        above = len(ordered) - np.searchsorted(ordered, of, side="right")
        reached = len(ordered) - np.searchsorted(ordered, of, side="left")
        return (above + reached) / (2.0 * len(ordered))

    larger, smaller = shares(samples, held_out), 1 - shares(held_out, samples)
    value = float(larger.mean())
    if value in (0.0, 1.0):
        return _always(value, min(n, m))
    half = Z95 * float(np.sqrt(larger.var(ddof=1) / n + smaller.var(ddof=1) / m))
    return Metric(value, (max(0.0, value - half), min(1.0, value + half)), min(n, m))
