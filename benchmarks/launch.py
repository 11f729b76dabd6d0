"""`launch`: images/s of the same two-worker run under Ray Train and under torchrun, alternating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from dcgan_dist.errors import DcganDistError

SETTINGS = (
    "--data.path=rooms:2000",
    "--model.ngf=32",
    "--model.ndf=32",
    "--model.kernel_size=4",
    "--training.batch_size=64",
    "--training.steps=96",
    "--training.log_every=8",
    "--training.sample_every=1000",
    "--training.checkpoint_every=1000",
)


def _images_per_s(words: list[str]) -> float:
    """Run a training command and return the median rate of its log lines in the second half of the run.

    In the first half, Ray is still starting processes of its own, which take time from the workers if cores are few.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*words, *SETTINGS, f"--run_dir={run}"], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DcganDistError(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr[-500:]}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(median(row["images_per_s"] for row in rows[len(rows) // 2 :]))


def bench_launch(rounds: int = 5) -> list[dict[str, Any]]:
    """Measure both ways to start two workers, alternating; the cost is 1 - the median of the rounds' ratios."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ways = {
        "torchrun": [*torchrun, "-m", "dcgan_dist.train"],
        "ray_train": [sys.executable, "-m", "dcgan_dist.train", "--cluster.workers=2"],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, words in ways.items():
            rates[name].append(_images_per_s(words))
    ratios = [ray / plain for ray, plain in zip(rates["ray_train"], rates["torchrun"], strict=True)]
    return [
        {
            "bench": "launch",
            "what": "two workers, rooms 64x64, ngf 32, batch 64",
            "ray_train_images_per_s": round(median(rates["ray_train"]), 1),
            "torchrun_images_per_s": round(median(rates["torchrun"]), 1),
            "cost_of_ray_train": round(1 - median(ratios), 4),
            "rounds": rounds,
            "ratios": [round(ratio, 4) for ratio in ratios],
        }
    ]
