"""Measure a figure beside its baseline, in turn in one run, and print one JSON line for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from dcgan_dist.command_line import run, yield_idle_cores
from dcgan_dist.errors import ConfigError

PROG = "dcgan-dist bench"
WHAT = {
    "step": "images/s of a training step beside the plain loop of the PyTorch example (tutorial network, batch 64)",
    "launch": "images/s of two workers under Ray Train beside torchrun",
    "data": "images/s of making and reading shards beside webdataset, PIL and mosaicml-streaming (--mosaic: get that)",
    "streaming": "images/s from a slow and flaky server on this host, beside a good one and the local disk",
    "dedup": "near-duplicates found among planted ones, and false ones, in $DCGAN_DIST_DATA (without it, in rooms)",
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
    rounds = {"rounds": int(rest[0])} if rest else {}
    records: Iterable[dict[str, Any]]
    if what == "step":
        from dcgan_dist.benchmarks.step import bench_step

        records = bench_step(**rounds)
    elif what == "data":
        from dcgan_dist.benchmarks.data import bench_data

        records = bench_data(**rounds, mosaic=mosaic)
    elif what == "streaming":
        from dcgan_dist.benchmarks.streaming import bench_streaming

        records = bench_streaming(**rounds)
    elif what == "dedup":
        from dcgan_dist.benchmarks.deduplication import bench_deduplication

        records = bench_deduplication(**rounds)
    else:
        from dcgan_dist.benchmarks.launch import bench_launch

        records = bench_launch(**rounds)
    for record in records:
        print(json.dumps(record), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(bench_command, PROG, arguments)


if __name__ == "__main__":
    sys.exit(main())
