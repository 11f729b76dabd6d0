"""How near generated images are to real ones, how varied they are, and whether they are copies; in a feature space.

All of it is by distances between rows of features, exact, block by block in bounded memory:

- `compare`: precision and recall (Kynkäänniemi et al. 2019, k = 3), density and coverage (Naeem et al. 2020, k = 5),
  the mean distance of two samples (small after a collapse), the Fréchet distance of the two sets.
- `judge_copies`: whether samples are nearer to training images than other real images are.

Intervals of `compare` are by a delete-a-group jackknife. Both sets are cut into 20 groups, the metric is computed 20
times without group g of both, and the interval is 2.09 standard errors (Student's t, 19 degrees of freedom) to both
sides. Unlike the bootstrap it never repeats an image, which would be a neighbour at distance 0 and ruin what goes by
neighbours; the variance that it gives is on average no smaller than the true one (Efron and Stein 1981). Like the
metrics themselves, which have a bias that depends on n, it is for sets of one size: compare scores of equal n only.
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
"""Fewer than that on a side, a Fréchet distance tells more of their number than of the images."""

_T95 = 2.093  # of Student's t with GROUPS - 1 degrees of freedom
_BLOCK_VALUES = 1 << 24  # distances in memory at once
_SAME = 1e-13  # a squared distance below this share of the squared lengths is rounding, and the rows are the same
_CANDIDATES = 4  # training images whose distances are computed exactly, of those that are nearest up to rounding
_RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A number with its 95% interval, and how many images of each side it is of."""

    value: float
    ci95: tuple[float, float]
    n: int


class Rows:
    """A set of feature rows in float64 on a device, cut into groups of about equal size.

    Args:
        values: (n, d), at least 2 * `GROUPS` and so many that a group can be left out.
        device: where to compute.
        centre: taken off all rows, so that distances are of small numbers; the same for all sets compared.
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
        """Yield the squared distances to all rows of another set, (block, n), with the block's group and rows."""
        size = max(1, _BLOCK_VALUES // other.count)
        for number, group in enumerate(self.groups):
            for start in range(group.start, group.stop, size):
                rows = slice(start, min(start + size, group.stop))
                lengths = self.squares[rows, None] + other.squares
                squared = torch.addmm(lengths, self.x[rows], other.x.T, alpha=-2)
                yield number, rows, squared.masked_fill_(squared < _SAME * lengths, 0.0)


@dataclass(frozen=True)
class Neighbourhoods:
    """What a set's distances to itself give.

    Attributes:
        radii: for each k asked for, the squared distance of each row to its k-th nearest other row: row g of shape
            (GROUPS + 1, n) without the rows of group g, the last one with all.
        distances: mean distance of two rows, without group g and, last, of all, (GROUPS + 1,).
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
        # The nearest of each group suffice for the nearest of any union of groups.
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
    """Return how the balls around some rows and the rows of another set lie to each other.

    Args:
        centres: of the balls.
        radii: their squared radii, as in `Neighbourhoods`.
        points: the other set.

    Returns:
        The share of points that lie in some ball, the number of balls that a point lies in on average, and the share
        of balls that hold some point; each without group g of both sets and, last, of all, (GROUPS + 1,).
    """
    balls = radii.clone()
    for left_out, group in enumerate(centres.groups):
        balls[left_out, group] = -1.0  # holds nothing
    inside, hits = np.zeros(GROUPS + 1), np.zeros(GROUPS + 1)
    nearest = radii.new_full((GROUPS, centres.count), torch.inf)  # point of each group to each centre
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
    """Yield mean (d,) and covariance (d, d) without each group and, last, of all rows."""
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
    """Return the symmetric root of a covariance; eigenvalues below 0, which are rounding, count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def frechet_distance(mean: Tensor, root: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """Return the squared Fréchet distance of two normal distributions (Heusel et al. 2017), all in float64.

    The trace of the root of the product of the covariances A and B is that of the root of A^½ B A^½, which is symmetric
    and has no negative eigenvalues but by rounding: nothing is inverted, and singular covariances do no harm.

    Args:
        mean: of the one, (d,).
        root: `root_of` its covariance, (d, d).
        other_mean: of the other.
        other_covariance: of the other.
    """
    inner = root @ other_covariance @ root
    trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    variances = root.square().sum() + other_covariance.trace()
    return max(0.0, float((mean - other_mean).square().sum() + variances - 2 * trace))


def jackknife(values: Floats, n: int, lowest: float = 0.0, highest: float = np.inf) -> Metric:
    """Return a metric with its interval from its values without each group and, last, of all images.

    A share of 0 or 1, which varies with no group, gets the interval of such a share of n independent images.
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
    """Real images that samples are compared to.

    Args:
        values: their features, (n, d), drawn at random from the data.
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
        """Return the Fréchet distance without each group of both sets and, last, of all, (GROUPS + 1,)."""
        both = zip(self._roots, _moments(samples), strict=True)
        return np.array([frechet_distance(*real, *generated) for real, generated in both])

    def compare(self, values: Array, frechet: bool = True) -> dict[str, Metric]:
        """Compare samples to the real images.

        Args:
            values: features of the samples, (n, d).
            frechet: whether to compute the Fréchet distance.

        Returns:
            precision: share of samples within the 3rd nearest neighbour's distance of some real image (they look real).
            recall: share of real images within that of some sample (nothing is missing).
            density: how many of the balls that reach real images' 5th neighbours hold a sample, over 5 (about 1 for
                real images; unlike precision not fooled by one outlier).
            coverage: share of these balls that hold any sample (unlike recall not fooled by samples' outliers).
            sample_distance: mean distance of two samples.
            distance_ratio: that over the same of real images; far below 1 after a collapse.
            frechet_distance: of the normal distributions with the sets' means and covariances; 0 at best.
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

    The training rows are read in blocks, and may be a map of a file. Which four are nearest is by products in float32;
    their distances, and which is least, by differences in float64.

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
            # The square of the row itself is the same for all.
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
    """Compare samples' distances to the nearest training image with those of real images that were not trained on.

    A sample that is smoother than real images is near to many of them without being a copy: `auc` above a half says
    that samples keep close to the training set, `near_copies` far above 0.01 that some are copies.

    Args:
        samples: distances of samples, (n,).
        held_out: those of real images that were not trained on, (m,).
        seed: of the bootstrap.

    Returns:
        auc: probability that a sample is nearer to its training image than a held-out image to its; 0.5 if nothing is
            memorised, 1 if all samples are copies. The interval is DeLong's.
        distance_ratio: median distance of the samples over that of the held-out images; bootstrap interval.
        near_copies: share of samples that are nearer than all but a hundredth of the held-out images; about 0.01 if
            nothing is memorised. The bootstrap is over both sets.
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
    """Return the probability that a sample's distance is the smaller one (half for equal ones), with its interval."""
    n, m = len(samples), len(held_out)

    def shares(of: Floats, among: Floats) -> Floats:
        """Share of `among` that is larger than each of `of`, equal ones counted half."""
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
