"""Measure a figure and its baseline, alternating in one run, and print one JSON line for each.

``python -m benchmarks WHAT [ROUNDS]``, in a checkout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from dcgan_dist.command_line import run, yield_idle_cores
from dcgan_dist.errors import ConfigError

PROG = "python -m benchmarks"
WHAT = {
    "step": "images/s of a training step, compared with the plain loop of the PyTorch example (tutorial net, batch 64)",
    "average": "the cost of averaging the generator's weights, as a share of a step and of 500 steps",
    "launch": "images/s of two workers under Ray Train, compared with torchrun",
    "sweep": "time of 100 short trials of a sweep, compared with their training alone; the steps that asha saves",
    "features": "features per second of the ImageNet net, compared with a plain evaluation loop in float32",
    "svm": "seconds to fit the linear SVM of the scores, compared with scikit-learn's LinearSVC; peak memory",
    "one-nn": "seconds to find the nearest of 100,000 images for 10,000, compared with scikit-learn's brute force",
    "data": "images/s of writing and reading shards, compared with webdataset, PIL and (--mosaic) mosaicml-streaming",
    "streaming": "images/s from a slow and flaky server on this host, compared with a good one and the local disk",
    "report": "seconds and memory to read 10,000 runs and write their table, compared with Ray Tune's ResultGrid",
    "dedup": "share of planted near-duplicates found, and false ones, in $DCGAN_DIST_DATA (without it, in rooms)",
    "stability": "verdicts on runs that fail on purpose, on faces of $DCGAN_DIST_DATA (without it, on rooms)",
}


def bench_command(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {PROG} WHAT [ROUNDS] [--mosaic]\n\n{__doc__}\n")
        for name, measures in WHAT.items():
            print(f"  {name:9} {measures}")
        return
    what, *rest = arguments
    if what not in WHAT:
        raise ConfigError(f"unknown benchmark {what!r}: take one of {', '.join(WHAT)}")
    mosaic = what == "data" and "--mosaic" in rest
    if mosaic:
        rest.remove("--mosaic")
    if len(rest) > 1 or any(not word.isdigit() or int(word) < 1 for word in rest):
        raise ConfigError(f"unexpected {' '.join(rest)!r}: give the number of rounds, or nothing")
    yield_idle_cores()
    options: dict[str, Any] = {"rounds": int(rest[0])} if rest else {}
    if what == "data":
        options["mosaic"] = mosaic
    module = "deduplication" if what == "dedup" else what.replace("-", "_")
    # Import only the requested one, since each imports much.
    measure = getattr(import_module(f"benchmarks.{module}"), f"bench_{module}")
    records: Iterable[dict[str, Any]] = measure(**options)
    for record in records:
        print(json.dumps(record), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(bench_command, PROG, arguments, prints_result=True)


if __name__ == "__main__":
    sys.exit(main())
