"""`bench sweep`: how long a sweep of many short trials takes beside the time that their training itself takes."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import ray

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import SweepConfig
from dcgan_dist.launch.ray_tune import TUNE_SETTINGS, run_sweep
from dcgan_dist.sweeps.record import TrialRecord

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
    "training.steps": 80,
    "training.sample_count": 16,
    "training.device": "cpu",
}


def bench_sweep(rounds: int = 1) -> list[dict[str, Any]]:
    """Run the sweep in a cluster of this machine; the ideal is that its trials do nothing but train, two at a time.

    The time to start Ray, and the time until the first trial trains, are no part of the total.
    """
    return [_measure() for _ in range(rounds)]


def _measure() -> dict[str, Any]:
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = "1"
    begun = time.perf_counter()
    ray.init(log_to_driver=False, logging_level=logging.ERROR, num_cpus=AT_ONCE)
    ray_init = time.perf_counter() - begun
    try:
        with tempfile.TemporaryDirectory() as folder:
            location = Path(folder) / "sweep"
            ledger = run_sweep(build_settings(SweepConfig, SETTINGS), str(location))
            return _describe(location, list(ledger.records.values()), ray_init)
    finally:
        ray.shutdown()


def _describe(location: Path, records: list[TrialRecord], ray_init: float) -> dict[str, Any]:
    steps = SETTINGS["training.steps"]
    training = [_training_seconds(location / record.directory) for record in records]
    opened = [(location / record.directory / "config.yaml").stat().st_mtime for record in records]
    started = [record.started or 0.0 for record in records]
    ended = [record.ended or 0.0 for record in records]
    whole = [end - start for start, end in zip(started, ended, strict=True)]
    total, ideal = max(ended) - min(opened), sum(training) / AT_ONCE
    later = slice(AT_ONCE, None)  # the first ones wait for their processes
    starts = [there - start for start, there in zip(started, opened, strict=True)]
    rest = [all_of_it - start - own for all_of_it, start, own in zip(whole, starts, training, strict=True)]
    return {
        "bench": "sweep",
        "what": f"{TRIALS} trials, {AT_ONCE} at a time, rooms 32x32, ngf 16, batch 32, {steps} steps",
        "total_s": round(total, 2),
        "ideal_s": round(ideal, 2),
        "times_the_ideal": round(total / ideal, 3),
        "goal": GOAL,
        "ray_init_s": round(ray_init, 2),
        "first_trial_starts_after_s": round(min(opened) - min(started), 2),
        "of_a_later_trial_s": {
            "training": round(mean(training[later]), 3),
            "before_its_run_directory": round(mean(starts[later]), 3),
            "networks_milestones_and_end": round(mean(rest[later]), 3),
            "until_the_next": round((AT_ONCE * total - sum(whole) + sum(starts[:AT_ONCE])) / len(records), 3),
        },
        "finished": sum(record.status == "finished" for record in records),
    }


def _training_seconds(run: Path) -> float:
    """Return the time from the first step of a run to its last log line."""
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["time_s"])
