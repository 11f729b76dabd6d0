"""The part of `sweep` on the start of a trial with two workers: its time, by stage."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray._private.state import state  # the public calls need a dashboard, and do not have the start times of actors

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.launch.ray_train import RAY_SETTINGS, run_on_ray

RUNS = 3
WORKERS = 2
SETTINGS = {
    "cluster.workers": WORKERS,
    "data.path": "rooms:512",
    "model.image_size": 32,
    "model.ngf": 16,
    "model.ndf": 16,
    "training.batch_size": 32,
    "training.steps": 4,
    "training.log_every": 1,
    "training.sample_count": 16,
    "training.device": "cpu",
}
_IMPORT = "import time; begun = time.time(); import dcgan_dist.launch.ray_train; print(time.time() - begun)"


def measure_trial_start() -> dict[str, Any]:
    """Start a run several times in a cluster of this machine; return the medians of all but the first, in seconds."""
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(log_to_driver=False, logging_level=logging.ERROR, num_cpus=WORKERS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            first, *runs = [_measure(Path(folder) / f"run{number}") for number in range(RUNS + 1)]
    finally:
        ray.shutdown()
    return {
        "bench": "sweep",
        "what": f"start of a trial of {WORKERS} workers of Ray Train, medians of {RUNS} after a first one",
        "first_run_until_first_step_s": round(first["until_first_step"], 2),
        **{f"{stage}_s": round(median(run[stage] for run in runs), 2) for stage in first},
        "imports_in_each_new_process_s": round(median(_import_seconds() for _ in range(RUNS)), 2),
    }


def _measure(location: Path) -> dict[str, float]:
    """Return the seconds of each stage of one run."""
    lines: list[float] = []
    begun = time.time()
    run_on_ray(
        build_settings(Config, SETTINGS),
        str(location),
        lambda _metrics, _checkpoint: lines.append(time.time()),
        quiet=True,
    )
    ended = time.time()
    # The time when each kind of process was ready for its first call; for workers, that of the last one.
    ready: dict[str, float] = {}
    for actor in state.actor_table(None).values():
        at = actor["StartTime"] / 1000
        if at >= begun:
            ready[actor["ActorClassName"]] = max(at, ready.get(actor["ActorClassName"], 0.0))
    opened = (location / "config.yaml").stat().st_mtime
    marks = {
        "switchboard": ready["EventBus"],
        "controller": ready["TrainController"],
        "placement_and_worker_processes": ready["RayTrainWorker"],
        "workers_setup": opened,
        "first_step": lines[0],
    }
    stages, before = {}, begun
    for stage, at in marks.items():
        stages[stage], before = at - before, at
    return {"until_first_step": lines[0] - begun, **stages, "end": ended - lines[-1]}


def _import_seconds() -> float:
    """Return the seconds that as many processes as there are workers take to import the program, Ray and PyTorch."""
    imports = [
        subprocess.Popen([sys.executable, "-c", _IMPORT], stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    return max(float(process.communicate()[0]) for process in imports)
