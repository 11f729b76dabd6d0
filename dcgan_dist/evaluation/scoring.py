"""The command `evaluate`: features of a discriminator and controls, scored by a protocol, written to scores.json."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig, is_rooms
from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation.baselines import NearestNeighbours, Pixels
from dcgan_dist.evaluation.feature_files import Array, Extractor, FeatureFiles, RawPixels
from dcgan_dist.evaluation.features import (
    TrainedDiscriminator,
    load_discriminator,
    measure_statistics,
    prepare_extractor,
    random_discriminator,
)
from dcgan_dist.evaluation.kmeans import fit_kmeans, standardise
from dcgan_dist.evaluation.labelled import Labels, class_labels, open_labelled, room_labels
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.evaluation.supervised import SupervisedCNN, draw_trial
from dcgan_dist.evaluation.tasks import (
    L2SVM,
    Z95,
    Learner,
    Partition,
    Rows,
    Score,
    Values,
    divide,
    draw_labels,
    permutation,
    score_draws,
    score_full,
)
from dcgan_dist.parallel import TaskPool
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import Entry, add_each
from dcgan_dist.settings import as_list, modernised
from dcgan_dist.storage.cache import cache_directory

_SVHN_LABELS = 100
_SVHN_DRAWS = 100
_SVHN_VALIDATION = 10_000
_DRAWS = 10
_CNN_DRAWS = 5
# Settings that determine the score of every method, and further ones of some methods.
_DECIDING = (
    *("labels_per_class", "draws", "choosing_draws", "validation", "test", "cs", "pooling", "statistics", "unlabelled"),
    *("precision", "store", "count", "seed"),
)
_DECIDING_FOR = {"kmeans": ("centroids", "patches"), "cnn": ("trials", "epochs")}
_RANDOM_BATCHES = 50  # batches over which the statistics of random weights are measured


@dataclass(frozen=True)
class _Target:
    """Something to predict from an image: its class, or an attribute of a room."""

    name: str
    partition: Partition
    names: tuple[str, ...]


def _recorded_settings(entry: Entry) -> dict[str, Any]:
    """Return the settings of an entry of scores.json, with the names of this version."""
    recorded = entry.get("settings")
    settings = modernised(EvaluateConfig, recorded if isinstance(recorded, dict) else {})
    with suppress(ValueError):  # not numbers: the entry is of another tool, and matches no settings
        settings["cs"] = tuple(float(value) for value in as_list(settings.get("cs", ())))
    return settings


class Evaluation:
    """A task and its data; it can score any number of representations.

    Args:
        config: the settings.
        model: settings of the discriminators, which give the size and channels of the images.
        device: where to compute.
        pool: the processes that extract features.
        workers_device: device of these processes; if None, `device`.

    Raises:
        ConfigError, DataError: the data do not fit the task.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        model: ModelConfig,
        device: torch.device,
        pool: TaskPool,
        workers_device: str | None = None,
    ) -> None:
        assert model.image_size is not None
        assert model.channels is not None
        self.config, self.model, self.device, self._pool = config, model, device, pool
        self._workers_device = workers_device or str(device)
        self.image_size, self.channels = model.image_size, model.channels
        self.cache = cache_directory(config.cache)
        self.files = FeatureFiles(self.cache, config.cache_gib)
        self.data = self._open(config.data)
        self.test_data = None
        if config.test_data is not None:
            self.test_data = self._open(config.test_data, "test")
        self._chosen: list[Rows | None] = []  # ascending numbers of the images used of data and test set; None for all
        self.targets = self._targets()
        svhn = config.task == "svhn"
        given, draws = config.labels_per_class, config.draws
        self.per_class = given if given is not None else _SVHN_LABELS if svhn else 0
        self.draws = draws if draws is not None else _SVHN_DRAWS if svhn else _DRAWS
        if self.per_class:
            for target in self.targets:  # refuses too few labels before features are extracted, which takes long
                draw_labels(target.partition, self.per_class, config.seed, "test", 0, target.names)

    def _open(self, path: str | None, split: Literal["train", "test"] = "train") -> Dataset:
        size, channels = self.image_size, self.channels
        return open_labelled(path, self.config.task, image_size=size, channels=channels, cache=self.cache, split=split)

    def _targets(self) -> list[_Target]:
        config, data, test = self.config, self.data, self.test_data
        labels = self._labels(data)
        tests: dict[str, Labels] = {} if test is None else self._labels(test)
        if test is not None and test.classes != data.classes:
            raise DataError(f"test_data {test.path!r} has other classes than data {data.path!r}")
        validation = config.validation
        if validation is None and config.task == "svhn" and len(labels["class"]) >= 2 * _SVHN_VALIDATION:
            validation = _SVHN_VALIDATION
        return [
            _Target(
                name,
                divide(
                    of_all,
                    seed=config.seed,
                    test=config.test,
                    validation=validation,
                    test_labels=tests.get(name),
                    where=repr(data.path) if config.count is None else f"{data.path!r} with --count {config.count}",
                ),
                data.classes if name == "class" else (),
            )
            for name, of_all in labels.items()
        ]

    def _labels(self, data: Dataset) -> dict[str, Labels]:
        """Return the labels of the images of a data set that are used, and append their numbers to `_chosen`."""
        labels = room_labels(data) if self.config.task == "rooms" else {"class": class_labels(data)}
        usable, most = np.flatnonzero(next(iter(labels.values())) >= 0), self.config.count
        if most is None or most >= len(usable):
            self._chosen.append(None)
            return labels
        rows = np.sort(usable[permutation(len(usable), self.config.seed, "images")[:most]])
        self._chosen.append(rows)
        return {name: of_all[rows] for name, of_all in labels.items()}

    @property
    def protocol(self) -> str:
        """Name of the protocol: the number of labels, and the settings that differ from the defaults."""
        config = self.config
        parts = [f"{self.per_class}-per-class" if self.per_class else "full"]
        parts += [config.pooling] * (config.pooling != "paper")
        parts += [config.statistics] * (config.statistics != "running")
        parts += [config.precision] * (config.precision != "fp32")
        parts += [f"{config.count}-images"] * (config.count is not None)
        parts += [f"seed-{config.seed}"] * (config.seed != 0)
        return "/".join(parts)

    def values(self, extractor: Extractor) -> tuple[Any, Any]:
        """Return the features of the data and of the test set; if there is no test set, those of the data twice."""
        rows = []
        sets = [self.data] if self.test_data is None else [self.data, self.test_data]
        for data, chosen in zip(sets, self._chosen, strict=True):
            line = ProgressLine(f"features of {data.path}")

            def report(done: int, count: int, line: ProgressLine = line) -> None:
                line(done, done / count, 0)

            try:
                rows.append(self.files.get(extractor, data, self._pool, report, chosen))
            finally:
                line.close()
        return rows[0], rows[-1]

    def score(
        self,
        method: str,
        learner: Learner,
        values: Values,
        test_values: Values,
        begun: float,
        config: EvaluateConfig | None = None,
        draws: int | None = None,
    ) -> Entry:
        """Score one representation by the protocol, and return its entry for scores.json.

        Args:
            method: name of the representation.
            learner: the classifier.
            values: features of the data.
            test_values: features of the test set.
            begun: `time.perf_counter()` at the start of the work.
            config: settings of this method; if None, those of the task.
            draws: number of draws of labels; if None, that of the task.
        """

        def score_target(target: _Target) -> Score:
            if not self.per_class:
                return score_full(learner, values, test_values, target.partition, self.device)
            return score_draws(
                learner,
                values,
                test_values,
                target.partition,
                self.device,
                per_class=self.per_class,
                draws=self.draws if draws is None else draws,
                choosing_draws=(config or self.config).choosing_draws,
                seed=self.config.seed,
                names=target.names,
            )

        scores = {target.name: score_target(target) for target in self.targets}
        return {
            "step": None,
            "method": method,
            "protocol": self.protocol,
            "checkpoint_digest": None,
            "metrics": _metrics(scores, self.targets),
            learner.parameter: {name: score.chosen for name, score in scores.items()}
            if len(scores) > 1
            else next(iter(scores.values())).chosen,
            "validation": {
                name: {f"{value:g}": round(share, 3) for value, share in score.validation.items()}
                for name, score in scores.items()
            },
            "features": values.shape[1],
            "split": self._split(),
            "settings": self.settings(method),
            "seconds": round(time.perf_counter() - begun, 2),
            "device": device_name(self.device),
        }

    def _split(self) -> dict[str, Any]:
        partition = self.targets[0].partition
        return {
            "data": self.data.digest,
            "test_data": None if self.test_data is None else self.test_data.digest,
            "train": len(partition.train),
            "validation": len(partition.validation),
            "test": len(partition.test),
        }

    def settings(self, method: str) -> dict[str, Any]:
        """Return the settings that, with the data, determine the scores of a method, as written to scores.json."""
        names = (*_DECIDING, *_DECIDING_FOR.get(method.partition("-")[0], ()))
        return {name: getattr(self.config, name) for name in names}

    def find(self, entries: Sequence[Entry], method: str, step: int | None, digest: str | None = None) -> Entry | None:
        """Return the entry of the same network, data and settings, None if there is none.

        Args:
            entries: entries of the task.
            method: name of the method.
            step: step of the checkpoint; None for a control.
            digest: digest of the checkpoint.
        """
        same = {"method": method, "step": step, "split": self._split()}
        if step is not None:
            same["checkpoint_digest"] = digest
        candidates = (entry for entry in entries if all(entry.get(key) == same[key] for key in same))
        ours = self.settings(method)
        return next((entry for entry in candidates if _recorded_settings(entry) == ours), None)

    def svm(self) -> L2SVM:
        """Return the paper's classifier with the values of C of the settings."""
        return L2SVM(self.config.c_values, self.device)

    def score_discriminator(self, trained: TrainedDiscriminator, method: str | None = None) -> Entry:
        """Score a discriminator with the pooling and precision of the settings; `method` is by default its family."""
        begun = time.perf_counter()
        config = self.config
        extractor = prepare_extractor(
            trained,
            self.cache,
            pooling=config.pooling,
            precision=config.precision,
            dtype=config.store,
            device=self._workers_device,
        )
        values, test_values = self.values(extractor)
        entry = self.score(method or trained.model.name, self.svm(), values, test_values, begun)
        return entry | {"step": trained.step, "checkpoint_digest": trained.digest, "statistics": trained.statistics}

    def controls(self, run: dict[str, Any], finished: Sequence[Entry]) -> Iterator[Entry]:
        """Yield the scores of the controls that the settings ask for; finished ones are not measured again."""
        for name in self.config.chosen_baselines:
            found = self.find(finished, f"kmeans-{self.config.centroids}" if name == "kmeans" else name, None)
            yield found or self._CONTROLS[name](self, run)

    def _random(self, run: dict[str, Any]) -> Entry:
        trained = random_discriminator(self.model, self.config.seed)
        # Its running averages were never updated; with them, activations would become much smaller from layer to layer.
        ready = with_measured_statistics(self.config, trained, run, self.device, _RANDOM_BATCHES)
        return self.score_discriminator(ready, "random")

    def _pixels(self, _run: dict[str, Any]) -> Entry:
        begun = time.perf_counter()
        return self.score("pixels", self.svm(), *self._pixel_values(), begun)

    def _knn(self, _run: dict[str, Any]) -> Entry:
        begun = time.perf_counter()
        return self.score("knn", NearestNeighbours(self.device), *self._pixel_values(), begun)

    def _pixel_values(self) -> tuple[Values, Values]:
        values, test_values = self._pixel_rows()
        return Pixels(values), Pixels(test_values)

    def _kmeans(self, _run: dict[str, Any]) -> Entry:
        begun = time.perf_counter()
        config, (pixels, _) = self.config, self._pixel_rows()
        train = self.targets[0].partition.train
        extractor = fit_kmeans(
            pixels,
            train,
            self.data.digest if self._chosen[0] is None else f"{self.data.digest}-{config.count}-{config.seed}",
            self.cache,
            image_size=self.image_size,
            channels=self.channels,
            centroids=config.centroids,
            patches=config.patches,
            seed=config.seed,
            device=self.device,
        )
        values, test_values = standardise(*self.values(extractor), train)
        return self.score(f"kmeans-{config.centroids}", self.svm(), values, test_values, begun)

    def _cnn(self, _run: dict[str, Any]) -> Entry:
        begun = time.perf_counter()
        config = self.config
        trials = tuple(float(number) for number in range(config.trials))
        learner = SupervisedCNN(
            self.model,
            config.epochs,
            config.seed,
            self.device,
            trials,
            pool=self._pool,
            workers_device=self._workers_device,
        )
        fewer = replace(config, choosing_draws=1)  # each trial of the search trains a network for each draw
        entry = self.score("cnn", learner, *self._pixel_values(), begun, fewer, min(self.draws, _CNN_DRAWS))
        chosen = entry["trial"] if isinstance(entry["trial"], dict) else {"class": entry["trial"]}
        of = {name: asdict(draw_trial(config.seed, int(number))) for name, number in chosen.items()}
        return entry | {"trials": config.trials, "epochs": config.epochs, "hyperparameters": of}

    def _pixel_rows(self) -> tuple[Array, Array]:
        return self.values(RawPixels(self.image_size, self.channels))

    _CONTROLS: dict[str, Callable[[Evaluation, dict[str, Any]], Entry]] = {  # noqa: RUF012
        "random": _random,
        "pixels": _pixels,
        "knn": _knn,
        "kmeans": _kmeans,
        "cnn": _cnn,
    }


def _metrics(scores: dict[str, Score], targets: list[_Target]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for target in targets:
        score = scores[target.name]
        about = {"value": score.value, "ci95": list(score.ci95), "n": score.n}
        if score.draws:
            about |= {"draws": score.draws, "sigma": score.sigma}
        truth = target.partition.test_labels[target.partition.test]
        about["most_frequent"] = 100 * float(np.bincount(truth).max()) / len(truth)
        metrics["accuracy" if len(targets) == 1 else target.name] = about
    if len(targets) > 1:
        metrics = {"accuracy": _mean(list(scores.values())), **metrics}
    return metrics


def _mean(scores: list[Score]) -> dict[str, Any]:
    """Return the mean accuracy over several targets of the same images.

    The targets of an image are not independent, so the interval is computed from the images' mean accuracies.
    """
    shares = 100 * np.mean([score.correct for score in scores], axis=0)  # (draws, images)
    value = float(shares.mean())
    if scores[0].draws > 1:
        sigma = float(shares.mean(axis=1).std(ddof=1))
        half = Z95 * sigma
        more = {"draws": scores[0].draws, "sigma": sigma}
    else:
        half = Z95 * float(shares.std(ddof=1)) / shares.size**0.5 if shares.size > 1 else 100.0
        more = {}
    return {"value": value, "ci95": [max(0.0, value - half), min(100.0, value + half)], "n": shares.shape[1], **more}


def with_measured_statistics(
    config: EvaluateConfig,
    trained: TrainedDiscriminator,
    run: dict[str, Any],
    device: torch.device,
    batches: int | None = None,
) -> TrainedDiscriminator:
    """Return the discriminator with batch-norm statistics measured on the run's unlabelled images.

    Args:
        config: the settings; `unlabelled` is the path of the images if they are no longer where the run had them.
        trained: the discriminator.
        run: settings of the run.
        device: where to compute.
        batches: number of batches; all if None.

    Raises:
        DataError: the images cannot be opened, or have another number of channels.
    """
    about = run.get("data", {})
    path = config.unlabelled or str(about.get("path"))
    size = trained.image_size if is_rooms(path) else None
    member = None if config.unlabelled else about.get("image_member")
    try:
        dataset = open_dataset(path, image_size=size, cache=config.cache, image_member=member)
    except DataError as error:
        raise DataError(f"{error}; batch-norm statistics are measured there: give --unlabelled PATH") from error
    if dataset.channels != trained.channels:
        raise DataError(f"unlabelled is {path!r}, which has {dataset.channels} channels, not {trained.channels}")
    return measure_statistics(trained, dataset, device, batches)


def device_name(device: torch.device) -> str:
    """Return the name of a device for scores.json."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def evaluate(
    config: EvaluateConfig,
    run: Run,
    device: torch.device,
    pool: TaskPool,
    show: Callable[[str, list[Entry]], None],
    say: Callable[[str], None],
    workers_device: str | None = None,
) -> list[Entry]:
    """Score a run's checkpoints and the controls; each score is written to scores.json as soon as it is measured.

    With `step: all`, checkpoints that already have a score from the same data and settings are not scored again.

    Args:
        config: the settings.
        run: the run.
        device: where to compute.
        pool: the processes that extract features.
        show: called with the protocol and all entries at the end.
        say: called with a line of text about existing scores and damaged checkpoints.
        workers_device: device of the processes; if None, `device`.

    Returns:
        The entries: checkpoints in the order of their steps, then controls in the order of the settings.

    Raises:
        ConfigError, DataError, RunDirectoryError: the settings, the data or the run cannot be used; no score of the
            checkpoint concerned was written.
    """
    steps = run.chosen_steps(config.step)
    finished = run.entries().get(config.task, [])  # read before the work, so that a damaged file is reported first
    if config.step != "all":
        finished = []
    discriminators = run.load_each(load_discriminator, steps, say)
    first = next(discriminators)
    evaluation = Evaluation(config, first.model, device, pool, workers_device)
    scores = _scores(evaluation, itertools.chain([first], discriminators), run.settings, finished)
    try:
        return add_each(run.folder, config.task, scores, finished, partial(show, evaluation.protocol), say)
    finally:
        if not config.keep_features:
            evaluation.files.clear()


def _scores(
    evaluation: Evaluation, discriminators: Iterable[TrainedDiscriminator], run: dict[str, Any], finished: list[Entry]
) -> Iterator[Entry]:
    config, device = evaluation.config, evaluation.device
    for trained in discriminators:
        entry = evaluation.find(finished, trained.model.name, trained.step, trained.digest)
        if entry is None:
            if config.statistics == "measured":
                trained = with_measured_statistics(config, trained, run, device)  # noqa: PLW2901
            entry = evaluation.score_discriminator(trained)
        yield entry
    yield from evaluation.controls(run, finished)


__all__ = ["Evaluation", "evaluate"]
