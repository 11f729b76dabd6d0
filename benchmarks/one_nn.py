"""`bench one-nn`: exact 1-NN of bytes beside scikit-learn's brute force on float32, each in a process of its own.

The baseline is what `KNeighborsClassifier(1, algorithm="brute")` runs: its reduction over pairwise distances, which
needs all training images at once.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from dcgan_dist.distributed import pick_device
from dcgan_dist.evaluation.nearest import Bytes, NearestRows
from dcgan_dist.evaluation.one_nn import deform

TRAINING, IMAGES, SIDE = 100_000, 10_000, 28
LONG = 10_000_000
GOALS = {"random bytes": 1.8, "MNIST": 3.0}
_PIECE = 2048  # rows that are searched at once, as the task one-nn does


def make_random(folder: Path) -> None:
    """Write `train.npy` (TRAINING, SIDE²) and `test.npy` (IMAGES, SIDE²) of random bytes."""
    draw = np.random.default_rng(0)
    for name, count in (("train", TRAINING), ("test", IMAGES)):
        np.save(folder / f"{name}.npy", draw.integers(0, 256, (count, SIDE * SIDE), dtype=np.uint8))


def make_mnist(folder: Path, source: Path) -> None:
    """Write the same of MNIST: its training images, and after them the same deformed a little; its test images."""
    images = {}
    for name, part in (("train", "train"), ("test", "t10k")):
        with gzip.open(source / f"{part}-images-idx3-ubyte.gz") as file:
            images[name] = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIDE * SIDE)
    train = images["train"]
    more = deform(np.ascontiguousarray(train[: TRAINING - len(train)]), SIDE, 0, 0)
    np.save(folder / "train.npy", np.concatenate((train, more)))
    np.save(folder / "test.npy", images["test"][:IMAGES])


def measure_ours(folder: str) -> None:
    """Search piece by piece, as samples come; print the seconds after each tenth, and write the rows found."""
    train, test = np.load(Path(folder, "train.npy"), mmap_mode="r"), np.load(Path(folder, "test.npy"))
    begun, seconds = time.perf_counter(), []
    search = NearestRows(test)
    for start in range(0, len(train), _PIECE):
        search.add(np.ascontiguousarray(train[start : start + _PIECE]), start)
        seconds.append((min(start + _PIECE, len(train)), time.perf_counter() - begun))
    found = search.found
    np.savez(Path(folder, "ours.npz"), rows=found.rows, distances=found.distances)
    half = next(pair for pair in seconds if pair[0] >= len(train) // 2)
    slope = (seconds[-1][1] - half[1]) / (seconds[-1][0] - half[0])
    print(json.dumps({"seconds": seconds[-1][1], "seconds_per_row": slope, "peak_mib": _peak()}))


def measure_sklearn(folder: str) -> None:
    """Search with scikit-learn on float32."""
    from sklearn.metrics import pairwise_distances_argmin_min

    train, test = (np.load(Path(folder, f"{name}.npy")).astype(np.float32) for name in ("train", "test"))
    begun = time.perf_counter()
    rows, _ = pairwise_distances_argmin_min(test, train, metric="sqeuclidean")
    seconds = time.perf_counter() - begun
    np.savez(Path(folder, "theirs.npz"), rows=rows)
    print(json.dumps({"seconds": seconds, "peak_mib": _peak()}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _run(function: str, folder: Path) -> dict[str, Any]:
    code = f"import sys; from benchmarks.one_nn import {function}; {function}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _distances(train: Bytes, test: Bytes, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    squares = [((train[row].astype(np.int64) - image) ** 2).sum() for row, image in zip(rows, test, strict=True)]
    return np.array(squares)


def bench_one_nn(rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Measure both on random bytes and, where $DCGAN_DIST_DATA has it, on MNIST; on a GPU, that as well."""
    sources: dict[str, Path | None] = {"random bytes": None}
    data = os.environ.get("DCGAN_DIST_DATA")
    if data and Path(data, "mnist").is_dir():
        sources["MNIST"] = Path(data, "mnist")
    else:
        print("MNIST is left out: DCGAN_DIST_DATA names no folder with it", file=sys.stderr)
    for name, source in sources.items():
        with tempfile.TemporaryDirectory(prefix="dcgan_dist-one-nn-") as scratch:
            folder = Path(scratch)
            if source is None:
                make_random(folder)
            else:
                make_mnist(folder, source)
            yield _compare(name, folder, rounds)


def _compare(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_run("measure_ours", folder))
        theirs.append(_run("measure_sklearn", folder))
    ratios = [their["seconds"] / our["seconds"] for our, their in zip(ours, theirs, strict=True)]
    train, test = np.load(folder / "train.npy", mmap_mode="r"), np.load(folder / "test.npy")
    rows, distances = (np.load(folder / "ours.npz")[key] for key in ("rows", "distances"))
    of_theirs = np.load(folder / "theirs.npz")["rows"]
    if not (_distances(train, test, rows) == distances).all():
        raise AssertionError("a distance is not what it should be")
    slope = median(one["seconds_per_row"] for one in ours)
    record = {
        "bench": "one-nn",
        "what": f"nearest of {TRAINING:,} rows of {SIDE}x{SIDE} {name} for {IMAGES:,}",
        "seconds": round(median(one["seconds"] for one in ours), 2),
        "baseline": "scikit-learn, brute force on float32",
        "baseline_seconds": round(median(one["seconds"] for one in theirs), 2),
        "times_the_baseline": round(median(ratios), 2),
        "goal": GOALS[name],
        "same_rows": int((rows == of_theirs).sum()),
        "same_distances": int((_distances(train, test, of_theirs) == distances).sum()),
        "peak_mib": round(max(one["peak_mib"] for one in ours)),
        "baseline_peak_mib": round(max(one["peak_mib"] for one in theirs)),
        f"seconds_for_{LONG}_by_slope": round(slope * LONG),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "ratios": [round(ratio, 2) for ratio in ratios],
    }
    if pick_device("auto").type == "cuda":
        record["gpu_seconds"] = round(_on_gpu(train, test), 2)
    return record


def _on_gpu(train: Bytes, test: Bytes) -> float:
    """Return the seconds on a GPU, copies to it included, after one search that does not count."""
    for _ in range(2):
        begun = time.perf_counter()
        search = NearestRows(test, "cuda")
        for start in range(0, len(train), 8 * _PIECE):
            search.add(np.ascontiguousarray(train[start : start + 8 * _PIECE]), start)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    return seconds
