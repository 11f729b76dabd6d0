"""What samples show, as a classifier sees it: attributes of rooms, or the classes of labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation.diversity import Metric
from dcgan_dist.evaluation.features import load_discriminator, prepare_extractor
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES, class_labels
from dcgan_dist.evaluation.tasks import Z95, wilson
from dcgan_dist.exploration.figure import counted
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.exploration.room_judge import room_judge

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Probabilities = dict[str, Floats]
"""For each attribute the probabilities of its values, (n, values)."""
Wanted = dict[str, int]
"""Attributes that an image should show: the index of the wanted value, by attribute."""

_BATCH = 256  # samples that are generated and judged at once
_LABELLED = 6000  # images that a classifier is fitted to, at most
_LABELLED_BYTES = 256 << 20  # of their features, which are held in memory
_FEWEST = 5  # images of each class that a classifier needs


@dataclass(frozen=True)
class AttributeJudge:
    """A classifier of the attributes of images.

    Attributes:
        values: names of the values by attribute.
        phrases: the phrases that `read` knows, each with its attribute and the index of the value.
        accuracy: share of held-out real images that are classified correctly, by attribute.
        probabilities: function that classifies uint8 images (n, S, S, C).
    """

    values: dict[str, tuple[str, ...]]
    phrases: dict[str, tuple[str, int]]
    accuracy: dict[str, float]
    probabilities: Callable[[Pixels], Probabilities]

    def read(self, text: str) -> Wanted:
        """Return the attributes that phrases separated by commas ask for, such as ``window, view left``.

        Raises:
            ConfigError: a phrase is unknown, or two phrases ask for different values of the same attribute.
        """
        wanted: Wanted = {}
        for phrase in [text] if text in self.phrases else [part.strip() for part in text.split(",")]:
            if phrase not in self.phrases:
                known = list(self.phrases)
                first = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
                raise ConfigError(f"{phrase!r} is unknown: take of {first}")
            name, value = self.phrases[phrase]
            if wanted.setdefault(name, value) != value:
                raise ConfigError(f"{text!r} asks for two values of {name}: take one")
        return wanted

    def words(self, wanted: Wanted) -> str:
        """Return the phrases that `read` parses to `wanted`."""
        phrases = {meant: phrase for phrase, meant in self.phrases.items()}
        return ", ".join(phrases[meant] for meant in wanted.items())


def room_phrases() -> dict[str, tuple[str, int]]:
    """Return the phrases for the values of `ROOM_ATTRIBUTES`: ``window``, ``no lamp``, ``bed red``, ``wall 30``."""
    phrases = {}
    for name, values in ROOM_ATTRIBUTES.items():
        word = name.partition("_")[0]
        for number, value in enumerate(values):
            is_yes_or_no = isinstance(value, bool)
            phrases[(word if value else f"no {word}") if is_yes_or_no else f"{word} {value}"] = (name, number)
    return phrases


def room_attributes(run: Trained) -> AttributeJudge:
    """Return the judge of rooms, which knows `room_phrases`.

    Raises:
        StorageError: the cache cannot be written.
    """
    judge = room_judge(run.cache, run.device)
    return AttributeJudge(
        values={name: tuple(map(str, values)) for name, values in ROOM_ATTRIBUTES.items()},
        phrases=room_phrases(),
        accuracy=judge.accuracy,
        probabilities=lambda images: dict(judge(images).probabilities),
    )


def class_attributes(run: Trained, data: str) -> AttributeJudge:
    """Return a judge with one attribute, `class`, whose values are the classes of labelled images.

    It is a logistic regression on the features of the run's discriminator (section 5), fitted to 80% of the images and
    tested on the rest. The discriminator was not trained on the classes, unless the run is conditional.

    Args:
        run: the run.
        data: shards, or a folder with a sub-folder for each class (see `open_labelled`).

    Raises:
        DataError: there are no such images, or too few of a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    dataset = run.dataset(data)
    labels = class_labels(dataset)
    trained = load_discriminator(run.run, run.step)
    extractor = prepare_extractor(trained, run.cache, device=run.device)
    most = min(_LABELLED, _LABELLED_BYTES // (4 * extractor.dimension))
    labelled = np.flatnonzero(labels >= 0)
    chosen = np.sort(np.random.default_rng(run.seed).permutation(labelled)[:most])
    values = run.features(extractor, dataset, chosen)
    names = {int(n): dataset.classes[n] if n < len(dataset.classes) else str(n) for n in np.unique(labels[labelled])}
    kinds, counts = np.unique(labels[chosen], return_counts=True)
    for number, name in names.items():
        found = int(counts[kinds == number].sum())
        if found < _FEWEST:
            raise DataError(
                f"{data!r} gives {found} images of class {name!r} among {len(chosen):,}: a classifier needs "
                f"{_FEWEST} or more of every class"
            )
    x, x_test, y, y_test = train_test_split(
        np.asarray(values, np.float32), labels[chosen], test_size=0.2, random_state=0, stratify=labels[chosen]
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x, y)
    return AttributeJudge(
        values={"class": tuple(names.values())},
        phrases={name: ("class", index) for index, name in enumerate(names.values())},
        accuracy={"class": round(float(classifier.score(x_test, y_test)), 4)},
        probabilities=lambda images: {"class": classifier.predict_proba(extractor(images).astype(np.float32))},
    )


def confidence(probabilities: Probabilities, wanted: Wanted) -> Floats:
    """Return the probability that each image shows all wanted attributes, (n,): the product over the attributes."""
    parts = [probabilities[name][:, value].astype(np.float64) for name, value in wanted.items()]
    return np.asarray(np.prod(parts, axis=0))


def shows(probabilities: Probabilities, wanted: Wanted) -> Bools:
    """Return for each image whether all wanted values are the most probable ones, (n,)."""
    parts = [probabilities[name].argmax(axis=1) == value for name, value in wanted.items()]
    return np.asarray(np.all(parts, axis=0))


def judge_samples(run: Trained, judge: AttributeJudge, z: Tensor, label: str | None, what: str) -> Probabilities:
    """Classify the samples of z (n, z_dim), in batches, so that few images are in memory at a time.

    Args:
        run: the run.
        judge: the classifier.
        z: noise, (n, z_dim).
        label: class of all samples.
        what: text of the progress line.

    Raises:
        RunDirectoryError: the samples are not finite.
    """
    with counted(z.split(_BATCH), len(z), what) as batches:
        parts = [judge.probabilities(run.generate(part, run.y(len(part), label))) for part in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_z(run: Trained, count: int) -> Tensor:
    """Return the z of samples 0 to `count` - 1, (count, z_dim)."""
    block = run.samples.block
    return torch.cat([run.samples.z(start, min(start + block, count)) for start in range(0, count, block)])


@dataclass(frozen=True)
class Mean:
    """A mean of n values, with its 95% interval."""

    mean: float
    ci95: tuple[float, float]
    n: int


def mean_of(values: Floats) -> Mean:
    """Return the mean of independent values, (n,), with its normal interval, which is NaN for a single value."""
    mean, n = float(np.mean(values)), len(values)
    half = Z95 * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else math.nan
    return Mean(mean, (mean - half, mean + half), n)


def share(mask: Bools) -> Metric:
    """Return the share of true values, with n and Wilson's 95% interval, all in [0, 1]; NaN if the mask is empty."""
    if not len(mask):
        return Metric(math.nan, (math.nan, math.nan), 0)
    low, high = wilson(int(mask.sum()), len(mask))
    return Metric(float(mask.mean()), (low / 100, high / 100), len(mask))


def default_label(run: Trained, label: str | None) -> str | None:
    """Return the class of all images of a figure: for a conditional run the first class if none is given."""
    return label or ("0" if run.classes else None)


def subtitle_of(run: Trained, label: str | None) -> str:
    """Return the run's subtitle, with the class of all images if they have one."""
    return run.subtitle + (f", class {label}" if label is not None else "")


__all__ = ["AttributeJudge", "Bools", "Floats", "Mean", "Probabilities", "Wanted", "class_attributes", "confidence",
           "default_label", "first_z", "judge_samples", "mean_of", "room_attributes", "room_phrases", "share",
           "shows", "subtitle_of"]  # fmt: skip
