"""The part of `sweep` on the start of a trial with two workers: its time, by stage."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import ray
from ray._private.state import state  # the public calls need a dashboard, and do not have the start times of actors

from benchmarks.measuring import Bench, Record, alternate
from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.launch.event_bus import EventBus
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


@contextmanager
def small_cluster(settings: Mapping[str, str]) -> Iterator[float]:
    """Within the block, run Ray on two cores of this machine; yield the seconds that its start took."""
    os.environ.update({**settings, **os.environ, "OMP_NUM_THREADS": "1"})
    begun = time.perf_counter()
    ray.init(log_to_driver=False, logging_level=logging.ERROR, num_cpus=WORKERS)
    try:
        yield time.perf_counter() - begun
    finally:
        ray.shutdown()


def bench_trial_start(bench: Bench) -> Iterator[Record]:
    """Start a run several times in a cluster of this machine; the first one does not count."""
    with small_cluster(RAY_SETTINGS), tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / f"run{number}" for number in count())
        stages = alternate({"": lambda: _measure(next(runs))}, bench.size(RUNS, 1), bench.size(1, 0))[""]
    what = f"start of a trial of {WORKERS} workers of Ray Train"
    for stage, seconds in stages.items():
        if stage not in ("s", "CPU s"):
            yield bench.record(f"{what}: {stage}", "s", seconds)
    yield bench.record(f"{what}: imports in each new process", "s", [_import_seconds()])


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
    marks = {
        "the event bus": ready[EventBus.__name__],
        "Ray Train's controller": ready["TrainController"],
        "placement and processes of the workers": ready["RayTrainWorker"],
        "set-up of the workers": (location / "config.yaml").stat().st_mtime,
        "first step": lines[0],
    }
    stages = {stage: at - before for (stage, at), before in zip(marks.items(), (begun, *marks.values()), strict=False)}
    return {"until the first step": lines[0] - begun, **stages, "end": ended - lines[-1]}


def _import_seconds() -> float:
    """Return the seconds that as many processes as there are workers take to import the program, Ray and PyTorch."""
    imports = [
        subprocess.Popen([sys.executable, "-c", _IMPORT], stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    return max(float(process.communicate()[0]) for process in imports)
