"""Linear L2-SVMs on features kept once: one-vs-rest, squared hinge, the problem that liblinear solves (section 5).

For each class, with y = +1 for its samples and -1 for all others and x a sample's features followed by a 1::

    minimise over w:   P(w) = |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2

so that the intercept is regularised, as scikit-learn's ``LinearSVC`` has it. The method is Newton's: P is quadratic
between the kinks, its Hessian I + 2C X_A' X_A over the set A of samples inside the margin, so each step is solved by
conjugate gradients and followed by an exact line search (Keerthi and DeCoste 2005). All classes go side by side: what
costs is reading the samples, and a product with ten vectors reads them once. A path over C starts each fit from the
one before.

Only the products with the samples depend on where w lives, and there the shape decides:

- many samples: w is a vector of weights; a product is one pass over the rows, a block at a time (`_Rows`). The Hessian
  of a few samples drawn from them is the preconditioner, which saves most of the passes where features are correlated.
- few samples: w is a sum of samples, so its coefficients and the Gram matrix are enough (Chapelle 2007). The matrix
  is one large product; from there on each iteration reads n^2 values instead of 2nd (`_Gram`).

A fit ends by its certified duality gap: with a = 2C max(0, 1 - yf) as dual variables, the dual's value at the best
multiple of a bounds the minimum from below. Products are in float32, all else in float64; where rounding keeps a fit
from its tolerance, it goes on with products in float64.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.errors import ConfigError, DataError

Features = Tensor | npt.NDArray[Any]
"""Samples by features: a tensor, an array or a memory map, of float16, bfloat16, float32 or float64."""

Report = Callable[[float, float], None]
"""What is told of a fit: C, and the largest relative duality gap so far."""

# The Gram matrix of so many samples fills 1 GiB; beyond, its n^2 d operations cost more than they save.
LARGEST_GRAM = 16384
NEWTON_STEPS = 100
# A Newton step needs no more than a tenth of the gradient removed far from the minimum (Keerthi and DeCoste 2005).
FORCING = 0.1
CG_STEPS = 500
LINE_STEPS = 40
# Samples that stand for all in the preconditioner: at most so many, and so small a share of samples and of features,
# that their own products cost little.
STANDING = 2048
STANDING_SHARE = 1 / 8
# Bytes of float32 in a block. On a CPU, the second product with a block finds it in the cache; elsewhere it is large
# enough for fast products, and small enough to add little to the memory in use.
CPU_BLOCK_BYTES = 8 << 20
BLOCK_BYTES = 2 << 30
# Blocks whose sum is still exact enough in float32: the sums of so many are added up in float64.
ADDED_BLOCKS = 8
# Samples on a side of the tiles that the Gram matrix is computed in.
GRAM_ROWS = 256


@dataclass(frozen=True)
class LinearSVM:
    """One-vs-rest linear classifiers.

    Attributes:
        weights: (classes, features), float32, on the CPU.
        intercepts: (classes,), float32.
        c: weight of the losses.
        objective: per class, the value of P (see the module) for these weights on the samples they were fitted to.
        iterations: products with the samples that the fit took, each for all classes at once.
        gap: largest relative duality gap among the classes: how far, at most, `objective` is above the minimum.
    """

    weights: Tensor
    intercepts: Tensor
    c: float
    objective: tuple[float, ...]
    iterations: int
    gap: float

    def decide(self, x: Features) -> Tensor:
        """Return the scores, (n, classes), float32, of samples (n, features)."""
        samples = _Samples(x, self.weights.device)
        if samples.width != self.weights.shape[1]:
            raise DataError(f"{samples.width} features a sample, but the SVM was fitted to {self.weights.shape[1]}")
        blocks = [block @ self.weights.T + self.intercepts for _, block in samples.blocks()]
        return torch.cat(blocks) if blocks else torch.zeros(0, len(self.weights))

    def predict(self, x: Features) -> Tensor:
        """Return the class, (n,), int64, with the highest score of each sample (n, features)."""
        return self.decide(x).argmax(dim=1)


def fit_path(
    x: Features,
    y: Tensor | npt.NDArray[np.integer[Any]],
    cs: Sequence[float],
    *,
    classes: int,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    gram: Tensor | None = None,
    report: Report | None = None,
) -> list[LinearSVM]:
    """Fit one SVM for each C; each starts from the one before, so that rising values are the quickest.

    Args:
        x: samples, (n, features). A memory map is read in blocks; what the device holds is kept as it is stored.
        y: their classes, (n,), 0 to `classes` - 1.
        cs: values of C, the weight of the losses against |w|^2 / 2.
        classes: how many there are. With two, the second classifier is the negative of the first.
        tolerance: relative duality gap at which a fit ends: the objective is within this of the smallest possible.
        device: where to compute; the tensor's own, or the CPU, if None.
        gram: what `gram_of` gave for the same samples, whose labels may have been others.
        report: told before each Newton step of the C that is fitted for and the largest relative duality gap.

    Raises:
        DataError: features that are not finite, samples without labels, labels out of range or of one class.
        ConfigError: a C or a tolerance that is no positive number.
    """
    fits = fit_draws(x, y, [None], cs, classes=classes, tolerance=tolerance, device=device, gram=gram, report=report)
    return next(fits)


def gram_of(x: Features, device: torch.device | str | None = None) -> Tensor | None:
    """Return what a fit to these samples, (n, features), begins with whatever their labels; None where it is nothing.

    Raises:
        DataError: features that are not finite.
    """
    samples = _Samples(x, _place(x, device))
    if not samples.are_few:
        return None
    samples.check()
    return samples.gram()


def _place(x: Features, device: torch.device | str | None) -> torch.device:
    return torch.device(device) if device is not None else x.device if isinstance(x, Tensor) else torch.device("cpu")


def fit_draws(
    x: Features,
    y: Tensor | npt.NDArray[np.integer[Any]],
    draws: Sequence[Tensor | None],
    cs: Sequence[float],
    *,
    classes: int,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    gram: Tensor | None = None,
    report: Report | None = None,
) -> Iterator[list[LinearSVM]]:
    """Fit a path over C to each of several subsets of the same samples, as `fit_path` would.

    Where the subsets together need more of the Gram matrix than all samples have, it is computed once for all.

    Args:
        x: samples, (n, features).
        y: their classes, (n,).
        draws: numbers of the samples of each subset, (m,), int64; None for all samples.
        cs: see `fit_path`, as for the rest and the errors.
        classes: see `fit_path`.
        tolerance: see `fit_path`.
        device: see `fit_path`.
        gram: see `fit_path`.
        report: see `fit_path`.
    """
    if not cs or not all(0 < c < float("inf") for c in cs):
        raise ConfigError(f"C is {list(cs)!r}: give one or more positive numbers")
    cs = [float(c) for c in cs]  # a tensor made of whole numbers could not hold a step
    if not 0 < tolerance < 1:
        raise ConfigError(f"the SVM's tolerance is {tolerance!r}: take a number between 0 and 1, such as 1e-4")
    place = _place(x, device)
    samples = _Samples(x, place)
    labels = _checked_labels(y, samples.count, classes).to(place)
    sizes = [samples.count if draw is None else len(draw) for draw in draws]
    shared = gram
    if (
        shared is None
        and len(draws) > 1
        and samples.count <= LARGEST_GRAM
        and sum(size**2 for size in sizes) >= samples.count**2
    ):
        samples.check()
        shared = samples.gram()
    for draw in draws:
        rows = None if draw is None else torch.as_tensor(draw, device=place)
        part = samples if rows is None else samples.take(rows)
        of_part = shared if rows is None or shared is None else shared[rows][:, rows]
        if of_part is None:
            part.check()
        yield _fit(part, labels if rows is None else labels[rows], cs, classes, tolerance, of_part, report)


def _checked_labels(y: Tensor | npt.NDArray[np.integer[Any]], count: int, classes: int) -> Tensor:
    """Return the labels as int64."""
    labels = torch.as_tensor(y)
    if labels.shape != (count,) or labels.is_floating_point():
        raise DataError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype}: give {count} whole numbers")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise DataError(f"the label of sample {number} is {int(labels[number])}: classes are 0 to {classes - 1}")
    return labels.long()


class _Samples:
    """The samples as they are stored, given out as blocks of rows in the type of the products."""

    def __init__(self, x: Features, device: torch.device) -> None:
        if x.ndim != 2 or (x.dtype.kind != "f" if isinstance(x, np.ndarray) else not x.is_floating_point()):
            raise DataError(f"features of shape {tuple(x.shape)} and type {x.dtype}: give floats, (samples, features)")
        self.device = device
        self.count, self.width = int(x.shape[0]), int(x.shape[1])
        if isinstance(x, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that the memory cannot be written: nothing writes
                x = torch.from_numpy(x)
        if device.type == "cuda" and x.device != device:
            free, _ = torch.cuda.mem_get_info(device)
            if x.numel() * 4 < free // 2:  # kept in the type of the products, which then read it as it is
                x = x.to(device).float()
            elif x.numel() * x.element_size() < free // 2:
                x = x.to(device)
        self._stored = x

    @property
    def are_few(self) -> bool:
        """Whether the Gram matrix of the samples is smaller than they are, and fits."""
        return self.count <= min(self.width, LARGEST_GRAM)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return a copy of the samples of these numbers, as they are stored."""
        return self._stored[numbers.to(self._stored.device)].to(self.device)

    def take(self, numbers: Tensor) -> _Samples:
        """Return the samples of these numbers, copied."""
        return _Samples(self._stored[numbers.to(self._stored.device)], self.device)

    def blocks(self, dtype: torch.dtype = torch.float32, size: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Give blocks, (rows, width), with their places among the samples; each holds until the next is asked for."""
        if not size:
            most = CPU_BLOCK_BYTES if self.device.type == "cpu" else BLOCK_BYTES
            size = max(1, most // (4 * max(1, self.width)))
        if self._stored.dtype == dtype and self._stored.device == self.device:
            for start in range(0, self.count, size):
                place = slice(start, min(start + size, self.count))
                yield place, self._stored[place]
            return
        room = torch.empty(min(size, self.count), self.width, dtype=dtype, device=self.device)
        for start in range(0, self.count, size):
            place = slice(start, min(start + size, self.count))
            block = room[: place.stop - place.start]
            block.copy_(self._stored[place])
            yield place, block

    def check(self) -> None:
        """Raise DataError at a value that is not finite."""
        for place, block in self.blocks():
            if not torch.isfinite(block.sum()):  # one pass where all is well; a sum may also be too large
                bad = (~torch.isfinite(block)).nonzero()
                if len(bad):
                    row, column = bad[0].tolist()
                    value = float(block[row, column])
                    raise DataError(f"feature {column} of sample {place.start + row} is {value}: all must be finite")

    def square_norm(self) -> float:
        """Return the mean of |x|^2, with the 1 appended, of the first samples."""
        _, block = next(self.blocks(size=256))
        return float(block.double().square().sum(dim=1).mean()) + 1

    def gram(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the products of all pairs of samples with a 1 appended, (count, count)."""
        matrix = torch.empty(self.count, self.count, dtype=dtype, device=self.device)
        size = GRAM_ROWS if self.device.type == "cpu" else 16 * GRAM_ROWS
        for place, block in self.blocks(dtype, size):
            torch.mm(block, block.T, out=matrix[place, place])
            for start in range(0, place.start, size):  # the matrix is symmetric: half of the products are enough
                others = slice(start, start + size)
                torch.mm(block, self._stored[others].to(self.device, dtype).T, out=matrix[place, others])
                matrix[others, place] = matrix[place, others].T
        return matrix.add_(1.0)


class _Space(ABC):
    """Where the vectors w of the classes live: tensors of float64 whose last dimension but one counts the classes.

    Attributes:
        precise: whether products are in float64.
    """

    precise: bool

    @abstractmethod
    def zeros(self, classes: int) -> Tensor:
        """Return vectors of zeros."""

    @abstractmethod
    def push_pull(self, v: Tensor, reply: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scores of the samples, (classes, n), and the sum of the samples weighted by a reply to them.

        `reply` gets scores, (classes, m), and the place of their m samples, and returns weights of the same shape.
        """

    @abstractmethod
    def inner(self, v: Tensor, u: Tensor) -> Tensor:
        """Return the inner product of each class's vectors, (classes,)."""

    @abstractmethod
    def restate(self, v: Tensor) -> Tensor:
        """Return the same vectors without the rounding that their updates left."""

    @abstractmethod
    def duals(self, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return dual variables a >= 0, (classes, n), that v tells for signs y, and X'ya; None where it tells none."""

    def preconditioner(self, active: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a rough inverse of I + X' diag(active) X for each class, `active` >= 0 being (classes, n)."""
        return lambda v: v

    @abstractmethod
    def weights(self, v: Tensor) -> Tensor:
        """Return the vectors as weights of the features and of the 1 that follows them, (classes, width + 1)."""


class _Rows(_Space):
    """Vectors are weights, (classes, width + 1)."""

    def __init__(self, samples: _Samples, dtype: torch.dtype = torch.float32) -> None:
        self.samples, self.dtype = samples, dtype
        self.precise = dtype == torch.float64

    def zeros(self, classes: int) -> Tensor:
        return torch.zeros(classes, self.samples.width + 1, dtype=torch.float64, device=self.samples.device)

    def push_pull(self, v: Tensor, reply: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        narrow, intercepts = v[:, :-1].to(self.dtype), v[:, -1:]
        scores = torch.empty(len(v), self.samples.count, dtype=torch.float64, device=v.device)
        pulled, part = torch.zeros_like(v), torch.zeros_like(narrow)
        for number, (place, block) in enumerate(self.samples.blocks(self.dtype), 1):
            scores[:, place] = (narrow @ block.T).double() + intercepts
            weights = reply(scores[:, place], place)
            part.addmm_(weights.to(self.dtype), block)
            pulled[:, -1] += weights.sum(dim=1)
            if number % ADDED_BLOCKS == 0:
                pulled[:, :-1] += part
                part.zero_()
        pulled[:, :-1] += part
        return scores, pulled

    def inner(self, v: Tensor, u: Tensor) -> Tensor:
        return (v * u).sum(dim=1)

    def restate(self, v: Tensor) -> Tensor:
        return v

    def duals(self, v: Tensor, y: Tensor) -> None:
        return None

    def preconditioner(self, active: Tensor) -> Callable[[Tensor], Tensor]:
        """See `_Space`; the same of a few samples, each standing for many, inverted by Woodbury's identity.

        A few samples overrate the directions that they happen to span. The middle eigenvalue of their products tells by
        how much; all directions are taken to be at least as steep, so that only those far steeper make a difference.
        """
        rows, x, gram, middle = self._standing
        weights = active[:, rows] * (self.samples.count / len(rows))
        floor = (1 + weights.mean(dim=1) * middle)[:, None]
        roots = (weights / floor).sqrt()
        inner = roots[:, :, None] * gram * roots[:, None, :]
        inner.diagonal(dim1=1, dim2=2).add_(1.0)
        factor = torch.linalg.cholesky(inner)

        def apply(v: Tensor) -> Tensor:
            scores = (roots * (v @ x.T))[:, :, None]
            solved = torch.linalg.solve_triangular(factor, scores, upper=False)
            solved = torch.linalg.solve_triangular(factor.mT, solved, upper=True)[:, :, 0]
            nearer: Tensor = (v - (roots * solved) @ x) / floor
            return nearer

        return apply

    @cached_property
    def _standing(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Numbers, (m,), of the samples that stand for all; those with the 1 appended, float64, (m, width + 1).

        Then their products, (m, m), and the middle eigenvalue of these.
        """
        samples = self.samples
        count = max(1, min(STANDING, int(STANDING_SHARE * min(samples.count, samples.width))))
        order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(0))
        rows = order[:count].sort().values.to(samples.device)
        part = samples.rows(rows).double()
        x = torch.cat((part, part.new_ones(count, 1)), dim=1)
        gram = x @ x.T
        values = torch.linalg.eigvalsh(gram)
        # Of fewer different samples than that, the middle one is 0, and rounding would decide.
        return rows, x, gram, float(values[count // 2].maximum(1e-10 * values[-1]))

    def weights(self, v: Tensor) -> Tensor:
        return v


class _Gram(_Space):
    """Vectors are sums of samples: their coefficients, and their scores on all samples, (2, classes, n)."""

    def __init__(self, samples: _Samples, gram: Tensor) -> None:
        self.samples, self.gram = samples, gram
        self.precise = gram.dtype == torch.float64

    def zeros(self, classes: int) -> Tensor:
        return torch.zeros(2, classes, self.samples.count, dtype=torch.float64, device=self.samples.device)

    def push_pull(self, v: Tensor, reply: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        weights = reply(v[1], slice(0, self.samples.count))
        return v[1], self._sums(weights)

    def _sums(self, weights: Tensor) -> Tensor:
        """Return the sums of the samples with these weights, (classes, n)."""
        return torch.stack((weights, (weights.to(self.gram.dtype) @ self.gram).double()))

    def inner(self, v: Tensor, u: Tensor) -> Tensor:
        return (v[0] * u[1]).sum(dim=1)

    def restate(self, v: Tensor) -> Tensor:
        return self._sums(v[0])

    def duals(self, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        duals = (y * v[0]).clamp_min(0)  # at the minimum, the coefficients are ya
        return duals, self._sums(y * duals)

    def weights(self, v: Tensor) -> Tensor:
        total = torch.zeros(v.shape[1], self.samples.width + 1, dtype=torch.float64, device=v.device)
        for place, block in self.samples.blocks(torch.float32):
            total[:, :-1] += v[0][:, place].float() @ block
        total[:, -1] = v[0].sum(dim=1)
        return total


def _fit(
    samples: _Samples,
    labels: Tensor,
    cs: Sequence[float],
    classes: int,
    tolerance: float,
    gram: Tensor | None,
    report: Report | None,
) -> list[LinearSVM]:
    """Fit the path to all of these samples."""
    present = labels.unique()
    if len(present) < 2:
        found = f"all are of class {int(present[0])}" if len(present) else "there are none"
        raise DataError(f"{samples.count} labels, {found}: an SVM needs samples of at least two classes")
    few = gram is not None or samples.are_few
    # Of two classes one is the negative of the other.
    signs = torch.stack([2.0 * (labels == label) - 1.0 for label in range(classes if classes > 2 else 1)]).double()
    space: _Space = _Gram(samples, samples.gram() if gram is None else gram) if few else _Rows(samples)
    w = space.zeros(len(signs))
    fits = []
    # Far above 1 / |x|^2, Newton's method from zero meets kink after kink: there C is raised in steps.
    reached = 10 / samples.square_norm()
    for c in cs:
        products = 0
        while reached * 10 < c:
            reached *= 10
            w, _, more = _minimise(space, signs, reached, w, max(tolerance, 1e-2), report)
            products += more
        reached = c
        w, gap, more = _minimise(space, signs, c, w, tolerance, report)
        products += more
        if gap > tolerance and not space.precise:
            space = _Gram(samples, samples.gram(torch.float64)) if few else _Rows(samples, torch.float64)
            w, gap, more = _minimise(space, signs, c, w, tolerance, report)
            products += more
        if gap > tolerance:
            short = f"its objective is within {gap:.1e} of the smallest, not {tolerance:.1e}"
            warnings.warn(f"the SVM at C = {c:g} did not converge: {short}", stacklevel=3)
        fits.append((space.weights(w).float(), gap, products))
    objectives = _objectives(samples, signs, cs, torch.stack([weights for weights, _, _ in fits]))
    svms = []
    for c, objective, (weights, gap, products) in zip(cs, objectives.tolist(), fits, strict=True):
        if classes == 2:
            weights, objective = torch.cat((weights, -weights)), objective * 2  # noqa: PLW2901
        vectors, intercepts = weights.cpu().split([samples.width, 1], dim=1)
        svms.append(LinearSVM(vectors.contiguous(), intercepts.flatten(), c, tuple(objective), products, gap))
    return svms


def _objectives(samples: _Samples, signs: Tensor, cs: Sequence[float], weights: Tensor) -> Tensor:
    """Return P, (len(cs), classes), for float32 weights (len(cs), classes, width + 1): one pass over the samples."""
    each = torch.tensor(cs, dtype=torch.float64, device=signs.device)[:, None]
    total = weights.double().square().sum(dim=2) / 2
    flat = weights.flatten(0, 1)
    for place, block in samples.blocks():
        scores = (flat[:, :-1] @ block.T + flat[:, -1:]).double().unflatten(0, weights.shape[:2])
        total += each * (1 - signs[:, place] * scores).clamp_min(0).square().sum(dim=2)
    return total


def _minimise(
    space: _Space, signs: Tensor, c: float, w: Tensor, tolerance: float, report: Report | None
) -> tuple[Tensor, float, int]:
    """Minimise P for all classes from `w` on; return the vectors, the largest relative gap, and the products taken."""
    w = space.restate(w).clone()
    left = torch.arange(len(signs), device=signs.device)  # classes that have not converged
    gaps, objectives = torch.full((2, len(signs)), float("inf"), dtype=torch.float64, device=signs.device)
    products = 1
    for _ in range(NEWTON_STEPS):
        y, here = signs[left], w[..., left, :]

        def pulls(scores: Tensor, place: slice, y: Tensor = y) -> Tensor:
            return 2 * c * y[:, place] * (1 - y[:, place] * scores).clamp_min(0)

        scores, pulled = space.push_pull(here, pulls)
        products += 1
        slack = (1 - y * scores).clamp_min(0)
        objective = space.inner(here, here) / 2 + c * slack.square().sum(dim=1)
        bound = _dual(space, c, 2 * c * slack, pulled)
        told = space.duals(here, y)
        if told is not None:
            bound = bound.maximum(_dual(space, c, *told))
            products += 1
        gap = 1 - bound / objective
        # Where rounding keeps a step from making the objective smaller, more steps are of no use.
        going = (gap > tolerance) & (objective < objectives[left])
        gaps[left], objectives[left] = gap, objective
        if report is not None:
            report(c, float(gaps.max()))
        if not going.any():
            break
        left, y, here = left[going], y[going], here[..., going, :]
        active = 2 * c * (slack[going] > 0)
        step, step_scores, used = _newton_direction(space, here - pulled[..., going, :], active)
        products += used
        length = _line_search(space, c, y, here, scores[going], step, step_scores)
        w[..., left, :] = here + length[:, None] * step
    return w, float(gaps.max()), products


def _dual(space: _Space, c: float, duals: Tensor, pulled: Tensor) -> Tensor:
    """Return a lower bound of min P, (classes,), from dual variables a >= 0, (classes, n), and X'ya.

    The dual's value at s a is s sum(a) - s^2 (|X'ya|^2 + |a|^2 / 2C) / 2; this is the largest over s.
    """
    curve = space.inner(pulled, pulled) + duals.square().sum(dim=1) / (2 * c)
    bound = duals.sum(dim=1).square() / (2 * curve)
    return torch.where(curve > 0, bound, 0.0)


def _newton_direction(space: _Space, gradient: Tensor, active: Tensor) -> tuple[Tensor, Tensor, int]:
    """Solve (I + X' diag(active) X) step = -gradient by preconditioned conjugate gradients.

    Returns:
        The step, its scores on the samples, and the number of products taken.
    """
    precondition = space.preconditioner(active)
    residual = -gradient
    step, step_scores = torch.zeros_like(residual), torch.zeros_like(active)
    size = space.inner(residual, residual)
    enough = FORCING**2 * size
    nearer = precondition(residual)
    direction, slope = nearer, space.inner(residual, nearer)
    used = 0
    going = True
    while going and used < CG_STEPS:
        used += 1
        scores, pulled = space.push_pull(direction, lambda scores, place: active[:, place] * scores)
        curved = direction + pulled
        bend = space.inner(direction, curved)
        # Solved for some classes before others; by rounding, what is positive may come out negative at the very end.
        length = torch.where((size > enough) & (bend > 0), slope / bend, 0.0)
        step += length[:, None] * direction
        step_scores += length[:, None] * scores
        residual = residual - length[:, None] * curved
        size = space.inner(residual, residual)
        going = bool(((size > enough) & (length > 0)).any())
        nearer = precondition(residual)
        slope, before = space.inner(residual, nearer), slope
        direction = nearer + torch.where(length > 0, slope / before, 0.0)[:, None] * direction
    return step, step_scores, used


def _line_search(
    space: _Space, c: float, y: Tensor, w: Tensor, scores: Tensor, step: Tensor, step_scores: Tensor
) -> Tensor:
    """Return the length t >= 0, (classes,), that minimises P(w + t step).

    It is the root of the slope, which is piecewise linear and rising.
    """
    along, curve = space.inner(w, step), space.inner(step, step)
    low, high = torch.zeros_like(along), torch.full_like(along, float("inf"))
    t = torch.ones_like(along)
    for _ in range(LINE_STEPS):
        margins = 1 - y * (scores + t[:, None] * step_scores)
        inside = margins > 0
        slope = along + t * curve - 2 * c * (y * step_scores * margins * inside).sum(dim=1)
        bend = curve + 2 * c * (step_scores.square() * inside).sum(dim=1)
        low, high = torch.where(slope < 0, t, low), torch.where(slope < 0, high, t)
        # Newton's step, unless it leaves what is known to hold the root.
        after = t - slope / bend
        between = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        after = torch.where((after > low) & (after < high), after, between)
        if bool(((after - t).abs() <= 1e-6 * t).all()):
            break
        t = after
    return t
