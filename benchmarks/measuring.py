"""Measure several ways to do the same work, alternating, and describe every figure by the same record."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

Way = Callable[[], int | Mapping[str, float]]
"""Do the work once, and return the number of images, or figures measured by itself, by name."""
Turns = dict[str, dict[str, list[float]]]
"""For each way, its figures by name (`s`, `CPU s`, `images/s` and its own), one value for each round."""

LESS_IS_BETTER = frozenset({"s", "CPU s", "MiB", "steps"})
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        bench: name of the benchmark.
        what: what was measured, with its size.
        value: the median over the rounds.
        unit: of `value` and `baseline_value`.
        baseline: what it is compared with, None if with nothing.
        baseline_value: the median over the rounds.
        times_the_baseline: how many times as good as the baseline, the median of the ratios of the rounds: above 1 is
            faster or smaller. None without a baseline, or if a value is 0.
        rounds: number of measurements.
        spread: the smallest and the largest of these ratios; of the values if there are none.
        machine: processor, number of cores and GPU.
        commit: of the checkout, with `-dirty` if it has changes; None if git does not know it.
        goal: for `times_the_baseline`, for `value` if there is no baseline; None if there is none.
    """

    bench: str
    what: str
    value: float
    unit: str
    baseline: str | None
    baseline_value: float | None
    times_the_baseline: float | None
    rounds: int
    spread: tuple[float, float]
    machine: str
    commit: str | None
    goal: float | None


def describe_machine() -> str:
    """Return the processor, the number of its cores, and the GPU if there is one."""
    import torch  # here, since processes whose memory is measured import this module

    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    gpus = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([models[0] if models else platform.machine(), f"{len(os.sched_getaffinity(0))} cores", *gpus])


def describe_commit() -> str | None:
    """Return the commit of this checkout."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class Bench:
    """One execution of a benchmark.

    Attributes:
        name: of the benchmark.
        rounds: number of measurements of each figure.
        quick: whether to measure smaller sizes, which takes less than a minute.
        mosaic: whether `data` may create the environment that mosaicml-streaming needs.
        machine, commit: see `Record`.
    """

    name: str
    rounds: int = 1
    quick: bool = False
    mosaic: bool = False
    machine: str = field(default_factory=describe_machine)
    commit: str | None = field(default_factory=describe_commit)

    def size(self, full: T, quick: T) -> T:
        """Return the first of two sizes, or the second if this is a quick execution."""
        return quick if self.quick else full

    def record(
        self,
        what: str,
        unit: str,
        values: Sequence[float],
        baseline: str | None = None,
        theirs: Sequence[float] = (),
        goal: float | None = None,
    ) -> Record:
        """Return the record of a figure with a value for each round, and of its baseline if there is one."""
        ratios: list[float] = []
        if baseline and all([*values, *theirs]):
            pairs = zip(values, theirs, strict=True)
            ratios = [theirs / ours if unit in LESS_IS_BETTER else ours / theirs for ours, theirs in pairs]
        return Record(
            bench=self.name,
            what=f"{what} (quick: a small size)" if self.quick else what,
            value=_rounded(median(values)),
            unit=unit,
            baseline=baseline,
            baseline_value=_rounded(median(theirs)) if baseline else None,
            times_the_baseline=_rounded(median(ratios)) if ratios else None,
            rounds=len(values),
            spread=(_rounded(min(ratios or values)), _rounded(max(ratios or values))),
            machine=self.machine,
            commit=self.commit,
            goal=None if self.quick else goal,  # goals are for the full sizes
        )

    def compare(
        self,
        what: str,
        turns: Turns,
        ours: str,
        baseline: str,
        unit: str = "images/s",
        goal: float | None = None,
        figure: str | None = None,
    ) -> Record:
        """Return the record of one figure (default: the one that is named like its unit) of two ways."""
        figure = figure or unit
        return self.record(what, unit, turns[ours][figure], baseline, turns[baseline][figure], goal)

    def leave_out(self, what: str, why: object) -> None:
        """Print a line about a figure that cannot be measured here."""
        print(f"{self.name}: left out: {what}: {why}", file=sys.stderr)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def alternate(ways: Mapping[str, Way], rounds: int, warm_up: int = 0) -> Turns:
    """Perform each way once in each round, after rounds that do not count; return the figures of all rounds."""
    turns: Turns = {name: {} for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            begun, used = time.perf_counter(), time.process_time()
            done = way()
            figures = {"s": time.perf_counter() - begun, "CPU s": time.process_time() - used}
            figures |= done if isinstance(done, Mapping) else {"images/s": done / figures["s"]}
            for figure, value in figures.items() if number >= 0 else ():
                turns[name].setdefault(figure, []).append(value)
    return turns


def in_own_process(function: Callable[..., Mapping[str, float]], *arguments: object) -> Way:
    """Return a way that calls a function of a module with texts, in a new process, for the figures that it returns."""
    code = f"import json, sys; from {function.__module__} import {function.__name__} as function; "
    words = [sys.executable, "-c", f"{code}print(json.dumps(function(*sys.argv[1:])))", *map(str, arguments)]

    def measure() -> dict[str, float]:
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures

    return measure


def peak_mib(children: int = 0) -> float:
    """Return the peak memory of this process, plus that of its largest child as often as `children` says, in MiB."""
    # Not `ru_maxrss` of this process, which begins with the peak of the process that started it.
    own = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[0])
    return (own + children * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def each(work: Callable[[Any], object], items: Sequence[Any]) -> Way:
    """Return a way that does some work on each item, and counts them."""

    def work_on() -> int:
        for item in items:
            work(item)
        return len(items)

    return work_on


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Within the block, restrict this process, and processes that it starts, to the first `count` of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def repeat(work: Callable[[], Any], count: int, images: int = 1) -> Way:
    """Return a way that does some work `count` times, on so many images each, until the GPU is done."""
    import torch

    def work_on() -> int:
        for _ in range(count):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return count * images

    return work_on
