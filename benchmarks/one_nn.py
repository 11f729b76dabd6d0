"""`one-nn`: exact 1-NN of bytes, compared with scikit-learn's brute force on float32, each in its own process.

The baseline is the computation of `KNeighborsClassifier(1, algorithm="brute")`: a reduction over pairwise distances,
which needs all training images at once.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Bench, Record, Way, alternate, in_own_process, peak_mib
from dcgan_dist.distributed import pick_device
from dcgan_dist.evaluation.nearest import Bytes, NearestRows
from dcgan_dist.evaluation.one_nn import deform

TRAINING, IMAGES, SIDE = 100_000, 10_000, 28
LONG = 10_000_000
GOALS = {"random bytes": 1.8, "MNIST": 3.0}
_BLOCK = 2048  # rows that are searched at once, as in the task one-nn


def _random(training: int, images: int) -> dict[str, Bytes]:
    """Return `train` (training, SIDE²) and `test` (images, SIDE²) of random bytes."""
    draw = np.random.default_rng(0)
    counts = {"train": training, "test": images}
    return {name: draw.integers(0, 256, (count, SIDE * SIDE), dtype=np.uint8) for name, count in counts.items()}


def _mnist(source: Path, training: int, images: int) -> dict[str, Bytes]:
    """Return the same of MNIST: its training images, then slightly moved copies of them; its test images."""
    read = {}
    for name in ("train", "t10k"):
        with gzip.open(source / f"{name}-images-idx3-ubyte.gz") as file:
            read[name] = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIDE * SIDE)
    train = read["train"][:training]
    if len(train) < training:
        train = np.concatenate((train, deform(np.ascontiguousarray(train[: training - len(train)]), SIDE, 0, 0)))
    return {"train": train, "test": read["t10k"][:images]}


def measure_ours(folder: str) -> dict[str, float]:
    """Search block by block, as samples are generated; write the rows found, and return the seconds and the memory."""
    train, test = np.load(Path(folder, "train.npy"), mmap_mode="r"), np.load(Path(folder, "test.npy"))
    begun, seconds = time.perf_counter(), []
    search = NearestRows(test)
    for start in range(0, len(train), _BLOCK):
        search.add(np.ascontiguousarray(train[start : start + _BLOCK]), start)
        seconds.append((min(start + _BLOCK, len(train)), time.perf_counter() - begun))
    found = search.found
    np.savez(Path(folder, "ours.npz"), rows=found.rows, distances=found.distances)
    half = next(pair for pair in seconds if pair[0] >= len(train) // 2)
    slope = (seconds[-1][1] - half[1]) / (seconds[-1][0] - half[0])
    return {"s": seconds[-1][1], "s by slope": slope * LONG, "MiB": peak_mib()}


def measure_sklearn(folder: str) -> dict[str, float]:
    """Search with scikit-learn on float32."""
    from sklearn.metrics import pairwise_distances_argmin_min

    train, test = (np.load(Path(folder, f"{name}.npy")).astype(np.float32) for name in ("train", "test"))
    begun = time.perf_counter()
    rows, _ = pairwise_distances_argmin_min(test, train, metric="sqeuclidean")
    seconds = time.perf_counter() - begun
    np.savez(Path(folder, "theirs.npz"), rows=rows)
    return {"s": seconds, "MiB": peak_mib()}


def _distances(train: Bytes, test: Bytes, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    squares = [((train[row].astype(np.int64) - image) ** 2).sum() for row, image in zip(rows, test, strict=True)]
    return np.array(squares)


def bench_one_nn(bench: Bench) -> Iterator[Record]:
    """Measure both on random bytes and, if $DCGAN_DIST_DATA has it, on MNIST; if there is a GPU, ours there as well."""
    sources: dict[str, Path | None] = {"random bytes": None}
    data = os.environ.get("DCGAN_DIST_DATA")
    if data and Path(data, "mnist").is_dir():
        sources["MNIST"] = Path(data, "mnist")
    else:
        bench.leave_out("MNIST", "DCGAN_DIST_DATA names no folder with it")
    for name, source in sources.items():
        with tempfile.TemporaryDirectory(prefix="dcgan_dist-one-nn-") as scratch:
            sizes = bench.size((TRAINING, IMAGES), (10_000, 1_000))
            for part, rows in (_random(*sizes) if source is None else _mnist(source, *sizes)).items():
                np.save(Path(scratch, f"{part}.npy"), rows)
            yield from _compare(bench, name, Path(scratch))


def _compare(bench: Bench, name: str, folder: Path) -> Iterator[Record]:
    train, test = np.load(folder / "train.npy", mmap_mode="r"), np.load(folder / "test.npy")
    theirs = "scikit-learn, brute force on float32"
    ways: dict[str, Way] = {
        "ours": in_own_process(measure_ours, folder),
        theirs: in_own_process(measure_sklearn, folder),
    }
    if pick_device("auto").type == "cuda":
        ways["ours on the GPU"] = partial(_search_on_gpu, train, test)
    turns = alternate(ways, bench.rounds)
    rows, distances = (np.load(folder / "ours.npz")[key] for key in ("rows", "distances"))
    if not (_distances(train, test, rows) == distances).all():
        raise AssertionError("a distance is wrong")
    of_theirs = np.load(folder / "theirs.npz")["rows"]
    what = f"nearest of {len(train):,} rows of {SIDE}x{SIDE} {name} for {len(test):,}"
    for ours in ways:
        if ours != theirs:
            yield bench.compare(f"{what}, {ours}", turns, ours, theirs, "s", GOALS[name] if ours == "ours" else None)
    yield bench.compare(what, turns, "ours", theirs, "MiB")
    yield bench.record(f"{what}, for {LONG:,} by the slope of the second half", "s", turns["ours"]["s by slope"])
    for kind, same in (("rows", rows == of_theirs), ("distances", _distances(train, test, of_theirs) == distances)):
        yield bench.record(f"{what}: {kind} equal to those of scikit-learn", kind, [int(same.sum())])


def _search_on_gpu(train: Bytes, test: Bytes) -> dict[str, float]:
    """Return the seconds on a GPU, copies to it included, after one search to warm up."""
    for _ in range(2):
        begun = time.perf_counter()
        search = NearestRows(test, "cuda")
        for start in range(0, len(train), 8 * _BLOCK):
            search.add(np.ascontiguousarray(train[start : start + 8 * _BLOCK]), start)
        torch.cuda.synchronize()
    return {"s": time.perf_counter() - begun}
