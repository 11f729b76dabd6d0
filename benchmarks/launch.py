"""`launch`: images/s of the same two-worker run under Ray Train and under torchrun, alternating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.measuring import Bench, Record, Way, alternate
from dcgan_dist.errors import DcganDistError

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WAYS = {
    "torchrun": [*_TORCHRUN, "-m", "dcgan_dist.train"],
    "Ray Train": [sys.executable, "-m", "dcgan_dist.train", "--cluster.workers=2"],
}


def _training(words: list[str], width: int, steps: int) -> Way:
    """Return a way to train that reports the median rate of the log lines in the second half of the run.

    In the first half, Ray is still starting processes of its own, which take time from the workers if cores are few.
    """
    settings = {
        "data.path": "rooms:2000",
        "model.ngf": width,
        "model.ndf": width,
        "model.kernel_size": 4,
        "training.batch_size": 64,
        "training.steps": steps,
        "training.log_every": steps // 12,
        "training.sample_every": 1000,
        "training.checkpoint_every": 1000,
    }

    def train() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [*words, *(f"--{name}={value}" for name, value in settings.items()), f"--run_dir={run}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DcganDistError(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr[-500:]}")
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {"images/s": median(row["images_per_s"] for row in rows[len(rows) // 2 :])}

    return train


def bench_launch(bench: Bench) -> Iterator[Record]:
    """Measure both ways to start two workers."""
    width, steps = bench.size((32, 96), (8, 24))
    turns = alternate({name: _training(words, width, steps) for name, words in WAYS.items()}, bench.rounds)
    what = f"two workers of Ray Train, rooms 64x64, ngf {width}, batch 64, the second half of {steps} steps"
    yield bench.compare(what, turns, "Ray Train", "torchrun", goal=0.98)
