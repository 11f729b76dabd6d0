"""The tasks `fidelity` and `memorisation`: a generator's samples compared with real images, without labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig, is_rooms
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation.diversity import (
    FRECHET_IMAGES,
    GROUPS,
    Floats,
    Metric,
    Reference,
    judge_copies,
    nearest_distances,
)
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import Array, Extractor, FeatureFiles, RawPixels, fitted
from dcgan_dist.evaluation.generated import sample_batches
from dcgan_dist.evaluation.inception import INCEPTION_FEATURES, InceptionFeatures, measure_inception, open_inception
from dcgan_dist.evaluation.labelled import open_labelled
from dcgan_dist.evaluation.scoring import device_name
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.evaluation.tasks import Rows, permutation
from dcgan_dist.models.network import Generator
from dcgan_dist.parallel import TaskPool
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import Entry, add_each
from dcgan_dist.storage.cache import cache_directory
from dcgan_dist.training.trained import LoadedGenerator, load_generator

GENERATOR_TASKS = ("fidelity", "memorisation")

_FIDELITY_SAMPLES = FRECHET_IMAGES
_MEMORISATION_SAMPLES = 2000
_FEWEST = 5 * GROUPS  # images that the jackknife needs: without one group, every image still has its neighbours


class GeneratorEvaluation:
    """A task and its data; it can score any number of generators of a run.

    Args:
        config: the settings.
        run: settings of the run.
        model: settings of its generators.
        device: where to compute.
        pool: the processes that extract features of real images.
        workers_device: device of these processes; if None, `device`.

    Raises:
        ConfigError, DataError: the settings or the data do not fit the task.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        run: dict[str, Any],
        model: ModelConfig,
        device: torch.device,
        pool: TaskPool,
        workers_device: str | None = None,
    ) -> None:
        assert model.image_size is not None
        assert model.channels is not None
        self.config, self.run, self.model, self.device, self._pool = config, run, model, device, pool
        self._workers_device = workers_device or str(device)
        self.cache = cache_directory(config.cache)
        self.files = FeatureFiles(self.cache, config.cache_gib)
        default = _FIDELITY_SAMPLES if config.task == "fidelity" else _MEMORISATION_SAMPLES
        self.count = default if config.count is None else config.count
        self.extractor: Extractor = RandomConv(self._workers_device)
        self.is_inception = config.task == "fidelity" and config.extractor == "inception"
        if self.is_inception:
            self.extractor = open_inception(config.inception_weights, model.image_size, self._workers_device)
        if self.count < _FEWEST:
            raise DataError(f"count is {self.count}: the task {config.task} needs at least {_FEWEST}")
        self.data = self._open_data()
        self.test_data = self._open_test_data()

    @property
    def protocol(self) -> str:
        """Name of the protocol: the feature space, the number of images, and the seed if it is not 0."""
        space = "inception" if self.is_inception else "random-conv-v1"
        return "/".join([space, f"{self.count}-images"] + [f"seed-{self.config.seed}"] * (self.config.seed != 0))

    def _open(
        self,
        path: str | None,
        task: str = "folder",
        split: Literal["train", "test"] = "train",
        image_member: str | None = None,
    ) -> Dataset:
        size, channels = self.model.image_size, self.model.channels
        assert size is not None
        assert channels is not None
        return open_labelled(
            path, task, image_size=size, channels=channels, cache=self.cache, split=split, image_member=image_member
        )

    def _open_data(self) -> Dataset:
        if self.config.data is not None:
            return self._open(self.config.data)
        about = self.run.get("data", {})
        try:
            return self._open(str(about.get("path")), image_member=about.get("image_member"))
        except DataError as error:
            raise DataError(f"{error}; the run was trained there: give --data PATH") from error

    def _open_test_data(self) -> Dataset | None:
        config = self.config
        if config.test_data is not None:
            return self._open(config.test_data, split="test" if config.test_data == config.data else "train")
        if config.task == "fidelity":
            return None
        if is_rooms(self.data.path):
            return self._open(None, "rooms")
        raise DataError(
            "test_data is missing: the task memorisation needs --test-data PATH, images like those that the run was "
            "trained on that were not among them"
        )

    def _values(self, extractor: Extractor, data: Dataset, chosen: Rows | None = None) -> Array:
        """Return the features of a data set: all in the order of its records, or the chosen ones in their order."""
        line = ProgressLine(f"features of {data.path}")

        def report(done: int, count: int) -> None:
            line(done, done / count, 0)

        try:
            if chosen is None:
                return self.files.get(extractor, data, self._pool, report)
            order = np.argsort(chosen)
            rows = self.files.get(extractor, data, self._pool, report, chosen[order])
            values = np.empty_like(rows)
            values[order] = rows
            return values
        finally:
            line.close()

    def _draw(self, data: Dataset, first: int = 0) -> Rows:
        """Return the numbers of `count` images of a data set, from index `first` of a random order on."""
        rows = permutation(data.count, self.config.seed, "fidelity")[first : first + self.count]
        if len(rows) < self.count:
            raise DataError(
                f"{data.path!r} has {data.count} images, fewer than count ({self.count}): take --count "
                f"{data.count}, or more images"
            )
        return rows

    def _here(self, extractor: Extractor) -> Extractor:
        """Return the same extractor on the device of this process; workers may have another one."""
        if isinstance(extractor, RandomConv | InceptionFeatures):
            return replace(extractor, device=str(self.device))
        return extractor

    def _samples(self, generator: Generator, extractors: list[Extractor]) -> list[Array]:
        """Return the features of the samples by each extractor."""
        rows: list[list[Array]] = [[] for _ in extractors]
        line, done = ProgressLine("samples"), 0
        try:
            ours = [self._here(extractor) for extractor in extractors]
            for images in sample_batches(generator, self.model, self.count, self.config.seed, self.device):
                for extractor, parts in zip(ours, rows, strict=True):
                    parts.append(extractor(fitted(images, extractor.image_size, extractor.channels)))
                done += len(images)
                line(done, done / self.count, 0)
        finally:
            line.close()
        return [np.concatenate(parts) for parts in rows]

    def prepare(self) -> None:
        """Compute the features of the real images, which are the same for all checkpoints.

        Raises:
            DataError: there are too few images, they are damaged, or the test images are training images.
        """
        if self.config.task == "fidelity":
            values = self._values(self.extractor, self.data, self._draw(self.data))
            self._reference = Reference(self._compared(values), self.device)
            return
        assert self.test_data is not None
        of_rooms = all(is_rooms(data.path) for data in (self.data, self.test_data))  # both begin with room 0
        if of_rooms or self.test_data.digest == self.data.digest:
            raise DataError(f"test_data {self.test_data.path!r} holds images of data {self.data.path!r}: take others")
        wanted = min(self.test_data.count, self.count)
        chosen = permutation(self.test_data.count, self.config.seed, "fidelity")[:wanted]
        self._spaces: dict[str, tuple[Extractor, Array, Floats]] = {}
        for name, space in (("pixel", RawPixels(32, 3)), ("feature", self.extractor)):
            training = self._values(space, self.data)
            held_out = nearest_distances(self._values(space, self.test_data, chosen), training, self.device)
            self._spaces[name] = (space, training, held_out)

    def _compared(self, values: Array) -> Array:
        return values[:, :INCEPTION_FEATURES] if self.is_inception else values

    def score(self, generator: Generator) -> Entry:
        """Score a generator, and return its entry for scores.json, to which the caller adds the step.

        Raises:
            RunDirectoryError: its samples are not finite.
        """
        begun = time.perf_counter()
        if self.config.task == "fidelity":
            (values,) = self._samples(generator, [self.extractor])
            metrics = self._compare(values)
        else:
            rows = self._samples(generator, [space for space, _, _ in self._spaces.values()])
            metrics = {}
            for (name, (_, training, held_out)), values in zip(self._spaces.items(), rows, strict=True):
                distances = nearest_distances(values, training, self.device)
                found = judge_copies(distances, held_out, self.config.seed)
                metrics |= {f"{name}_{metric}": value for metric, value in found.items()}
        return self._entry(self.model.name, metrics, begun)

    def score_real_images(self) -> Entry | None:
        """Score real images like samples, as the control of `fidelity`; return None if there are not enough."""
        begun = time.perf_counter()
        source, first = (self.data, self.count) if self.test_data is None else (self.test_data, 0)
        if self.config.task != "fidelity" or source.count < first + self.count:
            return None
        return self._entry(
            "real images", self._compare(self._values(self.extractor, source, self._draw(source, first))), begun
        )

    def _compare(self, values: Array) -> dict[str, Metric]:
        metrics = self._reference.compare(self._compared(values), frechet=self.count >= FRECHET_IMAGES)
        if not self.is_inception:
            return metrics
        if "frechet_distance" in metrics:
            metrics["fid"] = metrics.pop("frechet_distance")
        return metrics | measure_inception(self._reference.rows, values, self.device)

    def _split(self) -> dict[str, Any]:
        test = self.test_data
        return {"data": self.data.digest, "test_data": None if test is None else test.digest}

    def find(self, finished: list[Entry], about: Entry) -> Entry | None:
        """Return the finished entry of the same checkpoint, weights, data and protocol, None if there is none."""
        same = {**about, "protocol": self.protocol, "split": self._split()}
        return next((entry for entry in finished if same.items() <= ({"weights": "raw"} | entry).items()), None)

    def _entry(self, method: str, metrics: dict[str, Metric], begun: float) -> Entry:
        return {
            "step": None,
            "method": method,
            "protocol": self.protocol,
            "checkpoint_digest": None,
            "metrics": {name: asdict(metric) | {"ci95": list(metric.ci95)} for name, metric in metrics.items()},
            "split": self._split(),
            "seed": self.config.seed,
            "seconds": round(time.perf_counter() - begun, 2),
            "device": device_name(self.device),
        }


def evaluate_generators(
    config: EvaluateConfig,
    run: Run,
    device: torch.device,
    pool: TaskPool,
    show: Callable[[str, list[Entry]], None],
    say: Callable[[str], None],
    workers_device: str | None = None,
) -> list[Entry]:
    """Score the generators of a run's checkpoints; each score is written to scores.json as soon as it is measured.

    Args, returns and raises: as `scoring.evaluate`.
    """
    steps = run.chosen_steps(config.step)
    finished = run.entries().get(config.task, [])  # read before the work, so that a damaged file is reported first
    if config.step != "all":
        finished = []
    model = load_generator(run, steps[0], config.weights).model

    def load(run: Run, step: int) -> tuple[int, LoadedGenerator]:
        return step, load_generator(run, step, config.weights)

    evaluation = GeneratorEvaluation(config, run.settings, model, device, pool, workers_device)

    def scores() -> Iterator[Entry]:
        for step, loaded in run.load_each(load, steps, say):
            about = loaded.entry(step)
            yield evaluation.find(finished, about) or evaluation.score(loaded.network) | about
        about = {"step": None, "checkpoint_digest": None}
        real = evaluation.find(finished, about) or evaluation.score_real_images()
        if real is not None:
            yield real

    try:
        evaluation.prepare()
        return add_each(run.folder, config.task, scores(), finished, partial(show, evaluation.protocol), say)
    finally:
        if not config.keep_features:
            evaluation.files.clear()
