"""`sweep`: the time of a sweep of many short trials, compared with their training alone, and the savings of halving.

Successive halving is not run, but replayed on a sweep in which every trial runs to its end: the same trials, with the
same scores at each milestone, are reported to Tune's own scheduler in the order in which they would have come, and it
decides which would have been stopped.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ray.tune.schedulers import TrialScheduler

from benchmarks.measuring import Bench, Record
from benchmarks.trial_start import WORKERS as AT_ONCE
from benchmarks.trial_start import bench_trial_start, small_cluster
from dcgan_dist.command_line import build_settings
from dcgan_dist.launch.ray_tune import METRIC, TIME, TUNE_SETTINGS, WORST, make_scheduler, run_sweep
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig

TRIALS = 100
GOAL = 0.83  # a total of 1.2 times the ideal
SETTINGS = {
    "trials": TRIALS,
    "concurrent": AT_ONCE,
    "schedule": "fifo",
    "milestones": 2,
    "objective": "stability",
    "score.task": "none",
    "score.samples": 0,
    "space": {"optim.lr": {"loguniform": [1e-5, 1e-3]}, "model.slope": {"uniform": [0.0, 0.5]}},
    "data.path": "rooms:512",
    "model.image_size": 32,
    "model.ngf": 16,
    "model.ndf": 16,
    "training.batch_size": 32,
    "training.steps": 24,  # about a second
    "training.sample_count": 16,
    "training.device": "cpu",
}
WHOLE = {
    **SETTINGS,
    "trials": 24,
    "milestones": 4,
    "objective": "representation,stability",
    "score.task": "rooms",
    "score.images": 1000,
    "score.labels_per_class": 25,
    "score.finalists": 0,
    "space": {
        "optim.lr": {"loguniform": [1e-5, 1e-1]},
        "optim.beta1": {"uniform": [0.0, 0.99]},
        "model.slope": {"uniform": [0.0, 1.0]},
    },
    "training.steps": 240,
}
"""Trials whose scores halving is replayed on: the space of configs/sweeps/stability.yaml."""
ORDERS = 200


def bench_sweep(bench: Bench) -> Iterator[Record]:
    """Measure both in a cluster of this machine, and the start of a trial with its own workers.

    The ideal is that trials only train, two at a time; the total excludes the time to start Ray, and the first trial of
    each of the two processes.
    """
    config = build_settings(SweepConfig, SETTINGS | bench.size({}, {"trials": 8, "training.steps": 6}))
    settings = WHOLE | bench.size(
        {}, {"trials": 4, "training.steps": 8, "score.images": 400, "score.labels_per_class": 5}
    )
    fifo, asha = (build_settings(SweepConfig, {**settings, "schedule": name}) for name in ("fifo", "asha"))
    sweeps = []
    with small_cluster(TUNE_SETTINGS) as ray_init, tempfile.TemporaryDirectory() as folder:
        for number in range(bench.rounds):
            location = Path(folder) / f"short{number}"
            sweeps.append(_describe(location, _run(config, location)))
        records = _run(fifo, Path(folder) / "whole")
    yield bench.record(f"ray.init with {AT_ONCE} CPUs", "s", [ray_init])
    yield from _overhead(bench, config, sweeps)
    yield from compare_with_halving(bench, records, fifo, asha)
    yield from bench_trial_start(bench)


def _run(config: SweepConfig, location: Path) -> list[TrialRecord]:
    """Run a sweep, and return its trials."""
    with contextlib.redirect_stdout(io.StringIO()):  # standard output is only for the figures
        return list(run_sweep(config, str(location)).records.values())


def _describe(location: Path, records: list[TrialRecord]) -> dict[str, float]:
    """Return trials/s, those of the ideal, and seconds of the first and of the later trials."""
    training = [_training_seconds(location / record.directory) for record in records]
    opened = [(location / record.directory / "config.yaml").stat().st_mtime for record in records]
    started = [record.started or 0.0 for record in records]
    ended = [record.ended or 0.0 for record in records]
    whole = [end - start for start, end in zip(started, ended, strict=True)]
    later = slice(AT_ONCE, None)  # the first ones wait for their processes, which import and compile
    count, total = len(records) - AT_ONCE, max(ended) - mean(ended[:AT_ONCE])
    starts = [there - start for start, there in zip(started, opened, strict=True)]
    rest = [all_of_it - start - own for all_of_it, start, own in zip(whole, starts, training, strict=True)]
    return {
        "trials/s": count / total,
        "ideal trials/s": AT_ONCE / mean(training[later]),
        "until the first trial opens its run directory": min(opened) - min(started),
        "the first trial of a process": mean(whole[:AT_ONCE]),
        "a later trial: training": mean(training[later]),
        "a later trial: before its run directory": mean(starts[later]),
        "a later trial: networks, milestones, checkpoints, end": mean(rest[later]),
        "a later trial: until the next": (AT_ONCE * total - sum(whole[later])) / count,
    }


def _overhead(bench: Bench, config: SweepConfig, sweeps: Sequence[dict[str, float]]) -> Iterator[Record]:
    steps = config.train.training.steps
    what = f"{config.trials} trials, {AT_ONCE} at a time, rooms 32x32, ngf 16, batch 32, {steps} steps"
    values = {name: [sweep[name] for sweep in sweeps] for name in sweeps[0]}
    rates = values.pop("trials/s"), "training alone", values.pop("ideal trials/s")
    yield bench.record(f"{what}; after the first {AT_ONCE}", "trials/s", *rates, GOAL)
    yield from (bench.record(f"{what}: {name}", "s", seconds) for name, seconds in values.items())


@dataclass(frozen=True)
class Halved:
    """The result of a schedule on some trials.

    Attributes:
        steps: of training, in total.
        seconds: of all trials together.
        stopped: number of trials that it stopped.
        best: the highest objective of a trial that ran to its end, None if there is none.
    """

    steps: int
    seconds: float
    stopped: int
    best: float | None


@dataclass(frozen=True)
class _Replayed:
    """The attributes of a trial that a scheduler uses."""

    trial_id: str
    config: dict[str, str]


def replay(records: Sequence[TrialRecord], config: SweepConfig, at_once: int) -> Halved:
    """Report trials that ran to their end to the scheduler of `config`; return the result that it would have had.

    Args:
        records: of the trials, in the order in which they start.
        config: with the schedule.
        at_once: number of trials that run at the same time. A trial takes its real time, spread evenly over its steps.
    """
    scheduler: Any = make_scheduler(config, [])
    trials = [_Replayed(record.trial, {"trial": record.trial}) for record in records]
    # The last entry of a trial that diverged is the step where it did so, not a milestone.
    ends = [len(record.milestones) - 1 if record.milestones else 0 for record in records]
    arrivals: list[tuple[float, int, int]] = []  # time when a trial reaches an entry, index of the trial and the entry
    steps, seconds, stopped, begun = 0, 0.0, 0, 0
    starts = [0.0] * len(records)
    objectives: list[float] = []

    def reached(index: int, entry: int) -> tuple[int, float]:
        record = records[index]
        step = record.milestones[entry]["step"] if entry < ends[index] else record.step
        return step, record.seconds * step / max(1, record.step)

    now = 0.0
    while arrivals or begun < len(records):
        while begun < len(records) and len(arrivals) < at_once:
            scheduler.on_trial_add(None, trials[begun])
            starts[begun] = now
            heapq.heappush(arrivals, (now + reached(begun, 0)[1], begun, 0))
            begun += 1
        now, index, entry = heapq.heappop(arrivals)
        if entry < ends[index]:
            objective = records[index].milestones[entry]["objective"]
            result = {TIME: entry + 1, METRIC: WORST if objective is None else objective}
            if scheduler.on_trial_result(None, trials[index], result) == TrialScheduler.CONTINUE:
                heapq.heappush(arrivals, (starts[index] + reached(index, entry + 1)[1], index, entry + 1))
                continue
            stopped += 1
        else:
            objective = records[index].objective
            objectives += [] if objective is None else [objective]
        steps += reached(index, entry)[0]
        seconds += reached(index, entry)[1]
    return Halved(steps, seconds, stopped, max(objectives, default=None))


def compare_with_halving(
    bench: Bench, records: Sequence[TrialRecord], fifo: SweepConfig, asha: SweepConfig
) -> Iterator[Record]:
    """Yield the savings of asha on trials that all ran to their end, in their order and in random orders."""
    whole = replay(records, fifo, AT_ONCE)
    draw = random.Random(0)
    others = [replay(draw.sample(records, len(records)), asha, AT_ONCE) for _ in range(ORDERS)]
    what = (
        f"asha on {len(records)} trials of optim.lr x optim.beta1 x model.slope, rooms 32x32, ngf 16, batch 32, "
        f"{fifo.train.training.steps} steps, {fifo.milestones} milestones, reduction {asha.reduction:g}"
    )
    intervals = [
        "(95% interval of that of all: {:.3f} to {:.3f})".format(*record.scores["representation"]["ci95"])
        for record in records
        if record.objective is not None and record.objective == whole.best
    ]
    for order, halved in (("", [replay(records, asha, AT_ONCE)]), (f", in {ORDERS} random orders", others)):
        baseline = "all to their end"
        whole_steps, whole_best = [whole.steps] * len(halved), [whole.best or 0] * len(halved)
        yield bench.record(what + order, "steps", [each.steps for each in halved], baseline, whole_steps)
        best = [each.best or 0 for each in halved]
        yield bench.record(
            f"{what}{order}: the best trial {' '.join(intervals[:1])}",
            "objective",
            best,
            baseline,
            whole_best,
        )
    same = mean(each.best == whole.best for each in others)
    yield bench.record(f"{what}: random orders in which it finds the best trial", "share", [same])


def _training_seconds(run: Path) -> float:
    """Return the time from the first step of a run to its last log line."""
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["time_s"])
