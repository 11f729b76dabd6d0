"""`svm`: our linear SVM and scikit-learn's LinearSVC on features of discriminators, alternating in one run.

The images are CIFAR-10's if the environment variable DCGAN_DIST_DATA names a folder with `cifar10_train.tar.gz` (class
folders), else procedural rooms with the hue of the wall as their class; the discriminators have random weights.

Times are reported twice: as wall-clock time, and as CPU time, which depends less on other programs on the same cores.
Each side is measured for minutes, one after the other, so that on shared cores the CPU time is the fairer figure.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

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


class _Times(NamedTuple):
    """Wall-clock seconds and CPU seconds (of all threads together)."""

    clock: float
    cpu: float

    @staticmethod
    def now() -> _Times:
        return _Times(time.perf_counter(), time.process_time())

    def since(self, begun: _Times) -> _Times:
        return _Times(self.clock - begun.clock, self.cpu - begun.cpu)


def _middle(times: Sequence[_Times]) -> _Times:
    return _Times(median(each.clock for each in times), median(each.cpu for each in times))


def _total(times: Sequence[_Times]) -> _Times:
    return _Times(sum(each.clock for each in times), sum(each.cpu for each in times))


def _compared(ours: _Times, theirs: _Times, device: torch.device) -> dict[str, float]:
    """Return the times of both sides and their ratio, for a record."""
    record = {
        "seconds": round(ours.clock, 2),
        "linear_svc_seconds": round(theirs.clock, 2),
        "times": round(theirs.clock / ours.clock, 2),
    }
    if device.type == "cpu":
        record |= {
            "cpu_seconds": round(ours.cpu, 2),
            "linear_svc_cpu_seconds": round(theirs.cpu, 2),
            "cpu_times": round(theirs.cpu / ours.cpu, 2),
        }
    return record


def _timed_svc(x: Tensor, y: Tensor, c: float) -> tuple[_Times, LinearSVC]:
    model = LinearSVC(C=c, dual="auto", max_iter=100_000)
    begun = _Times.now()
    model.fit(x.numpy(), y.numpy())
    return _Times.now().since(begun), model


def _timed_path(x: Tensor, y: Tensor, cs: Sequence[float], device: torch.device) -> tuple[_Times, list[LinearSVM]]:
    begun = _Times.now()
    fits = fit_path(x, y, cs, classes=CLASSES, device=device)
    return _Times.now().since(begun), fits


def _objective_of(model: LinearSVC, x: Tensor, y: Tensor, c: float) -> float:
    """Return the sum over the classes of the objective that LinearSVC minimises, in float64."""
    weights, intercepts = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    signs = 2.0 * (y[:, None] == torch.arange(CLASSES)) - 1
    total = float((weights.square().sum() + intercepts.square().sum()) / 2)
    for block, sign in zip(x.split(500), signs.split(500), strict=True):
        slack = 1 - sign * (block.double() @ weights.T + intercepts)
        total += c * float(slack.clamp_min(0).square().sum())
    return total


def _accuracy(model: LinearSVM | LinearSVC, x: Tensor, y: Tensor) -> float:
    guess = model.predict(x) if isinstance(model, LinearSVM) else torch.from_numpy(model.predict(x.numpy()))
    return float((guess == y).double().mean())


def _agreement(
    ours: LinearSVM, theirs: LinearSVC, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor
) -> dict[str, Any]:
    reference = _objective_of(theirs, x, y, ours.c)
    return {
        "c": ours.c,
        "gap": float(f"{ours.gap:.2e}"),
        "products": ours.iterations,
        "linear_svc_iterations": int(theirs.n_iter_),
        "relative_difference_of_objectives": float(f"{sum(ours.objective) / reference - 1:.2e}"),
        "accuracy": round(_accuracy(ours, held_x, held_y), 4),
        "linear_svc_accuracy": round(_accuracy(theirs, held_x, held_y), 4),
    }


def compare_path(
    x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield the records of one C, chosen on the held-out samples, and of the path over all of `CS`.

    Args:
        x: samples to fit, (n, d), float32, on the CPU.
        y: their classes.
        held_x: validation samples.
        held_y: their classes.
        rounds: number of measurements of each side.
        device: that ours computes on.
    """
    what = f"fit {len(x)} x {x.shape[1]} x {CLASSES}"
    common = {"bench": "svm", "tolerance": 1e-4, "linear_svc_tolerance": 1e-4, "rounds": rounds, "device": str(device)}
    common["threads"] = torch.get_num_threads()
    paths = [_timed_path(x, y, CS, device) for _ in range(rounds)]
    fits = paths[0][1]
    best = max(range(len(CS)), key=lambda index: _accuracy(fits[index], held_x, held_y))
    base = [[_timed_svc(x, y, CS[best]) for _ in range(rounds)]]
    ours = [_timed_path(x, y, [CS[best]], device) for _ in range(rounds)]
    agreement = _agreement(ours[0][1][0], base[0][0][1], x, y, held_x, held_y)
    times = _compared(_middle([each for each, _ in ours]), _middle([each for each, _ in base[0]]), device)
    yield {**common, "what": f"{what}, C chosen on validation", **times, **agreement}
    theirs, rows = [], []
    for index, (c, fit_of_c) in enumerate(zip(CS, fits, strict=True)):
        runs = base[0] if index == best else [_timed_svc(x, y, c) for _ in range(rounds)]
        theirs.append(_middle([each for each, _ in runs]))
        agreement = _agreement(fit_of_c, runs[0][1], x, y, held_x, held_y)
        rows.append({**agreement, "linear_svc_cpu_seconds": round(theirs[-1].cpu, 2)})
    times = _compared(_middle([each for each, _ in paths]), _total(theirs), device)
    yield {**common, "what": f"{what}, path of {len(CS)} values of C", **times, "path": rows}


def compare_draws(
    x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, draws: int, device: torch.device, size: int = 1000
) -> dict[str, Any]:
    """Return the record of `draws` fits to `size` random samples each, ours and LinearSVC's alternating.

    C is chosen on the held-out samples, over the first ten draws.
    """
    random = torch.Generator().manual_seed(0)
    rows = [torch.randperm(len(x), generator=random)[:size] for _ in range(draws)]
    scores = torch.zeros(len(CS))
    for fits in fit_draws(x, y, list(rows[:10]), CS, classes=CLASSES, device=device):
        scores += torch.tensor([_accuracy(fit_of_c, held_x, held_y) for fit_of_c in fits])
    c = CS[int(scores.argmax())]
    ours, theirs, differences, iterations = [], [], [], []
    accuracies: list[tuple[float, float]] = []
    for chosen in rows:
        part, labels = x[chosen], y[chosen]
        seconds, (fit_of_c,) = _timed_path(part, labels, [c], device)
        slow, model = _timed_svc(part, labels, c)
        ours.append(seconds)
        theirs.append(slow)
        differences.append(abs(sum(fit_of_c.objective) / _objective_of(model, part, labels, c) - 1))
        iterations.append((fit_of_c.iterations, int(model.n_iter_)))
        accuracies.append((_accuracy(fit_of_c, held_x, held_y), _accuracy(model, held_x, held_y)))
    mean, reference = np.mean(accuracies, axis=0)
    return {
        "bench": "svm",
        "what": f"fit {size} x {x.shape[1]} x {CLASSES}, {draws} draws",
        **_compared(_total(ours), _total(theirs), device),
        "c": c,
        "tolerance": 1e-4,
        "linear_svc_tolerance": 1e-4,
        "products": median(pair[0] for pair in iterations),
        "linear_svc_iterations": median(pair[1] for pair in iterations),
        "largest_relative_difference_of_objectives": float(f"{max(differences):.2e}"),
        "accuracy": round(float(mean), 4),
        "linear_svc_accuracy": round(float(reference), 4),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


def _fit_large(path: str, labels: npt.NDArray[np.int64], device: str, queue: Any) -> None:
    """Fit a memory map, in its own process; put seconds, products, gap and peak memory in GiB into the queue."""
    begun = _Times.now()
    svm = fit_path(np.load(path, mmap_mode="r"), labels, CS[:1], classes=CLASSES, device=device)[0]
    times = _Times.now().since(begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put((times, svm.iterations, svm.gap, peak))


def measure_memory(x: Tensor, y: Tensor, device: torch.device, count: int = LARGE) -> dict[str, Any]:
    """Return the record of a fit to `count` samples in a memory map of float16: its peak memory, map included.

    The samples are mixtures of each sample of `x` with another of its class.
    """
    random = np.random.default_rng(0)
    numbers = np.arange(count) % len(x)
    labels = y.numpy()[numbers]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x.npy"))
        stored = np.lib.format.open_memmap(path, "w+", np.float16, (count, x.shape[1]))
        for label in range(CLASSES):
            members = np.flatnonzero(y.numpy() == label)
            for rows in np.array_split(np.flatnonzero(labels == label), 1 + count // (CLASSES * 200)):
                share = torch.from_numpy(random.random((len(rows), 1), np.float32))
                others = x[torch.from_numpy(random.choice(members, len(rows)))]
                stored[rows] = torch.lerp(x[torch.from_numpy(numbers[rows])], others, share).half().numpy()
        stored.flush()
        del stored
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=_fit_large, args=(path, labels, str(device), queue))
        child.start()
        times, products, gap, peak = queue.get()
        child.join()
    return {
        "bench": "svm",
        "what": f"fit {count} x {x.shape[1]} x {CLASSES} from a memory map of float16",
        "peak_memory_gib": round(peak, 2),
        "seconds": round(times.clock, 1),
        "cpu_seconds": round(times.cpu, 1),
        "c": CS[0],
        "products": products,
        "gap": float(f"{gap:.2e}"),
        "tolerance": 1e-4,
        "device": str(device),
    }


def bench_svm(rounds: int = 1) -> Iterator[dict[str, Any]]:
    """Measure, and yield each record when it is ready: one C, a path over C, 100 draws, and the memory of a large fit.

    LinearSVC takes minutes for each value of C in the path.
    """
    device = pick_device("auto")
    images, classes, name = labelled_images(5000 + VALIDATION)
    y, held_y = torch.from_numpy(classes).split([5000, VALIDATION])
    for width in (7168, 28672):
        x, held_x = random_features(images, width).split([5000, VALIDATION])
        if width == 7168:
            yield {"images": name, **compare_draws(x, y, held_x, held_y, 100, device)}
        else:
            for record in compare_path(x, y, held_x, held_y, rounds, device):
                yield {"images": name, **record}
            yield {"images": name, **measure_memory(x, y, device)}
