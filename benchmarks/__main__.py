"""Measure figures and their baselines, alternating in one run, and print one JSON line for each.

``python -m benchmarks WHAT [ROUNDS]``, in a checkout; WHAT may be `all`, and `--quick` measures small sizes, each
benchmark in less than a minute. benchmarks/README.md says what each needs, and what a line has.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module

from benchmarks.measuring import Bench, Record
from dcgan_dist.command_line import run, yield_idle_cores
from dcgan_dist.errors import ConfigError, DcganDistError

PROG = "python -m benchmarks"
WHAT = {
    "step": (7, 2, "images/s of a training step, compared with the plain loop of the PyTorch example (tutorial net)"),
    "average": (5, 2, "steps/s with and without the average of the generator's weights"),
    "launch": (5, 1, "images/s of two workers under Ray Train, compared with torchrun"),
    "sweep": (
        1,
        1,
        "trials/s of a sweep of short trials, compared with their training alone; the steps asha saves",
    ),
    "features": (7, 2, "features per second of the ImageNet net, compared with a plain evaluation loop in float32"),
    "svm": (1, 1, "seconds to fit the linear SVM of the scores, compared with scikit-learn's LinearSVC; peak memory"),
    "one-nn": (
        5,
        2,
        "seconds to find 10,000 nearest images of 100,000, compared with scikit-learn's brute force",
    ),
    "data": (
        5,
        2,
        "images/s of making and reading shards, compared with PIL, webdataset, --mosaic: mosaicml-streaming",
    ),
    "streaming": (
        5,
        1,
        "images/s from a slow and flaky server on this host, compared with a good one and the disk",
    ),
    "report": (
        3,
        2,
        "time and memory to read 10,000 runs and write their table, compared with Ray Tune's ResultGrid",
    ),
    "dedup": (
        1,
        1,
        "share of planted near-duplicates found, and false ones, in $DCGAN_DIST_DATA, else in rooms",
    ),
    "stability": (1, 1, "verdicts on runs that fail on purpose, on faces of $DCGAN_DIST_DATA (without it, on rooms)"),
}
"""For each benchmark, the default number of rounds, that of `--quick`, and what it measures."""


def bench_command(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"usage: {PROG} WHAT [ROUNDS] [--quick] [--mosaic]\n\n{__doc__}\n")
        for name, (*_, measures) in {**WHAT, "all": (0, 0, "every one, each in a process of its own")}.items():
            print(f"  {name:9} {measures}")
        return
    what, *rest = arguments
    if what not in (*WHAT, "all"):
        raise ConfigError(f"unknown benchmark {what!r}: take one of {', '.join(WHAT)}, or all")
    options = {"--quick", *(["--mosaic"] if what == "data" else [])} & set(rest)
    numbers = [word for word in rest if word not in options]
    if len(numbers) > 1 or any(not word.isdigit() or int(word) < 1 for word in numbers):
        raise ConfigError(f"unexpected {' '.join(numbers)!r}: give the number of rounds, --quick, or nothing")
    if what == "all":
        _run_all(rest)
        return
    yield_idle_cores()
    begun, quick = time.perf_counter(), "--quick" in options
    full, small, _ = WHAT[what]
    rounds = int(numbers[0]) if numbers else small if quick else full
    module = "deduplication" if what == "dedup" else what.replace("-", "_")
    # Import only the requested one, since each imports much.
    measure: Callable[[Bench], Iterator[Record]] = getattr(import_module(f"benchmarks.{module}"), f"bench_{module}")
    for record in measure(Bench(what, rounds, quick, "--mosaic" in options)):
        print(json.dumps(asdict(record), allow_nan=False), flush=True)
    print(f"{what}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)


def _run_all(rest: Sequence[str]) -> None:
    """Run every benchmark in its own process, since each sets threads and cores for itself."""
    failed = []
    for name in WHAT:
        with subprocess.Popen([sys.executable, "-m", "benchmarks", name, *rest]) as process:
            try:
                failed += [name] if process.wait() else []
            except BaseException:
                process.terminate()  # let it stop what it has started
                raise
    if failed:
        raise DcganDistError(f"failed: {', '.join(failed)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(bench_command, PROG, arguments, prints_result=True)


if __name__ == "__main__":
    sys.exit(main())
