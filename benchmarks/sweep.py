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
import logging
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import ray
from ray.tune.schedulers import TrialScheduler

from benchmarks.trial_start import measure_trial_start
from dcgan_dist.command_line import build_settings
from dcgan_dist.launch.ray_tune import METRIC, TIME, TUNE_SETTINGS, WORST, make_scheduler, run_sweep
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig

TRIALS = 100
AT_ONCE = 2
GOAL = 1.2
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


def bench_sweep(rounds: int = 1) -> Iterator[dict[str, Any]]:
    """Measure both in a cluster of this machine, and the start of a trial with its own workers.

    The ideal is that trials only train, two at a time; the total excludes the time to start Ray, and the first trial of
    each of the two processes.
    """
    for _ in range(rounds):
        yield _measure_overhead()
    yield measure_trial_start()
    yield _measure_halving()


def _measure_overhead() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder) / "sweep"
        records, ray_init = _run(build_settings(SweepConfig, SETTINGS), location)
        return _describe(location, records, ray_init)


def _measure_halving() -> dict[str, Any]:
    config = build_settings(SweepConfig, WHOLE)
    with tempfile.TemporaryDirectory() as folder:
        records, _ = _run(config, Path(folder) / "sweep")
    return compare_with_halving(records, build_settings(SweepConfig, {**WHOLE, "schedule": "asha"}))


def _run(config: SweepConfig, location: Path) -> tuple[list[TrialRecord], float]:
    """Run a sweep in its own cluster; return its trials, and the seconds to start the cluster."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = "1"
    begun = time.perf_counter()
    ray.init(log_to_driver=False, logging_level=logging.ERROR, num_cpus=AT_ONCE)
    ray_init = time.perf_counter() - begun
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is only for the figures
            return list(run_sweep(config, str(location)).records.values()), ray_init
    finally:
        ray.shutdown()


def _describe(location: Path, records: list[TrialRecord], ray_init: float) -> dict[str, Any]:
    steps = SETTINGS["training.steps"]
    training = [_training_seconds(location / record.directory) for record in records]
    opened = [(location / record.directory / "config.yaml").stat().st_mtime for record in records]
    started = [record.started or 0.0 for record in records]
    ended = [record.ended or 0.0 for record in records]
    whole = [end - start for start, end in zip(started, ended, strict=True)]
    later = slice(AT_ONCE, None)  # the first ones wait for their processes, which import and compile
    total, ideal = max(ended) - mean(ended[:AT_ONCE]), sum(training[later]) / AT_ONCE
    starts = [there - start for start, there in zip(started, opened, strict=True)]
    rest = [all_of_it - start - own for all_of_it, start, own in zip(whole, starts, training, strict=True)]
    return {
        "bench": "sweep",
        "what": f"{TRIALS} trials, {AT_ONCE} at a time, rooms 32x32, ngf 16, batch 32, {steps} steps; after the first "
        f"{AT_ONCE}",
        "total_s": round(total, 2),
        "ideal_s": round(ideal, 2),
        "times_the_ideal": round(total / ideal, 3),
        "goal": GOAL,
        "ray_init_s": round(ray_init, 2),
        "first_trial_starts_after_s": round(min(opened) - min(started), 2),
        "first_trial_takes_s": round(mean(whole[:AT_ONCE]), 2),
        "of_a_later_trial_s": {
            "training": round(mean(training[later]), 3),
            "before_its_run_directory": round(mean(starts[later]), 3),
            "networks_milestones_and_end": round(mean(rest[later]), 3),
            "until_the_next": round((AT_ONCE * total - sum(whole[later])) / (len(records) - AT_ONCE), 3),
        },
        "finished": sum(record.status == "finished" for record in records),
    }


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


def compare_with_halving(records: Sequence[TrialRecord], config: SweepConfig) -> dict[str, Any]:
    """Return the savings of asha on trials that all ran to their end, in their order and in random orders."""
    whole = replay(records, build_settings(SweepConfig, WHOLE), AT_ONCE)
    halved = replay(records, config, AT_ONCE)
    draw = random.Random(0)
    others = [replay(draw.sample(records, len(records)), config, AT_ONCE) for _ in range(ORDERS)]
    interval = next(record.scores["representation"]["ci95"] for record in records if record.objective == whole.best)
    return {
        "bench": "sweep, asha beside fifo",
        "what": f"{len(records)} trials of optim.lr x optim.beta1 x model.slope, rooms 32x32, ngf 16, batch 32, "
        f"{WHOLE['training.steps']} steps, {config.milestones} milestones, reduction {config.reduction:g}",
        "verdicts": dict(Counter(record.verdict for record in records)),
        **{
            name: {
                "steps": each.steps,
                "trial_seconds": round(each.seconds, 1),
                "stopped": each.stopped,
                "best": each.best and round(each.best, 4),
            }
            for name, each in (("fifo", whole), ("asha", halved))
        },
        "ci95_of_best": interval,
        "steps_saved": round(1 - halved.steps / whole.steps, 3),
        f"in_{ORDERS}_random_orders": {
            "steps_saved": round(mean(1 - each.steps / whole.steps for each in others), 3),
            "same_best": round(mean(each.best == whole.best for each in others), 3),
            "best_is_lower_by": round(mean((whole.best or 0) - (each.best or 0) for each in others), 4),
        },
    }


def _training_seconds(run: Path) -> float:
    """Return the time from the first step of a run to its last log line."""
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["time_s"])
