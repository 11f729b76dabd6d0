"""Protocols: how a classifier on features gets a score (section 5).

Every protocol splits the images by the seed alone into training, validation and test, so that all methods are scored on
the same images. The hyperparameter of a classifier (C of an SVM, k of nearest neighbours) is chosen on validation
images by `choose`, which sees no test image and no test label; the test images are used once, at the end.

- `score_full`: all labels. After the choice, the classifier is fitted to training and validation images together. The
  interval is Wilson's for a share of n test images.
- `score_draws`: few labels (400 per class of CIFAR-10, 100 per class of SVHN), drawn many times. The choice is by the
  mean accuracy on validation images over draws of their own; the score is the mean over the draws on test images, and
  its interval 1.96 standard deviations of the draws to both sides, as in the released code.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.labelled import Labels
from dcgan_dist.evaluation.linear_svm import LinearSVM, fit_path, gram_of

Rows = npt.NDArray[np.int64]

_CONVERTED = 1 << 28  # up to this many values are converted to float32 before a fit: 1 GiB
_KEPT = 4096  # up to this many samples are kept for the next fit to the same samples
_BLOCK = 512  # images whose features are in memory at once when predicting
Z95 = 1.96  # standard deviations to each side of a normal distribution's middle that hold 95% of it


class Values(Protocol):
    """Features of a data set: an array, a memory map, or a transformation of one that is applied when rows are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __getitem__(self, rows: Rows) -> Array:
        """Return a copy of some rows, (n, d)."""


class Classifier(Protocol):
    """A fitted classifier."""

    def predict(self, x: Tensor) -> Tensor:
        """Return the classes, (n,), of features (n, d)."""


class Learner(Protocol):
    """A way to fit classifiers, with one hyperparameter.

    Attributes:
        parameter: name of the hyperparameter.
        grid: its values, the simplest classifier first: among equally good ones, the first is chosen.
    """

    @property
    def parameter(self) -> str: ...  # noqa: D102

    @property
    def grid(self) -> tuple[float, ...]: ...  # noqa: D102

    def fit(
        self, values: Values, labels: Labels, draws: Sequence[Rows], grid: Sequence[float], classes: int
    ) -> Iterator[Sequence[Classifier]]:
        """Fit a classifier for each value of `grid`, to each of several subsets of the rows of `values`."""


@runtime_checkable
class Judge(Protocol):
    """A learner that compares the values of its grid by a search of its own."""

    def judge(self, values: Values, labels: Labels, draws: Sequence[Rows], held: Rows, classes: int) -> list[float]:
        """Return for each value of the grid the mean share of held-out rows that are classified correctly."""


@dataclass(frozen=True)
class _Kept:
    """The samples of a fit, and their Gram matrix."""

    values: Values
    rows: Rows
    x: Tensor
    gram: Tensor | None


@dataclass(frozen=True)
class L2SVM:
    """The paper's classifier: a linear SVM with squared hinge loss, one-vs-rest.

    It keeps the last samples that it was fitted to, because several targets may be predicted from the same images.
    """

    grid: tuple[float, ...]
    device: torch.device
    tolerance: float = 1e-4
    parameter: str = "C"
    _kept: list[_Kept] = field(default_factory=list, compare=False, repr=False)

    def fit(
        self, values: Values, labels: Labels, draws: Sequence[Rows], grid: Sequence[float], classes: int
    ) -> Iterator[Sequence[Classifier]]:
        """See `Learner`."""
        for rows in draws:
            kept = self._samples(values, np.sort(rows))
            y = torch.from_numpy(labels[kept.rows])
            line = ProgressLine(f"SVM of {len(y):,} images")

            def report(c: float, gap: float, line: ProgressLine = line) -> None:
                line.state(f"C = {c:g}, duality gap {gap:.1e}, sought {self.tolerance:.0e}")

            try:
                fits = fit_path(
                    kept.x,
                    y,
                    grid,
                    classes=classes,
                    tolerance=self.tolerance,
                    device=self.device,
                    gram=kept.gram,
                    report=report,
                )
            finally:
                line.close()
            yield fits

    def _samples(self, values: Values, rows: Rows) -> _Kept:
        for kept in self._kept:
            if kept.values is values and np.array_equal(kept.rows, rows):
                return kept
        x = torch.from_numpy(np.ascontiguousarray(values[rows]))
        if x.numel() <= _CONVERTED:  # converted once instead of in each pass
            x = x.float()
        if len(rows) > _KEPT:
            return _Kept(values, rows, x, None)
        self._kept[:] = [_Kept(values, rows, x, gram_of(x, self.device)), *self._kept[:1]]
        return self._kept[0]


@dataclass(frozen=True)
class Partition:
    """The rows for training, validation and test.

    Attributes:
        train: rows to fit classifiers to.
        validation: rows on which hyperparameters are chosen.
        test: rows to score on; rows of the separate test set if there is one.
        labels: labels of the data set with the training and validation rows.
        test_labels: labels of the data set with the test rows.
        classes: number of classes.
    """

    train: Rows
    validation: Rows
    test: Rows
    labels: Labels
    test_labels: Labels
    classes: int


@dataclass(frozen=True)
class Score:
    """A score in percent, and how it was obtained.

    Attributes:
        value: accuracy.
        ci95: its 95% interval.
        n: number of test images.
        chosen: chosen value of the classifier's hyperparameter.
        validation: accuracy on validation images by value of the hyperparameter.
        correct: whether each test image was classified correctly, (draws, n).
        draws: number of draws of labels; 0 if all labels were used.
        sigma: standard deviation over the draws; 0 without draws.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    chosen: float
    validation: dict[float, float]
    correct: npt.NDArray[np.bool_]
    draws: int = 0
    sigma: float = 0.0


def permutation(count: int, seed: int, purpose: str, number: int = 0) -> Rows:
    """Return a random order of 0 … count - 1 that depends only on the arguments."""
    key = np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.array([0, number, 0, 0], dtype=np.uint64)
    keys = np.random.Philox(key=key, counter=counter).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def divide(
    labels: Labels,
    *,
    seed: int,
    test: int | None = None,
    validation: int | None = None,
    test_labels: Labels | None = None,
    where: str = "the data",
) -> Partition:
    """Split labelled images into training, validation and test by a seed; images without a label are left out.

    Args:
        labels: labels of the data set, -1 for none.
        seed: seed of the split.
        test: number of test images; if None, a fifth of the data set. Not used with `test_labels`.
        validation: number of validation images; if None, a tenth of the data set.
        test_labels: labels of the separate test set, if there is one.
        where: name of the data set for messages.

    Raises:
        DataError: there are too few images, or only one class among the training images.
    """
    usable = np.flatnonzero(labels >= 0)
    order = usable[permutation(len(usable), seed, "division")]
    held = 0 if test_labels is not None else len(order) // 5 if test is None else test
    chosen_by = len(order) // 10 if validation is None else validation
    left = len(order) - held - chosen_by
    if left < 1 or chosen_by < 1 or (test_labels is None and held < 1):
        raise DataError(
            f"{where} has {len(order)} labelled images: {held} for the test and {chosen_by} for validation leave "
            f"{max(left, 0)} to train on; set --test and --validation"
        )
    # The test images come first, so that the number of validation images does not change them.
    parts = np.split(order, [held, held + chosen_by])
    if len(np.unique(labels[parts[2]])) < 2:
        raise DataError(
            f"{where} has one class among the {left} images to train on: a score needs images of two or more"
        )
    classes = int(labels.max()) + 1
    if test_labels is None:
        return Partition(parts[2], parts[1], parts[0], labels, labels, classes)
    rows = np.flatnonzero(test_labels >= 0).astype(np.int64)
    if not len(rows) or int(test_labels.max()) >= classes:
        raise DataError(
            "the test set has no labels, or other classes than the training set: give --test-data of the same"
        )
    return Partition(parts[2], parts[1], rows, labels, test_labels, classes)


def draw_labels(
    partition: Partition, per_class: int, seed: int, purpose: str, number: int, names: Sequence[str] = ()
) -> Rows:
    """Draw `per_class` training rows of each class of the data; the draw depends on (seed, purpose, number).

    Raises:
        DataError: a class has fewer rows.
    """
    order = partition.train[permutation(len(partition.train), seed, f"labels/{purpose}", number)]
    labels = partition.labels[order]
    drawn = []
    for label in np.unique(partition.labels[partition.labels >= 0]).tolist():
        rows = order[labels == label][:per_class]
        if len(rows) < per_class:
            name = names[label] if label < len(names) else label
            raise DataError(
                f"class {name!r} has {len(rows)} training images, fewer than labels_per_class ({per_class}): "
                "take fewer, or smaller --test and --validation"
            )
        drawn.append(rows)
    return np.concatenate(drawn)


def predict_all(models: Sequence[Classifier], values: Values, rows: Rows, device: torch.device) -> Tensor:
    """Return the class that each model predicts for each of the rows, (models, n); each row is read once."""
    linear = [model for model in models if isinstance(model, LinearSVM)]
    stacked = None
    if len(linear) == len(models) and models:
        stacked = (
            torch.cat([model.weights for model in linear]).to(device),
            torch.cat([model.intercepts for model in linear]).to(device),
        )
    parts = []
    for start in range(0, len(rows), _BLOCK):
        block = torch.from_numpy(values[rows[start : start + _BLOCK]])
        if stacked is None:
            parts.append(torch.stack([model.predict(block) for model in models]).cpu())
        else:
            scores = torch.addmm(stacked[1], block.to(device).float(), stacked[0].T)
            parts.append(scores.view(len(block), len(models), -1).argmax(dim=2).T.cpu())
    return torch.cat(parts, dim=1)


def choose(
    learner: Learner, values: Values, partition: Partition, draws: Sequence[Rows], device: torch.device
) -> tuple[float, dict[float, float]]:
    """Choose the hyperparameter by the mean accuracy over draws on validation images; no test image is used.

    Returns:
        The chosen value, and the accuracy in percent by value.
    """
    if len(learner.grid) == 1:
        return learner.grid[0], {}
    labels, held, classes = partition.labels, partition.validation, partition.classes
    if isinstance(learner, Judge):
        means = 100 * np.array(learner.judge(values, labels, draws, held, classes))
    else:
        truth = torch.from_numpy(labels[held])
        totals = np.zeros(len(learner.grid))
        for models in learner.fit(values, labels, draws, learner.grid, classes):
            totals += (predict_all(models, values, held, device) == truth).double().mean(dim=1).numpy()
        means = totals * 100 / len(draws)
    return learner.grid[int(means.argmax())], dict(zip(learner.grid, means.tolist(), strict=True))


def score_full(
    learner: Learner, values: Values, test_values: Values, partition: Partition, device: torch.device
) -> Score:
    """Score a classifier that is fitted to all labels (CIFAR-10 in section 5.1).

    Args:
        learner: how to fit it.
        values: features of the set with training and validation rows.
        test_values: features of the set with the test rows.
        partition: the rows.
        device: where to predict.
    """
    chosen, accuracies = choose(learner, values, partition, [partition.train], device)
    both = np.concatenate((partition.train, partition.validation))
    (models,) = learner.fit(values, partition.labels, [both], [chosen], partition.classes)
    return _score(_correct(models, test_values, partition, device), chosen, accuracies)


def score_draws(
    learner: Learner,
    values: Values,
    test_values: Values,
    partition: Partition,
    device: torch.device,
    *,
    per_class: int,
    draws: int,
    choosing_draws: int,
    seed: int,
    names: Sequence[str] = (),
) -> Score:
    """Score classifiers that are fitted to few labels, drawn many times (400 per class in 5.1, 1,000 in all in 5.2).

    Args:
        learner: how to fit them.
        values: features of the set with training and validation rows.
        test_values: features of the set with the test rows.
        partition: the rows.
        device: where to predict.
        per_class: labels of each class.
        draws: number of draws for the score.
        choosing_draws: number of draws for the choice of the hyperparameter, which are other draws.
        seed: seed of the draws.
        names: names of the classes, for messages.

    Raises:
        DataError: a class has fewer labels.
    """

    def draw(purpose: str, count: int) -> list[Rows]:
        return [draw_labels(partition, per_class, seed, purpose, number, names) for number in range(count)]

    chosen, accuracies = choose(learner, values, partition, draw("choice", choosing_draws), device)
    fits = learner.fit(values, partition.labels, draw("score", draws), [chosen], partition.classes)
    correct = _correct([models[0] for models in fits], test_values, partition, device)
    return _score(correct, chosen, accuracies, draws)


def _score(correct: npt.NDArray[np.bool_], chosen: float, accuracies: dict[float, float], draws: int = 0) -> Score:
    """Return the score and its interval, from whether images were classified correctly, (1, n) or (draws, n)."""
    shares = 100 * correct.mean(axis=1)
    mean, sigma = float(shares.mean()), 0.0
    interval = wilson(int(correct.sum()), correct.size)
    if len(shares) > 1:
        sigma = float(shares.std(ddof=1))
        interval = (mean - Z95 * sigma, mean + Z95 * sigma)
    return Score(mean, interval, correct.shape[1], chosen, accuracies, correct, draws, sigma)


def _correct(
    models: Sequence[Classifier], test_values: Values, partition: Partition, device: torch.device
) -> npt.NDArray[np.bool_]:
    found = predict_all(models, test_values, partition.test, device).numpy()
    right: npt.NDArray[np.bool_] = found == partition.test_labels[partition.test]
    return right


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95% interval, in percent, of a share of `right` among `count` independent trials."""
    share, square = right / count, Z95 * Z95 / count
    middle = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
