"""`svm`: our linear SVM and scikit-learn's LinearSVC on features of discriminators, alternating in one run.

The images are CIFAR-10's if the environment variable DCGAN_DIST_DATA names a folder with `cifar10_train.tar.gz` (class
folders), else procedural rooms with the hue of the wall as their class; the discriminators have random weights.

Times are reported twice: as wall-clock time, and as CPU time of all threads, which depends less on other programs on
the same cores. Each side is measured for minutes, one after the other, so that on shared cores the CPU time is the
fairer figure.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from benchmarks.measuring import Bench, Record, Turns, alternate, in_own_process, peak_mib
from dcgan_dist.config import ModelConfig
from dcgan_dist.data.images import Pixels, Target, fit
from dcgan_dist.data.rooms import WALL_HUES, draw_room
from dcgan_dist.data.sources import classes_of, open_source
from dcgan_dist.distributed import pick_device
from dcgan_dist.evaluation.features import freeze, pool_maps, random_discriminator
from dcgan_dist.evaluation.linear_svm import LinearSVM, fit_draws, fit_path

CS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)  # of the released code
CLASSES = 10
MODELS = {
    7168: ModelConfig(image_size=32, channels=3, classes=0, ngf=64, ndf=64, kernel_size=5),
    28672: ModelConfig(image_size=32, channels=3, classes=0, ngf=128, ndf=128, kernel_size=3, convs_per_scale=2),
}
VALIDATION = 2000
LARGE = 50_000
OURS, LINEAR_SVC = "ours", "scikit-learn's LinearSVC"

Figures = Mapping[str, float]
Fits = tuple[slice | Tensor, LinearSVM, LinearSVC]
"""The rows of some samples, and what both sides have fitted to them."""


def labelled_images(count: int) -> tuple[Pixels, npt.NDArray[np.int64], str]:
    """Return images (count, 32, 32, 3), their classes, and the name of their set."""
    archive = Path(os.environ.get("DCGAN_DIST_DATA", "."), "cifar10_train.tar.gz")
    if not archive.exists():
        rooms = [draw_room(0, index, 64) for index in range(count)]
        images = np.stack([fit(image, 32, 3) for image, _ in rooms])
        return images, np.array([WALL_HUES.index(known["wall_hue"]) for _, known in rooms]), "rooms"
    items = [item for item in open_source("folder", archive).items() if item.content is not None]
    names, numbers = classes_of({item.folders for item in items}, None)
    chosen = np.random.default_rng(0).permutation(len(items))[:count].tolist()
    contents = [(items[index].content, numbers[items[index].folders]) for index in chosen]
    images = np.stack([content.picture(Target(32, 3))[0] for content, _ in contents if content is not None])
    assert len(names) == CLASSES
    return images, np.array([number for _, number in contents]), "CIFAR-10"


@torch.no_grad()
def random_features(images: Pixels, width: int) -> Tensor:
    """Return the features, (n, width), float32, of a discriminator with random weights and measured statistics."""
    network = random_discriminator(MODELS[width], seed=1).network
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches
    network.train()
    for batch in values[:1280].split(128):
        network.feature_maps(batch, batch.new_zeros(len(batch), 0))
    frozen = freeze(network, "fp32", "cpu")
    features = torch.empty(len(images), width)
    for start in range(0, len(images), 100):
        batch = values[start : start + 100]
        features[start : start + 100] = torch.cat(pool_maps(frozen.feature_maps(batch, batch[:, :0, 0, 0]), "paper"), 1)
    return features


class Samples(NamedTuple):
    """Samples of a set, (n, d), float32, on the CPU, and their classes; held-out ones to choose C on, and theirs."""

    name: str
    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def _fit_svc(x: Tensor, y: Tensor, c: float) -> LinearSVC:
    return LinearSVC(C=c, dual="auto", max_iter=100_000).fit(x.numpy(), y.numpy())


def _objective_of(model: LinearSVC, x: Tensor, y: Tensor, c: float) -> float:
    """Return the sum over the classes of the objective that LinearSVC minimises, in float64."""
    weights, intercepts = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    signs = 2.0 * (y[:, None] == torch.arange(CLASSES)) - 1
    total = float((weights.square().sum() + intercepts.square().sum()) / 2)
    for block, sign in zip(x.split(500), signs.split(500), strict=True):
        slack = 1 - sign * (block.double() @ weights.T + intercepts)
        total += c * float(slack.clamp_min(0).square().sum())
    return total


def _accuracy(model: LinearSVM | LinearSVC, samples: Samples) -> float:
    x = samples.held_x
    guess = model.predict(x) if isinstance(model, LinearSVM) else torch.from_numpy(model.predict(x.numpy()))
    return float((guess == samples.held_y).double().mean())


def _figures(
    bench: Bench, what: str, turns: Turns, fits: Sequence[Fits], samples: Samples, goal: float | None
) -> Iterator[Record]:
    """Yield what two sides took, and for each fit how far they agree; without a GPU, CPU seconds as well."""
    what += ", tolerance of both 1e-4"
    for unit in ("s",) if torch.cuda.is_available() else ("s", "CPU s"):
        yield bench.compare(what, turns, OURS, LINEAR_SVC, unit, goal if unit == "s" else None)
    differences, accuracies, theirs = [], [], []
    for rows, ours, other in fits:
        reference = _objective_of(other, samples.x[rows], samples.y[rows], ours.c)
        differences.append(abs(sum(ours.objective) / reference - 1))
        accuracies.append(_accuracy(ours, samples))
        theirs.append(_accuracy(other, samples))
    yield bench.record(f"{what}: objective", "relative difference from LinearSVC", differences)
    yield bench.record(f"{what}: held-out accuracy", "share", accuracies, LINEAR_SVC, theirs)
    yield bench.record(f"{what}: products with the samples", "products", [ours.iterations for _, ours, _ in fits])


def compare_path(bench: Bench, samples: Samples, device: torch.device, cs: Sequence[float] = CS) -> Iterator[Record]:
    """Yield the figures of the path over all values of C, and of the one that is best on the held-out samples."""
    fits: dict[str, list[Any]] = {}

    def ours(cs: Sequence[float]) -> Figures:
        fits[OURS] = fit_path(samples.x, samples.y, cs, classes=CLASSES, device=device)
        return {}

    def theirs(cs: Sequence[float]) -> Figures:
        fits[LINEAR_SVC] = [_fit_svc(samples.x, samples.y, c) for c in cs]
        return {}

    everything = slice(None)
    for which, goal in ((f"path of {len(cs)} values of C", 8.0), ("C chosen on validation", 3.0)):
        turns = alternate({OURS: partial(ours, cs), LINEAR_SVC: partial(theirs, cs)}, bench.rounds)
        what = f"{samples.name}: fit {len(samples.x)} x {samples.x.shape[1]} x {CLASSES}, {which}"
        pairs = [(everything, *both) for both in zip(fits[OURS], fits[LINEAR_SVC], strict=True)]
        yield from _figures(bench, what, turns, pairs, samples, goal)
        cs = [max(fits[OURS], key=lambda fit: _accuracy(fit, samples)).c]


def compare_draws(bench: Bench, samples: Samples, draws: int, device: torch.device, size: int) -> Iterator[Record]:
    """Yield the figures of `draws` fits to `size` random samples each, a round for each.

    C is chosen on the held-out samples, over the first ten draws.
    """
    random = torch.Generator().manual_seed(0)
    rows = [torch.randperm(len(samples.x), generator=random)[:size] for _ in range(draws)]
    scores = torch.zeros(len(CS))
    for fits in fit_draws(samples.x, samples.y, list(rows[:10]), CS, classes=CLASSES, device=device):
        scores += torch.tensor([_accuracy(fit_of_c, samples) for fit_of_c in fits])
    c = CS[int(scores.argmax())]
    ours: list[LinearSVM] = []
    theirs: list[LinearSVC] = []

    def fit_ours() -> Figures:
        chosen = rows[len(ours)]
        ours.extend(fit_path(samples.x[chosen], samples.y[chosen], [c], classes=CLASSES, device=device))
        return {}

    def fit_theirs() -> Figures:
        chosen = rows[len(theirs)]
        theirs.append(_fit_svc(samples.x[chosen], samples.y[chosen], c))
        return {}

    turns = alternate({OURS: fit_ours, LINEAR_SVC: fit_theirs}, draws)
    what = f"{samples.name}: each of {draws} fits to {size} x {samples.x.shape[1]} x {CLASSES}, C = {c:g}"
    yield from _figures(bench, what, turns, list(zip(rows, ours, theirs, strict=True)), samples, 5.0)


def fit_large(path: str, labels: str, device: str) -> dict[str, float]:
    """Fit a memory map; return the products, the gap and the peak memory."""
    begun, used = time.perf_counter(), time.process_time()
    svm = fit_path(np.load(path, mmap_mode="r"), np.load(labels), CS[:1], classes=CLASSES, device=device)[0]
    figures = {"s": time.perf_counter() - begun, "CPU s": time.process_time() - used}
    return {**figures, "GiB": peak_mib() / 1024, "products": svm.iterations, "certified gap": svm.gap}


def measure_memory(bench: Bench, samples: Samples, device: torch.device, count: int) -> Iterator[Record]:
    """Yield the figures of a fit to `count` samples in a memory map of float16: its peak memory, map included.

    The samples are mixtures of each sample with another of its class.
    """
    x, y = samples.x, samples.y.numpy()
    random = np.random.default_rng(0)
    numbers = np.arange(count) % len(x)
    labels = y[numbers]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "x.npy"), Path(folder, "y.npy")
        np.save(files[1], labels)
        stored = np.lib.format.open_memmap(files[0], "w+", np.float16, (count, x.shape[1]))
        for label in range(CLASSES):
            members = np.flatnonzero(y == label)
            for rows in np.array_split(np.flatnonzero(labels == label), 1 + count // (CLASSES * 200)):
                share = torch.from_numpy(random.random((len(rows), 1), np.float32))
                others = x[torch.from_numpy(random.choice(members, len(rows)))]
                stored[rows] = torch.lerp(x[torch.from_numpy(numbers[rows])], others, share).half().numpy()
        stored.flush()
        del stored
        figures = alternate({OURS: in_own_process(fit_large, *files, device)}, 1)[OURS]
    what = f"{samples.name}: fit {count} x {x.shape[1]} x {CLASSES} from a float16 memory map, C = {CS[0]:g}"
    for unit, values in figures.items():
        yield bench.record(what, unit, values, goal=8.0 if unit == "GiB" else None)


def bench_svm(bench: Bench) -> Iterator[Record]:
    """Measure 100 draws, a path over C, one C, and the memory of a large fit.

    LinearSVC takes minutes for each value of C in the path.
    """
    device = pick_device("auto")
    sizes = bench.size([5000, VALIDATION], [200, 100])
    images, classes, name = labelled_images(sum(sizes))
    y, held_y = torch.from_numpy(classes).split(sizes)
    x, held_x = random_features(images, 7168).split(sizes)
    samples = Samples(name, x, y, held_x, held_y)
    yield from compare_draws(bench, samples, bench.size(100, 3), device, bench.size(1000, 100))
    if not bench.quick:
        x, held_x = random_features(images, 28672).split(sizes)
        samples = Samples(name, x, y, held_x, held_y)
    yield from compare_path(bench, samples, device, bench.size(CS, CS[:2]))
    yield from measure_memory(bench, samples, device, bench.size(LARGE, 1000))
