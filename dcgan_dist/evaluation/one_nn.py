"""The task `one-nn`: how well a conditional generator models its data (appendix of the paper, Table 3).

A 1-nearest-neighbour classifier (Euclidean distance of pixels) is trained on N generated images with their labels, and
tested on real images. The control is the same classifier on N real images; if there are fewer than N, deformed copies
are added. Samples are made block by block, searched, and not kept: ten million take no more memory than ten thousand,
and one pass gives the error at every N on the way.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xxhash
from torch.nn import functional

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig, is_rooms
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation.baselines import Pixels
from dcgan_dist.evaluation.feature_files import FeatureFiles, RawPixels
from dcgan_dist.evaluation.labelled import Labels, class_labels, open_labelled
from dcgan_dist.evaluation.nearest import Bytes, NearestRows, Neighbours
from dcgan_dist.evaluation.scoring import device_name
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.evaluation.tasks import Rows, permutation, wilson
from dcgan_dist.generation.samples import BLOCK, Samples, open_samples
from dcgan_dist.parallel import TaskPool
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import Entry, add_each
from dcgan_dist.storage.cache import cache_directory

DEFAULT_SAMPLES = 50_000
COUNTS = (1_000, 10_000, 50_000, 100_000, 1_000_000, 10_000_000)
"""The numbers of training images for which the error is reported."""
MOST_TURN = 10.0
"""Largest rotation of a deformed image, in degrees."""
MOST_SHIFT = 1 / 14
"""Largest shift of a deformed image in each direction, as a share of its side."""

_TASK_IMAGES = 32 * BLOCK  # training images of one task


class TrainingImages(Protocol):
    """An endless sequence of images; the object is small enough to be sent to a worker process."""

    def rows(self, start: int, stop: int) -> Bytes:
        """Return images `start` to `stop` - 1 as uint8 (n, S * S * C)."""


@dataclass(frozen=True)
class GeneratedImages:
    """Samples of a conditional run, with the classes in turn."""

    samples: Samples

    def rows(self, start: int, stop: int) -> Bytes:
        """See `TrainingImages`."""
        return np.concatenate([images.reshape(len(images), -1) for images, _ in self.samples.images(start, stop)])


@dataclass(frozen=True)
class RealImages:
    """Real images in the given order, followed by endless copies of them, each with another deformation.

    A deformation is a small shift and rotation; it replaces the deformations of InfiMNIST.

    Attributes:
        pixels: all images of the data set.
        order: numbers of the images to use.
        side: side of the images in pixels.
        seed: seed of the deformations.
    """

    pixels: Pixels
    order: Rows
    side: int
    seed: int

    def rows(self, start: int, stop: int) -> Bytes:
        """See `TrainingImages`."""
        numbers = np.arange(start, stop)
        rows = np.ascontiguousarray(self.pixels.values[self.order[numbers % len(self.order)]])
        first = int(np.searchsorted(numbers, len(self.order)))
        if first < len(rows):
            rows[first:] = deform(rows[first:], self.side, self.seed, start + first)
        return rows


def deform(rows: Bytes, side: int, seed: int, first: int) -> Bytes:
    """Shift and rotate images; pixels outside an image take the values at its border.

    Args:
        rows: uint8 (n, side * side * C).
        side: side of the images in pixels.
        seed: seed of the deformations.
        first: number of the first image; the deformation of image i depends on (seed, i).

    Returns:
        The deformed images, in the same shape.
    """
    # The purpose keeps its former name, so that the same seed gives the same deformations as before.
    bits = np.random.Philox(key=np.array([seed, zlib.crc32(b"moved")], dtype=np.uint64)).advance(first)
    draws = (bits.random_raw(4 * len(rows)).reshape(-1, 4) >> np.uint64(11)) * 2.0**-53 * 2 - 1
    angles = torch.from_numpy(np.deg2rad(MOST_TURN) * draws[:, 0]).float()
    shifts = torch.from_numpy(2 * MOST_SHIFT * draws[:, 1:3]).float()  # in units of half a side
    cosines, sines = angles.cos(), angles.sin()
    matrices = torch.stack((cosines, -sines, shifts[:, 0], sines, cosines, shifts[:, 1]), dim=1).view(-1, 2, 3)
    images = torch.from_numpy(rows.astype(np.float32)).view(len(rows), side, side, -1).permute(0, 3, 1, 2)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    pixels: Bytes = turned.round().to(torch.uint8).permute(0, 2, 3, 1).reshape(len(rows), -1).numpy()
    return pixels


@dataclass(frozen=True)
class _Task:
    """A part of the training images, to be searched for the nearest neighbours of the test images."""

    source: TrainingImages
    start: int
    stop: int
    test: Pixels
    chosen: Rows
    key: str  # identifies the test images
    device: str
    threads: int | None


_prepared: dict[str, NearestRows] = {}  # the last search of this worker process, so that its next task can reuse it


def _nearest(task: _Task) -> Neighbours:
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    key = f"{task.key} {task.device}"
    if key not in _prepared:
        _prepared.clear()
        _prepared[key] = NearestRows(np.ascontiguousarray(task.test.values[task.chosen]), task.device)
    search = _prepared[key]
    search.reset()
    search.add(task.source.rows(task.start, task.stop), task.start)
    return search.found


def _parts(counts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the tasks, so that each count is the end of one."""
    start = 0
    for count in counts:
        while start < count:
            stop = min(start - start % _TASK_IMAGES + _TASK_IMAGES, count)
            yield start, stop
            start = stop


@dataclass(frozen=True)
class _Set:
    pixels: Pixels
    labels: Labels
    rows: Rows  # the images that are used, which have labels, in a random order
    data: Dataset


class OneNearestNeighbour:
    """The task and its data; it can score any number of generators of a run.

    Args:
        config: the settings.
        run: settings of the run.
        model: settings of its generators.
        device: where to compute.
        pool: the processes that make samples and search them.
        workers_device: device of these processes.

    Raises:
        ConfigError: the run has no labels.
        DataError: the data do not fit the run.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        run: dict[str, Any],
        model: ModelConfig,
        device: torch.device,
        pool: TaskPool,
        workers_device: str,
    ) -> None:
        assert model.image_size is not None
        assert model.channels is not None
        self.config, self.model, self._device, self._pool = config, model, device, pool
        self._workers_device = workers_device
        self._extractor = RawPixels(model.image_size, model.channels)
        self._cache = cache_directory(config.cache)
        self._files = FeatureFiles(self._cache, config.cache_gib)
        self._names = tuple(map(str, run.get("environment", {}).get("classes", ())))
        path = config.data or str(run.get("data", {}).get("path"))
        test_path = self._test_path(path)
        member = None if config.data else run.get("data", {}).get("image_member")
        train, test = self._open(path, "train", member), self._open(test_path, "test")
        of_rooms = all(is_rooms(data.path) for data in (train, test))  # both begin with room 0
        if of_rooms or test.digest == train.digest:
            raise DataError(f"test_data {test.path!r} holds the images of data {path!r}: take others")
        self._train, self._test = self._read(train, "train"), self._read(test, "test")
        self._key = f"{test.digest} {config.seed} {config.data_count} {os.getpid()}"
        samples = DEFAULT_SAMPLES if config.count is None else config.count
        self._counts = [count for count in COUNTS if count < samples] + [samples]

    def _test_path(self, path: str) -> str | None:
        """Return the path of the test images; None for rooms that no run is trained on.

        A folder with the files of MNIST contains its test images; for other data they have to be given.
        """
        if self.config.test_data is not None:
            return self.config.test_data
        if is_rooms(path):
            return None
        if any(Path(path).glob("t10k-images*")):
            return path
        raise DataError(
            "test_data is missing: the task one-nn needs --test-data PATH, labelled images that the run was not "
            "trained on"
        )

    def _open(self, path: str | None, split: Literal["train", "test"], image_member: str | None = None) -> Dataset:
        """Open a data set, and check that it has the run's classes."""
        size, channels = self._extractor.image_size, self._extractor.channels
        kind = "rooms" if path is None else kind_of(path)
        data = open_labelled(
            path, kind, image_size=size, channels=channels, cache=self._cache, split=split, image_member=image_member
        )
        classes = self.model.classes or 0
        found = int(class_labels(data).max()) + 1
        if found > classes:
            raise DataError(f"{data.path!r} has {found} classes, the run {classes}: give data with the run's classes")
        if data.classes and self._names and data.classes != self._names:
            theirs, ours = (", ".join(names[:3]) for names in (data.classes, self._names))
            raise DataError(
                f"{data.path!r} has the classes {theirs} …, the run {ours} …: give data with the run's classes"
            )
        return data

    def _read(self, data: Dataset, split: str) -> _Set:
        labels = class_labels(data)
        usable = np.flatnonzero(labels >= 0)
        rows = usable[permutation(len(usable), self.config.seed, f"one-nn/{split}")][: self.config.data_count]
        line = ProgressLine(f"reading {data.path}")
        try:
            values = self._files.get(self._extractor, data, self._pool, lambda done, count: line(done, done / count, 0))
        finally:
            line.close()
        return _Set(Pixels(values), labels, rows, data)

    @property
    def protocol(self) -> str:
        """Name of the protocol: the largest number of training images, and a digest of the test images."""
        return self._protocol(self._counts[-1])

    def _protocol(self, count: int) -> str:
        test = xxhash.xxh3_64_hexdigest(f"{self._test.data.digest} {self._test.rows.tolist()}".encode())[:8]
        return f"1-nn/{count}-images/test-{test}"

    def score(self, samples: Samples) -> Entry:
        """Return the entry of a generator for scores.json.

        Raises:
            RunDirectoryError: its samples are not finite.
        """
        begun = time.perf_counter()
        source = GeneratedImages(replace(samples, device=self._workers_device))
        classes, what = self.model.classes or 1, f"samples of step {samples.step}"
        found = self._found(source, self._counts, what)
        predicted = [(count, rows % classes) for count, rows in found]
        about = {"step": samples.step, "checkpoint_digest": samples.digest, "weights": samples.weights}
        return self._entry(self.model.name, predicted, begun) | about

    def score_real_images(self) -> list[Entry]:
        """Return the entries of real training images: without copies and, for larger N, with deformed copies."""
        begun, train = time.perf_counter(), self._train
        source = RealImages(train.pixels, train.rows, self._extractor.image_size, self.config.seed)
        available = len(train.rows)
        counts = sorted({*self._counts, min(available, self._counts[-1])})
        found = self._found(source, counts, "real images")
        predicted = [(count, train.labels[train.rows[rows % available]]) for count, rows in found]
        entries = [self._entry("real images", [pair for pair in predicted if pair[0] <= available], begun)]
        if counts[-1] > available:
            entries.append(self._entry("real images, then moved", predicted, begun))
        return entries

    def _entry(self, method: str, predicted: list[tuple[int, Labels]], begun: float) -> Entry:
        truth = self._test.labels[self._test.rows]
        metrics: dict[str, Any] = {}
        for count, labels in predicted:
            right, n = int((labels == truth).sum()), len(truth)
            low, high = wilson(right, n)
            error = {"value": 100 - 100 * right / n, "ci95": [100 - high, 100 - low], "n": n}
            metrics[f"error_at_{count}"] = error
            metrics |= {"accuracy": {"value": 100 * right / n, "ci95": [low, high], "n": n}, "error": error}
        return {
            "step": None,
            "method": method,
            "protocol": self._protocol(predicted[-1][0]),
            "checkpoint_digest": None,
            "metrics": metrics,
            "split": self._split(),
            "seed": self.config.seed,
            "seconds": round(time.perf_counter() - begun, 2),
            "device": device_name(self._device),
        }

    def _found(self, source: TrainingImages, counts: list[int], what: str) -> Iterator[tuple[int, Rows]]:
        """Yield each count with the row of the nearest of the first `count` training images, for each test image."""
        threads = 1 if self._pool.workers > 1 and self._workers_device == "cpu" else None
        test, chosen, key, device = self._test.pixels, self._test.rows, self._key, self._workers_device
        parts = list(_parts(counts))
        tasks = (_Task(source, start, stop, test, chosen, key, device, threads) for start, stop in parts)
        line, found = ProgressLine(f"1-nn, {what}"), None
        try:
            with closing(self._pool.run(_nearest, tasks)) as results:
                for (_, stop), part in zip(parts, results, strict=True):
                    found = part if found is None else found.merge(part)
                    line(stop, stop / counts[-1], 0)
                    if stop in counts:
                        yield stop, found.rows
        finally:
            line.close()

    def _split(self) -> dict[str, Any]:
        return {"data": self._train.data.digest, "test_data": self._test.data.digest, "images": self.config.data_count}

    def find(self, finished: list[Entry], samples: Samples) -> Entry | None:
        """Return the finished entry of the same generator, data and protocol, None if there is none."""
        same = {
            "step": samples.step,
            "method": samples.model.name,
            "checkpoint_digest": samples.digest,
            "weights": samples.weights,
            "protocol": self.protocol,
            "split": self._split(),
            "seed": self.config.seed,
        }
        return next((entry for entry in finished if same.items() <= ({"weights": "raw"} | entry).items()), None)

    def clear(self) -> None:
        """Remove the entries of this object from the cache."""
        self._files.clear()


def kind_of(path: str) -> str:
    """Return `mnist` or `cifar10` if the files at a path have the names of that data set, else `folder`."""
    at = Path(path)
    names = [at.name, *(entry.name for entry in at.iterdir())] if at.is_dir() else [at.name]
    if any("-idx" in name for name in names):
        return "mnist"
    return "cifar10" if any("cifar" in name or name.startswith("data_batch") for name in names) else "folder"


def evaluate_one_nn(
    config: EvaluateConfig,
    run: Run,
    device: torch.device,
    pool: TaskPool,
    show: Callable[[str, list[Entry]], None],
    say: Callable[[str], None],
    workers_device: str | None = None,
) -> list[Entry]:
    """Score the generators of a run's checkpoints, and real images; each score is written as soon as it is measured.

    Args, returns and raises: as `scoring.evaluate`.
    """
    if config.chosen_baselines:
        raise ConfigError(
            f"baselines is {','.join(config.baselines)!r}: the task one-nn has real images as its control, no others"
        )
    steps = run.chosen_steps(config.step)
    finished = run.entries().get(config.task, [])  # read before the work, so that a damaged file is reported first
    if config.step != "all":
        finished = []
    first = open_samples(run, str(steps[0]), seed=config.seed, weights=config.weights)
    if not first.is_conditional:
        raise ConfigError(
            f"run is {run.location!r}, an unconditional run ({first.model.name}), whose samples have no labels: the "
            "task one-nn takes a conditional one, such as of configs/mnist-cdcgan.yaml"
        )
    task = OneNearestNeighbour(config, run.settings, first.model, device, pool, workers_device or str(device))

    def load(run: Run, step: int) -> Samples:
        return open_samples(run, str(step), seed=config.seed, weights=config.weights)

    def scores() -> Iterator[Entry]:
        for samples in run.load_each(load, steps, say):
            yield task.find(finished, samples) or task.score(samples)
        yield from task.score_real_images()

    try:
        return add_each(run.folder, config.task, scores(), finished, partial(show, task.protocol), say)
    finally:
        if not config.keep_features:
            task.clear()


__all__ = ["COUNTS", "GeneratedImages", "OneNearestNeighbour", "RealImages", "deform", "evaluate_one_nn", "kind_of"]
