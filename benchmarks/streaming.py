"""`streaming`: images/s of raw shards from a server on the loopback interface, each round with an empty cache.

The server, in its own process, is either good, or flaky: 20 ms before each answer, and one answer in twenty cut off in
the middle. Both are compared with the local disk. They are read alternating by a consumer that takes 2,000 images/s,
about the rate of training on one GPU, and by one that only counts. Rates are measured after the first batches, and for
the consumer that only counts also over the whole epoch, since a slow start gives downloads time to get ahead.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.flaky_server import flaky_process
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import Item, RawImage, Source
from dcgan_dist.data.sources.base import shuffled
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.parallel import LocalPool, usable_cores

SHARDS = 150
IMAGES = 300  # in each
SIZE = 64
BATCH = 128
FLAKY = {"latency_s": 0.02, "drop": 0.05}
_LOCATIONS = {"local": "the local disk", "good": "a good server", "flaky": "a flaky server"}
_FIRST = 16  # batches before the measurement
_TAKEN_PER_S = 2000
_SECONDS = 10.0  # of the consumer with this rate


def bench_streaming(rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Measure each consumer with each location, alternating; yield one record per figure, the medians of the rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-bench-") as scratch:
        folder = Path(scratch, "set")
        recipe = Recipe(image_size=SIZE, encoding="raw", shard_size=IMAGES, name="noise")
        write_shards(noise_source(SHARDS * IMAGES), recipe, folder, pool=LocalPool(usable_cores()))
        firsts: dict[str, list[float]] = {name: [] for name in _LOCATIONS}
        for per_s in (_TAKEN_PER_S, None):
            runs: dict[str, list[Run]] = {name: [] for name in _LOCATIONS}
            for _ in range(rounds):
                for name, of_location in runs.items():
                    behaviour = FLAKY if name == "flaky" else {}
                    served = nullcontext(str(folder)) if name == "local" else flaky_process(folder, **behaviour)
                    with served as location, tempfile.TemporaryDirectory(dir=scratch) as cache:
                        of_location.append(read(location, Path(cache), per_s, _SECONDS))
            yield from _figures(runs, per_s)
            for name, of_location in runs.items():
                firsts[name] += [run.first_s for run in of_location]
    for name, seconds in firsts.items():
        yield {
            "bench": "streaming",
            "what": f"seconds from opening the set to the first batch of {BATCH}",
            "place": _LOCATIONS[name],
            "seconds": round(median(seconds), 2),
            "each": _rounded(seconds),
        }


@dataclass(frozen=True)
class Run:
    """The measurements of reading a set once.

    Attributes:
        first_s: seconds from opening the set to the first batch.
        images_per_s: after the first batches.
        overall_per_s: images/s from opening the set to the end.
    """

    first_s: float
    images_per_s: float
    overall_per_s: float


def read(location: str, cache: Path, per_s: float | None, most_s: float) -> Run:
    """Read a set for `most_s` seconds or one epoch, whichever ends first.

    Args:
        location: folder or URL of the set.
        cache: an empty folder.
        per_s: maximum images per second that are taken; None for no limit.
        most_s: seconds after the first batches.
    """
    begun = time.perf_counter()
    dataset = open_dataset(location, cache=cache)
    stream = ImageStream(dataset, seed=0, batch_size=BATCH)
    with stream.iterate(0, stream.batches_per_epoch) as batches:
        next(batches)
        first_s = time.perf_counter() - begun
        for _ in range(_FIRST - 1):
            next(batches)
        taken, since = 0, time.perf_counter()
        for batch in batches:
            taken += len(batch.images)
            passed = time.perf_counter() - since
            if per_s is not None and passed < taken / per_s:
                time.sleep(taken / per_s - passed)
            if passed > most_s:
                break
        ended = time.perf_counter()
    return Run(first_s, taken / (ended - since), (_FIRST * BATCH + taken) / (ended - begun))


def _figures(runs: dict[str, list[Run]], per_s: float | None) -> Iterator[dict[str, Any]]:
    what = "raw 64x64 shards from a {} server, empty cache, the consumer "
    what += "only counts" if per_s is None else f"takes {per_s:,.0f} images/s"
    later = {name: [run.images_per_s for run in of_location] for name, of_location in runs.items()}
    yield _compared(what, "flaky", "good", later, goal=0.9)
    yield _compared(what, "flaky", "local", later)
    yield _compared(what, "good", "local", later)
    if per_s is None:
        overall = {name: [run.overall_per_s for run in of_location] for name, of_location in runs.items()}
        yield _compared(what + ", with the start", "flaky", "good", overall, goal=0.9)


def _compared(
    what: str, ours: str, theirs: str, rates: dict[str, list[float]], goal: float | None = None
) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(rates[ours], rates[theirs], strict=True)]
    record = {
        "bench": "streaming",
        "what": what.format(ours),
        "images_per_s": round(median(rates[ours])),
        "baseline": _LOCATIONS[theirs],
        "baseline_images_per_s": round(median(rates[theirs])),
        "times_the_baseline": round(median(ratios), 3),
        "ratios": _rounded(ratios),
    }
    return record if goal is None else record | {"goal": goal}


def _rounded(figures: Sequence[float]) -> list[float]:
    return [round(figure, 3) for figure in figures]


# --- random images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NoisePart:
    numbers: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.numbers)

    def items(self) -> Iterator[tuple[int, Item]]:
        for position, number in enumerate(self.numbers, 1):
            yield number, _noise(number, position / len(self.numbers))


class _NoiseSource(Source):
    """Images of random values, all different, without labels."""

    def items(self) -> Iterator[Item]:
        count = self.count or 0
        return (_noise(number, (number + 1) / count) for number in range(count))

    def all_folders(self) -> list[tuple[str, ...]]:
        return [()]

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[_NoisePart]:
        order = shuffled(count or self.count or 0, seed).tolist()
        return [_NoisePart(tuple(order[start : start + size])) for start in range(0, len(order), size)]


def _noise(number: int, share: float) -> Item:
    values = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Item(f"noise {number}", (), RawImage(values), share)


def noise_source(count: int) -> Source:
    """Return a source of `count` images of random values, which take no time to decode."""
    return _NoiseSource(name="noise", where="random values", identity={}, image_size=SIZE, count=count)


__all__ = ["bench_streaming", "noise_source", "read"]
