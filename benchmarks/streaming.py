"""`streaming`: images/s of raw shards from a server on the loopback interface, each round with an empty cache.

The server, in its own process, is either good, or flaky: 20 ms before each answer, and one answer in twenty cut off in
the middle. Both are compared with the local disk. They are read alternating by a consumer that takes 2,000 images/s,
about the rate of training on one GPU, and by one that only counts. Rates are measured after the first batches, and for
the consumer that only counts also over the whole epoch, since a slow start gives downloads time to get ahead.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from benchmarks.measuring import Bench, Record, alternate
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import room_source
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.parallel import LocalPool, usable_cores
from tests.flaky_server import flaky_process

SIZE = 64
BATCH = 128
LOCAL, GOOD, FLAKY = "the local disk", "a good server", "a flaky server"
SERVERS: dict[str, dict[str, float]] = {GOOD: {}, FLAKY: {"latency_s": 0.02, "drop": 0.05}}
_FIRST = 16  # batches before the measurement
_TAKEN_PER_S = 2000
_SECONDS = 10.0  # of the consumer with this rate


def bench_streaming(bench: Bench) -> Iterator[Record]:
    """Measure each consumer with each location, alternating."""
    torch.set_num_threads(1)
    shards, images = bench.size((150, 300), (30, 200))
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-bench-") as scratch:
        folder = Path(scratch, "set")
        recipe = Recipe(image_size=SIZE, encoding="raw", shard_size=images, name="rooms")
        write_shards(room_source(shards * images, 0), recipe, folder, pool=LocalPool(usable_cores()))

        def read_from(location: str, per_s: float | None) -> dict[str, float]:
            served = nullcontext(str(folder)) if location == LOCAL else flaky_process(folder, **SERVERS[location])
            with served as url, tempfile.TemporaryDirectory(dir=scratch) as cache:
                return read(url, Path(cache), per_s, bench.size(_SECONDS, 2.0))

        for per_s in (_TAKEN_PER_S, None):
            ways = {name: partial(read_from, name, per_s) for name in (LOCAL, *SERVERS)}
            turns = alternate(ways, bench.rounds)
            consumer = "only counts" if per_s is None else f"takes {per_s:,.0f} images/s"
            what = f"{shards} raw shards of {images} 64x64 images from {{}}, empty cache, the consumer {consumer}"
            yield bench.compare(what.format(FLAKY), turns, FLAKY, GOOD, goal=0.9)
            yield bench.compare(what.format(FLAKY), turns, FLAKY, LOCAL)
            yield bench.compare(what.format(GOOD), turns, GOOD, LOCAL)
            if per_s is None:
                with_start = what.format(FLAKY) + ", with the start"
                yield bench.compare(with_start, turns, FLAKY, GOOD, goal=0.9, figure="images/s with the start")
            for name in SERVERS:
                first = f"{what.format(name)}: from opening the set to the first batch of {BATCH}"
                yield bench.compare(first, turns, name, LOCAL, "s", figure="s to the first batch")


def read(location: str, cache: Path, per_s: float | None, most_s: float) -> dict[str, float]:
    """Read a set for `most_s` seconds or one epoch, whichever ends first; return the time to the first batch and rates.

    Args:
        location: folder or URL of the set.
        cache: an empty folder.
        per_s: maximum images per second that are taken; None for no limit.
        most_s: seconds after the first batches, which the rate `images/s` leaves out.
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
    with_start = (_FIRST * BATCH + taken) / (ended - begun)
    return {"s to the first batch": first_s, "images/s": taken / (ended - since), "images/s with the start": with_start}


__all__ = ["bench_streaming", "read"]
