"""`data`: images/s of the data path and of stock tools on the same images, alternating, with one core pinned.

The images are Tiny ImageNet's if the variable DCGAN_DIST_DATA names the folder that has them, else procedural rooms:
20,000 of 64x64 pixels, as JPEG and as raw shards. Everything is read once before, so that no figure depends on the
disk.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, patch

import numpy as np
import simplejpeg
import torch
import webdataset
import xxhash
from PIL import Image

from benchmarks.data_mosaic import mosaic_peer
from benchmarks.data_sources import bench_sources
from benchmarks.measuring import Bench, Record, Way, alternate, each, on_cores
from dcgan_dist.data import stream as stream_module
from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.images import Encoding
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import open_source, room_source
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.data.tar_index import map_file, members
from dcgan_dist.errors import DataError
from dcgan_dist.parallel import LocalPool, usable_cores

IMAGES = 20_000
SIZE = 64
BATCH = 128
ENCODINGS: tuple[Encoding, ...] = ("jpg", "raw")
_STOCK = "webdataset + PIL + shuffle(1000) + batched(128), same images as JPEG"
_STOCK_RAW = "webdataset + shuffle(1000) + batched(128), same raw shards"
_RAW_EPOCHS = 5  # per measurement, since they are short
_BATCHES_OF_WORKERS = {"jpg": 240, "raw": 1500}
_READING = "64x64 {} shards to batches of uint8 tensors"


def bench_data(bench: Bench) -> Iterator[Record]:
    """Measure each figure and its baseline, alternating."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-bench-") as scratch:
        sets = _make_sets(Path(scratch), bench.size(IMAGES, 500))
        with on_cores(1):
            yield from _bench_reading(bench, sets)
            yield from _bench_integrity(bench, sets)
            yield from _bench_mosaic(bench, sets, Path(scratch))
            yield from _limits(bench, sets)
            yield from bench_sources(bench, Path(scratch))
        yield from _bench_workers(bench, sets)


def _make_sets(scratch: Path, count: int) -> dict[str, Dataset]:
    real = os.environ.get("DCGAN_DIST_DATA")
    sets: dict[str, Dataset] = {}
    for encoding in ENCODINGS:
        source = open_source("folder", Path(real, "tiny_imagenet_20k.tar.gz")) if real else room_source(count, 0)
        recipe = Recipe(image_size=SIZE, encoding=encoding, name="images", count=count)
        write_shards(source, recipe, str(scratch / encoding), pool=LocalPool(usable_cores()))
        sets[encoding] = open_dataset(scratch / encoding)
    return sets


# --- reading ----------------------------------------------------------------------------------------------------------


Use = Callable[[torch.Tensor], int]
"""Uses a batch of images, and returns their number."""


def ours(dataset: Dataset, epochs: int = 1, use: Use = len) -> Way:
    """Return a function that reads the first epochs of a run, with the background thread and all checks."""

    def read() -> int:
        stream = ImageStream(dataset, seed=0, batch_size=BATCH)
        with stream.iterate(0, epochs * stream.batches_per_epoch) as batches:
            return sum(use(batch.images) for batch in batches)

    return read


def stock(dataset: Dataset, use: Use = len) -> Way:
    """Return a function that reads an epoch of a set with webdataset, as in its manual: uint8 tensors and labels."""
    encoding = dataset.manifest.encoding
    shape = dataset.image_size, dataset.image_size, dataset.channels

    def pixels(sample: dict[str, Any]) -> tuple[Any, ...]:
        content = sample[encoding]
        if encoding == "raw":
            return np.frombuffer(content, dtype=np.uint8).reshape(shape), int(sample.get("cls", -1))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), int(sample.get("cls", -1))

    def read() -> int:
        reader = webdataset.WebDataset(list(dataset.tars), shardshuffle=100, seed=0)
        batches = reader.shuffle(1000).map(pixels).batched(BATCH)
        return sum(use(torch.from_numpy(images)) for images, _ in batches)

    return read


def _bench_reading(bench: Bench, sets: dict[str, Dataset]) -> Iterator[Record]:
    ways = {"jpg": ours(sets["jpg"]), "raw": ours(sets["raw"], _RAW_EPOCHS)}
    turns = alternate({**ways, _STOCK: stock(sets["jpg"]), _STOCK_RAW: stock(sets["raw"])}, bench.rounds, warm_up=1)
    for encoding, baseline, goal in (("jpg", _STOCK, 4.0), ("raw", _STOCK, 25.0), ("raw", _STOCK_RAW, 5.0)):
        yield bench.compare(_READING.format(encoding), turns, encoding, baseline, goal=goal)


@contextmanager
def unchecked() -> Iterator[None]:
    """Disable the stream's checks of records, headers and shards, to measure their cost; users cannot do that."""
    with (
        patch.object(stream_module, "xxhash", SimpleNamespace(xxh3_64_intdigest=lambda _: ANY)),
        patch.object(stream_module, "damaged_headers", lambda _: []),
        patch.object(stream_module, "digest_of", lambda _: ANY),
    ):
        yield


def _bench_integrity(bench: Bench, sets: dict[str, Dataset]) -> Iterator[Record]:
    for encoding, epochs, goal in (("jpg", 1, 0.95), ("raw", _RAW_EPOCHS, None)):
        read = ours(sets[encoding], epochs)
        without = "without checks of records, headers and shards"
        ways = {"checked": read, without: unchecked()(read)}
        turns = alternate(ways, 3 * bench.rounds, warm_up=1)  # small differences need more rounds
        yield bench.compare(f"{_READING.format(encoding)}, with all checks", turns, "checked", without, goal=goal)


def _bench_mosaic(bench: Bench, sets: dict[str, Dataset], scratch: Path) -> Iterator[Record]:
    try:
        with mosaic_peer(sets, scratch, BATCH, make=bench.mosaic) as peer:
            ways = {"jpg": ours(sets["jpg"]), "raw": ours(sets["raw"], _RAW_EPOCHS)}
            baseline = f"mosaicml-streaming {peer.version}, {peer.stack}, {{}}"
            theirs = {baseline.format(name): peer.reading(name) for name in sets}
            turns = alternate(ways | theirs, bench.rounds, warm_up=1)
            for name in sets:
                yield bench.compare(_READING.format(name), turns, name, baseline.format(name), goal=1.5)
    except DataError as error:
        bench.leave_out("mosaicml-streaming", error)


# --- several processes ------------------------------------------------------------------------------------------------


def _delivering(dataset: Dataset, workers: int, batches: int) -> Way:
    """Return a way to take batches that worker processes (0: the thread) deliver once they have started."""

    def take() -> dict[str, float]:
        with ImageStream(dataset, seed=0, batch_size=BATCH, workers=workers).iterate() as stream:
            way = {"": lambda: sum(len(next(stream).images) for _ in range(batches))}
            return {"images/s": alternate(way, 1, warm_up=1)[""]["images/s"][0]}

    return take


def _decode_in_turns(tar: str, extents: list[tuple[int, int]], turns: int, barrier: Barrier) -> None:
    jpegs = [bytes(map_file(Path(tar))[start : start + size]) for start, size in extents]
    for turn in range(turns + 1):
        if turn == 1:  # all processes have started, and have decoded everything once
            barrier.wait()
        for content in jpegs:
            simplejpeg.decode_jpeg(content, "RGB")
    barrier.wait()


def _decoding(dataset: Dataset, processes: int, turns: int) -> Way:
    """Return a way to decode in processes that do nothing else: the limit of the cores."""
    records = dataset.records(0)
    extents = [(int(start), int(size)) for start, size in zip(records["offset"], records["size"], strict=True)]
    context = multiprocessing.get_context("spawn")

    def decode() -> dict[str, float]:
        barrier = context.Barrier(processes + 1)
        arguments = (str(dataset.tar(0)), extents, turns, barrier)
        decoders = [context.Process(target=_decode_in_turns, args=arguments) for _ in range(processes)]
        for decoder in decoders:
            decoder.start()
        barrier.wait()
        begun = time.perf_counter()
        barrier.wait()
        rate = processes * turns * len(extents) / (time.perf_counter() - begun)
        for decoder in decoders:
            decoder.join()
        return {"images/s": rate}

    return decode


def _bench_workers(bench: Bench, sets: dict[str, Dataset]) -> Iterator[Record]:
    if usable_cores() < 2:
        bench.leave_out("two loader processes", "there is only one core")
        return
    thread, one, two = "the background thread", "one loader process", "two loader processes"
    alone, both = "one process that only decodes", "two processes that only decode JPEGs, the cores' limit"
    with on_cores(2):
        for encoding, dataset in list(sets.items())[: bench.size(None, 1)]:  # processes take seconds to start
            batches = bench.size(_BATCHES_OF_WORKERS[encoding], 16)
            ways = {name: _delivering(dataset, workers, batches) for workers, name in enumerate((thread, one, two))}
            decoding = {
                name: _decoding(sets["jpg"], count, bench.size(20, 2)) for count, name in ((1, alone), (2, both))
            }
            turns = alternate(ways | decoding, bench.rounds)
            yield bench.compare(f"{both}, compared with the {encoding} shards", turns, both, alone)
            yield bench.compare(f"{two}, the consumer counting, {encoding} shards", turns, two, one, goal=1.7)
            yield bench.compare(f"{one}, {encoding} shards", turns, one, thread)


# --- the machine's limits ---------------------------------------------------------------------------------------------


def _limits(bench: Bench, sets: dict[str, Dataset]) -> Iterator[Record]:
    jpegs = [content for shard in range(len(sets["jpg"].tars)) for content in _contents(sets["jpg"], shard)]
    raws = [np.frombuffer(content, np.uint8) for content in _contents(sets["raw"], 0)]
    raw_tar, jpeg_tar = Path(sets["raw"].tars[0]), Path(sets["jpg"].tars[0])
    batch = np.empty((BATCH, SIZE, SIZE, sets["jpg"].channels), dtype=np.uint8)
    shard = np.frombuffer(map_file(raw_tar), np.uint8)
    offsets = sets["raw"].records(0)["offset"].astype(np.int64)
    flat = batch.reshape(BATCH, -1)
    windows = np.lib.stride_tricks.sliding_window_view(shard, flat.shape[1])
    order = np.random.default_rng(0).permutation(len(offsets))

    def copy() -> int:
        for number, content in enumerate(raws):
            flat[number % BATCH] = content
        return len(raws)

    def gather() -> int:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            flat[: len(chosen)] = windows[offsets[chosen]]
        return len(order)

    def headers(path: Path) -> int:
        # A sample has an image and, if labelled, a .cls or .json.
        return len({member.name.partition(".")[0] for member in members(map_file(path), str(path))})

    def headers_of_the_standard_library(path: Path) -> int:
        with tarfile.open(path) as archive:
            return len({member.name.partition(".")[0] for member in archive})

    decode = partial(simplejpeg.decode_jpeg, colorspace="RGB", buffer=batch[0])
    ways = {
        "decode of the JPEGs alone, simplejpeg": each(decode, jpegs),
        "decode of the JPEGs alone, PIL": each(lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg))), jpegs[:2000]),
        "memcpy of raw records one by one": copy,
        "gather of raw records from a memory map into batches": gather,
        "xxh3 of raw records": each(lambda content: xxhash.xxh3_64_intdigest(content.data), raws),
        "tar headers of the raw shards (image and label), each checked": lambda: headers(raw_tar),
        "tar headers of the JPEG shards (image and label), tarfile": lambda: headers_of_the_standard_library(jpeg_tar),
    }
    turns = alternate(ways, bench.rounds, warm_up=1)
    yield from (bench.record(f"limit: {name}", "images/s", figures["images/s"]) for name, figures in turns.items())


def _contents(dataset: Dataset, shard: int) -> list[bytes]:
    """Return the bytes of each image of a shard."""
    tar = map_file(dataset.tar(shard))
    records = dataset.records(shard)
    return [bytes(tar[start : start + size]) for start, size in zip(records["offset"], records["size"], strict=True)]


__all__ = ["bench_data", "ours", "stock", "unchecked"]
