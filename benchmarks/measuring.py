"""Measure several ways to do the same work, alternating, and compare them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

Way = Callable[[], int]
"""Does the work once, and returns the number of images."""


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Within the block, restrict this process, and processes that it starts, to the first `count` of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates_in_turn(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """Return the images/s of each way in each round, after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            count = way()
            if number >= 0:
                rates[name].append(count / (time.perf_counter() - begun))
    return rates


def compared(what: str, ours: list[float], baseline: str, theirs: list[float], goal: float | None) -> dict[str, Any]:
    """Return the record of one figure: both rates (medians), and the median of the ratios of the rounds."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    record: dict[str, Any] = {
        "bench": "data",
        "what": what,
        "images_per_s": round(median(ours)),
        "baseline": baseline,
        "baseline_images_per_s": round(median(theirs)),
        "times_the_baseline": round(median(ratios), 2),
    }
    if goal is not None:
        record["goal"] = goal
    return record | {"rounds": len(ratios), "ratios": [round(ratio, 2) for ratio in ratios]}


def limit(what: str, rates: list[float]) -> dict[str, Any]:
    """Return the record of an upper limit of this machine."""
    return {"bench": "data", "limit": what, "images_per_s": round(median(rates)), "rounds": len(rates)}


def left_out(what: str, why: str) -> dict[str, Any]:
    """Return the record of a figure that was not measured."""
    return {"bench": "data", "what": what, "left_out": why}
