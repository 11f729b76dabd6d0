"""Linear L2-SVMs: one-vs-rest, squared hinge loss, the same problem that liblinear solves (section 5).

For each class, with y = +1 for its samples and -1 for all others, and x the features of a sample followed by a 1::

    minimise over w:   P(w) = |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2

The intercept is regularised, as in scikit-learn's ``LinearSVC``. The method is Newton's: P is piecewise quadratic, with
the Hessian I + 2C X_A' X_A over the set A of samples inside the margin. Each Newton step is solved by conjugate
gradients and followed by an exact line search (Keerthi and DeCoste 2005). All classes are fitted together, because
reading the samples is what costs time, and a product with ten vectors reads them once. On a path over C, each fit
starts from the one before.

The vectors w are represented in one of two ways, depending on the shape of the data:

- many samples: w is a vector of weights; a product is one pass over the rows, block by block (`_Rows`). The Hessian of
  a random subsample is the preconditioner, which saves most of the passes if features are correlated.
- few samples: w is a sum of samples, so its coefficients and the Gram matrix suffice (Chapelle 2007). The matrix is one
  large product; after that each iteration reads n^2 values instead of 2nd (`_Gram`).

A fit ends by its certified duality gap: with a = 2C max(0, 1 - yf) as dual variables, the value of the dual at the best
multiple of a is a lower bound of the minimum. Products are in float32, everything else in float64. If rounding prevents
a fit from reaching its tolerance, it continues with products in float64.
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
"""Function that is called during a fit with C and the largest relative duality gap so far."""

# The Gram matrix of this many samples takes 1 GiB; for more, its n^2 d operations cost more than they save.
LARGEST_GRAM = 16384
NEWTON_STEPS = 100
# The linear system of a Newton step is solved to a tenth of the gradient's norm: far from the minimum, more precision
# does not save steps (Keerthi and DeCoste 2005).
FORCING = 0.1
CG_STEPS = 500
LINE_STEPS = 40
# Samples in the subsample of the preconditioner: at most this many, and at most this share of samples and of features,
# so that products with the subsample cost little.
SUBSAMPLE = 2048
SUBSAMPLE_SHARE = 1 / 8
# Bytes of float32 in a block. On a CPU, a block has to stay in the cache for the second product with it; elsewhere it
# is large enough for fast products, and small enough to add little to the memory in use.
CPU_BLOCK_BYTES = 8 << 20
BLOCK_BYTES = 2 << 30
# Sums over this many blocks are exact enough in float32; they are then added up in float64.
ADDED_BLOCKS = 8
# Samples on a side of the tiles in which the Gram matrix is computed.
GRAM_ROWS = 256


@dataclass(frozen=True)
class LinearSVM:
    """One-vs-rest linear classifiers.

    Attributes:
        weights: (classes, features), float32, on the CPU.
        intercepts: (classes,), float32.
        c: weight of the losses.
        objective: value of P (see the module) for each class, on the samples that the weights were fitted to.
        iterations: products with the samples that the fit took, each for all classes at once.
        gap: largest relative duality gap among the classes: `objective` is at most that far above the minimum.
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
            raise DataError(
                f"{samples.width} features for each sample, but the SVM was fitted to {self.weights.shape[1]}"
            )
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
    """Fit one SVM for each C. Each fit starts from the one before, so increasing values are the fastest.

    Args:
        x: samples, (n, features). A memory map is read in blocks; a tensor on the device is used without a copy.
        y: classes of the samples, (n,), 0 to `classes` - 1.
        cs: values of C, the weight of the losses relative to |w|^2 / 2.
        classes: number of classes. With two, the second classifier is the negative of the first.
        tolerance: relative duality gap at which a fit ends: the objective is within this of the smallest possible.
        device: where to compute; if None, the tensor's device or the CPU.
        gram: the result of `gram_of` for the same samples; it does not depend on labels.
        report: called before each Newton step with C and the largest relative duality gap.

    Raises:
        DataError: a feature is not finite, the number of labels is wrong, or labels are out of range or of one class.
        ConfigError: a C or the tolerance is not a positive number.
    """
    fits = fit_draws(x, y, [None], cs, classes=classes, tolerance=tolerance, device=device, gram=gram, report=report)
    return next(fits)


def gram_of(x: Features, device: torch.device | str | None = None) -> Tensor | None:
    """Return the Gram matrix of samples (n, features), which all fits to them share; None if a fit does not use it.

    Raises:
        DataError: a feature is not finite.
    """
    samples = _Samples(x, _device_of(x, device))
    if not samples.are_few:
        return None
    samples.check()
    return samples.gram()


def _device_of(x: Features, device: torch.device | str | None) -> torch.device:
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
    """Fit a path over C, like `fit_path`, to each of several subsets of the same samples.

    If the Gram matrices of the subsets together are larger than that of all samples, the latter is computed once and
    shared.

    Args:
        x: samples, (n, features).
        y: classes of the samples, (n,).
        draws: indices of the samples of each subset, (m,), int64; None for all samples.
        cs: see `fit_path`, also for the errors.
        classes: see `fit_path`.
        tolerance: see `fit_path`.
        device: see `fit_path`.
        gram: see `fit_path`.
        report: see `fit_path`.
    """
    if not cs or not all(0 < c < float("inf") for c in cs):
        raise ConfigError(f"C is {list(cs)!r}: give one or more positive numbers")
    cs = [float(c) for c in cs]  # integers would become an integer tensor, which cannot hold a step
    if not 0 < tolerance < 1:
        raise ConfigError(f"the SVM's tolerance is {tolerance!r}: take a number between 0 and 1, such as 1e-4")
    where = _device_of(x, device)
    samples = _Samples(x, where)
    labels = _checked_labels(y, samples.count, classes).to(where)
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
        rows = None if draw is None else torch.as_tensor(draw, device=where)
        part = samples if rows is None else samples.take(rows)
        of_part = shared if rows is None or shared is None else shared[rows][:, rows]
        if of_part is None:
            part.check()
        yield _fit(part, labels if rows is None else labels[rows], cs, classes, tolerance, of_part, report)


def _checked_labels(y: Tensor | npt.NDArray[np.integer[Any]], count: int, classes: int) -> Tensor:
    labels = torch.as_tensor(y)
    if labels.shape != (count,) or labels.is_floating_point():
        raise DataError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype}: give {count} whole numbers")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise DataError(f"the label of sample {number} is {int(labels[number])}: classes are 0 to {classes - 1}")
    return labels.long()


class _Samples:
    """The samples as they are stored; `blocks` reads them in the dtype of the products."""

    def __init__(self, x: Features, device: torch.device) -> None:
        if x.ndim != 2 or (x.dtype.kind != "f" if isinstance(x, np.ndarray) else not x.is_floating_point()):
            raise DataError(f"features of shape {tuple(x.shape)} and type {x.dtype}: give floats, (samples, features)")
        self.device = device
        self.count, self.width = int(x.shape[0]), int(x.shape[1])
        if isinstance(x, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about read-only memory: nothing writes to it
                x = torch.from_numpy(x)
        if device.type == "cuda" and x.device != device:
            free, _ = torch.cuda.mem_get_info(device)
            if x.numel() * 4 < free // 2:  # kept in the dtype of the products, so that no block is converted again
                x = x.to(device).float()
            elif x.numel() * x.element_size() < free // 2:
                x = x.to(device)
        self._stored = x

    @property
    def are_few(self) -> bool:
        """Whether the Gram matrix is smaller than the samples, and small enough to compute."""
        return self.count <= min(self.width, LARGEST_GRAM)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return a copy of the samples with these indices, in the dtype in which they are stored."""
        return self._stored[numbers.to(self._stored.device)].to(self.device)

    def take(self, numbers: Tensor) -> _Samples:
        """Return a copy of the samples with these indices."""
        return _Samples(self._stored[numbers.to(self._stored.device)], self.device)

    def blocks(self, dtype: torch.dtype = torch.float32, size: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks, (rows, width), with their slices; a block is only valid until the next one is requested."""
        if not size:
            most = CPU_BLOCK_BYTES if self.device.type == "cpu" else BLOCK_BYTES
            size = max(1, most // (4 * max(1, self.width)))
        if self._stored.dtype == dtype and self._stored.device == self.device:
            for start in range(0, self.count, size):
                part = slice(start, min(start + size, self.count))
                yield part, self._stored[part]
            return
        buffer = torch.empty(min(size, self.count), self.width, dtype=dtype, device=self.device)
        for start in range(0, self.count, size):
            part = slice(start, min(start + size, self.count))
            block = buffer[: part.stop - part.start]
            block.copy_(self._stored[part])
            yield part, block

    def check(self) -> None:
        """Raise DataError if a value is not finite."""
        for part, block in self.blocks():
            if not torch.isfinite(block.sum()):  # a fast first test: the sum may also overflow
                bad = (~torch.isfinite(block)).nonzero()
                if len(bad):
                    row, column = bad[0].tolist()
                    value = float(block[row, column])
                    raise DataError(f"feature {column} of sample {part.start + row} is {value}: all must be finite")

    def square_norm(self) -> float:
        """Return the mean of |x|^2 over the first samples, with the appended 1."""
        _, block = next(self.blocks(size=256))
        return float(block.double().square().sum(dim=1).mean()) + 1

    def gram(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the Gram matrix of the samples with the appended 1, (count, count)."""
        matrix = torch.empty(self.count, self.count, dtype=dtype, device=self.device)
        size = GRAM_ROWS if self.device.type == "cpu" else 16 * GRAM_ROWS
        for part, block in self.blocks(dtype, size):
            torch.mm(block, block.T, out=matrix[part, part])
            for start in range(0, part.start, size):  # the matrix is symmetric: half of the products are enough
                others = slice(start, start + size)
                torch.mm(block, self._stored[others].to(self.device, dtype).T, out=matrix[part, others])
                matrix[others, part] = matrix[part, others].T
        return matrix.add_(1.0)


class _Space(ABC):
    """A representation of the vectors w of the classes, as float64 tensors; the last dimension but one is the class.

    Attributes:
        precise: whether products with the samples are in float64.
    """

    precise: bool

    @abstractmethod
    def zeros(self, classes: int) -> Tensor:
        """Return vectors of zeros."""

    @abstractmethod
    def push_pull(self, v: Tensor, reply: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scores X v, (classes, n), and the sum X' r of the samples with the weights r = reply(scores).

        Both are computed in one pass over the samples. `reply` gets scores, (classes, m), and the slice of their m
        samples, and returns weights of the same shape.
        """

    @abstractmethod
    def inner(self, v: Tensor, u: Tensor) -> Tensor:
        """Return the inner product of each class's vectors, (classes,)."""

    @abstractmethod
    def restate(self, v: Tensor) -> Tensor:
        """Return the same vectors without the rounding errors of their updates."""

    @abstractmethod
    def duals(self, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return dual variables a >= 0, (classes, n), read from v for signs y, and X'ya; None if v has none."""

    def preconditioner(self, active: Tensor) -> Callable[[Tensor], Tensor]:
        """Return an approximate inverse of I + X' diag(active) X for each class, with `active` >= 0, (classes, n)."""
        return lambda v: v

    @abstractmethod
    def weights(self, v: Tensor) -> Tensor:
        """Return the vectors as weights of the features and of the appended 1, (classes, width + 1)."""


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
        for number, (rows, block) in enumerate(self.samples.blocks(self.dtype), 1):
            scores[:, rows] = (narrow @ block.T).double() + intercepts
            weights = reply(scores[:, rows], rows)
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
        """See `_Space`; the same matrix for a weighted subsample, inverted by Woodbury's identity.

        A subsample overestimates the curvature in the directions that it happens to span. The median eigenvalue of its
        Gram matrix shows by how much. All directions are assumed to have at least that curvature, so that only much
        steeper ones are treated differently.
        """
        rows, x, gram, middle = self._subsample
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
            solution: Tensor = (v - (roots * solved) @ x) / floor
            return solution

        return apply

    @cached_property
    def _subsample(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Indices of the subsample, (m,), its samples with the appended 1 in float64, (m, width + 1).

        Also its Gram matrix, (m, m), and the median eigenvalue of the matrix.
        """
        samples = self.samples
        count = max(1, min(SUBSAMPLE, int(SUBSAMPLE_SHARE * min(samples.count, samples.width))))
        order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(0))
        rows = order[:count].sort().values.to(samples.device)
        part = samples.rows(rows).double()
        x = torch.cat((part, part.new_ones(count, 1)), dim=1)
        gram = x @ x.T
        values = torch.linalg.eigvalsh(gram)
        # With many equal samples the median is 0 up to rounding: keep it away from 0.
        return rows, x, gram, float(values[count // 2].maximum(1e-10 * values[-1]))

    def weights(self, v: Tensor) -> Tensor:
        return v


class _Gram(_Space):
    """Vectors are sums of samples, stored as coefficients and as scores on all samples, (2, classes, n)."""

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
        for rows, block in self.samples.blocks(torch.float32):
            total[:, :-1] += v[0][:, rows].float() @ block
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
    present = labels.unique()
    if len(present) < 2:
        found = f"all are of class {int(present[0])}" if len(present) else "there are none"
        raise DataError(f"{samples.count} labels, {found}: an SVM needs samples of at least two classes")
    few = gram is not None or samples.are_few
    # With two classes, one classifier is the negative of the other.
    signs = torch.stack([2.0 * (labels == label) - 1.0 for label in range(classes if classes > 2 else 1)]).double()
    space: _Space = _Gram(samples, samples.gram() if gram is None else gram) if few else _Rows(samples)
    w = space.zeros(len(signs))
    fits = []
    # For C far above 1 / |x|^2, Newton's method from zero needs many steps, as samples keep crossing the margin: there
    # C is increased gradually.
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
    """Return P, (len(cs), classes), for float32 weights (len(cs), classes, width + 1), in one pass over the samples."""
    each = torch.tensor(cs, dtype=torch.float64, device=signs.device)[:, None]
    total = weights.double().square().sum(dim=2) / 2
    flat = weights.flatten(0, 1)
    for rows, block in samples.blocks():
        scores = (flat[:, :-1] @ block.T + flat[:, -1:]).double().unflatten(0, weights.shape[:2])
        total += each * (1 - signs[:, rows] * scores).clamp_min(0).square().sum(dim=2)
    return total


def _minimise(
    space: _Space, signs: Tensor, c: float, w: Tensor, tolerance: float, report: Report | None
) -> tuple[Tensor, float, int]:
    """Minimise P for all classes, starting at `w`.

    Return the vectors, the largest relative duality gap, and the number of products with the samples.
    """
    w = space.restate(w).clone()
    left = torch.arange(len(signs), device=signs.device)  # classes that have not converged
    gaps, objectives = torch.full((2, len(signs)), float("inf"), dtype=torch.float64, device=signs.device)
    products = 1
    for _ in range(NEWTON_STEPS):
        y, here = signs[left], w[..., left, :]

        def duals_of(scores: Tensor, rows: slice, y: Tensor = y) -> Tensor:
            return 2 * c * y[:, rows] * (1 - y[:, rows] * scores).clamp_min(0)

        scores, pulled = space.push_pull(here, duals_of)
        products += 1
        slack = (1 - y * scores).clamp_min(0)
        objective = space.inner(here, here) / 2 + c * slack.square().sum(dim=1)
        bound = _dual(space, c, 2 * c * slack, pulled)
        duals = space.duals(here, y)
        if duals is not None:
            bound = bound.maximum(_dual(space, c, *duals))
            products += 1
        gap = 1 - bound / objective
        # When rounding prevents a step from decreasing the objective, more steps are useless.
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

    The value of the dual at s a is s sum(a) - s^2 (|X'ya|^2 + |a|^2 / 2C) / 2; the bound is its maximum over s.
    """
    curve = space.inner(pulled, pulled) + duals.square().sum(dim=1) / (2 * c)
    bound = duals.sum(dim=1).square() / (2 * curve)
    return torch.where(curve > 0, bound, 0.0)


def _newton_direction(space: _Space, gradient: Tensor, active: Tensor) -> tuple[Tensor, Tensor, int]:
    """Solve (I + X' diag(active) X) step = -gradient by preconditioned conjugate gradients.

    Returns:
        The step, its scores on the samples, and the number of products with the samples.
    """
    precondition = space.preconditioner(active)
    residual = -gradient
    step, step_scores = torch.zeros_like(residual), torch.zeros_like(active)
    size = space.inner(residual, residual)
    enough = FORCING**2 * size
    preconditioned = precondition(residual)
    direction, slope = preconditioned, space.inner(residual, preconditioned)
    used = 0
    going = True
    while going and used < CG_STEPS:
        used += 1
        scores, pulled = space.push_pull(direction, lambda scores, rows: active[:, rows] * scores)
        curved = direction + pulled
        bend = space.inner(direction, curved)
        # Classes that are solved do not move while others continue; near the end, rounding may make the curvature
        # negative.
        length = torch.where((size > enough) & (bend > 0), slope / bend, 0.0)
        step += length[:, None] * direction
        step_scores += length[:, None] * scores
        residual = residual - length[:, None] * curved
        size = space.inner(residual, residual)
        going = bool(((size > enough) & (length > 0)).any())
        preconditioned = precondition(residual)
        slope, before = space.inner(residual, preconditioned), slope
        direction = preconditioned + torch.where(length > 0, slope / before, 0.0)[:, None] * direction
    return step, step_scores, used


def _line_search(
    space: _Space, c: float, y: Tensor, w: Tensor, scores: Tensor, step: Tensor, step_scores: Tensor
) -> Tensor:
    """Return the length t >= 0, (classes,), that minimises P(w + t step).

    It is the root of the derivative, which is piecewise linear and increasing.
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
        # Newton's step, unless it leaves the interval that contains the root; then bisection.
        after = t - slope / bend
        between = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        after = torch.where((after > low) & (after < high), after, between)
        if bool(((after - t).abs() <= 1e-6 * t).all()):
            break
        t = after
    return t
