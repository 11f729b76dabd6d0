"""`stability`: train runs that fail on purpose, and print the verdict on each.

Small networks on 32x32 images, each with one setting at a value that is known to be bad for training. The images are
faces if the environment variable DCGAN_DIST_DATA names a folder with `faces_64.tar.gz`, else procedural rooms. The run
directories are kept, with their grids, in `runs/stability`: look at the grids to check the verdicts. docs/stability.md
has the results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Bench, Record
from dcgan_dist.config import Config, ModelConfig, OptimConfig, TrainingConfig, override
from dcgan_dist.data.preparation import prepare
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.distributed import World
from dcgan_dist.errors import Diverged
from dcgan_dist.parallel import LocalPool, usable_cores
from dcgan_dist.results.stability import MIN_LINES, judge
from dcgan_dist.runs.run import Run
from dcgan_dist.training.trainer import train

DATA_VARIABLE = "DCGAN_DIST_DATA"
ARCHIVE = "faces_64.tar.gz"
FOLDER = Path("runs", "stability")
STEPS = 600
ROOMS = "rooms:8000"

# In 600 steps at the paper's learning rate of 2e-4, such a small network learns little: five times that is healthy.
BASE = Config(
    model=ModelConfig(image_size=32, ngf=16, ndf=16, kernel_size=4),
    optim=OptimConfig(lr=1e-3),
    training=TrainingConfig(
        steps=STEPS, batch_size=32, log_every=20, sample_every=80, sample_count=64, checkpoint_every=STEPS, keep_last=1
    ),
)
QUICK = {"training.steps": MIN_LINES, "training.log_every": 1, "model.ngf": 2, "model.ndf": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "lr-fifth": {"optim.lr": 2e-4},
    "lr-hundredth": {"optim.lr": 1e-5},
    "lr-x10": {"optim.lr": 1e-2},
    "lr-x100": {"optim.lr": 1e-1},
    "beta1-0.9": {"optim.beta1": 0.9},
    "beta1-0.99": {"optim.beta1": 0.99},
    "slope-0": {"model.slope": 0.0},
    "slope-1": {"model.slope": 1.0},
    "no-norm": {"model.batch_norm": "none"},
    "norm-everywhere": {"model.batch_norm": "all"},
    "no-norm-lr-x10": {"model.batch_norm": "none", "optim.lr": 1e-2},
    "large-d-small-g": {"model.ndf": 48, "model.ngf": 4},
    "small-d-large-g": {"model.ndf": 2, "model.ngf": 32},
    "z-of-1": {"model.z_dim": 1},
    "batch-of-4": {"training.batch_size": 4},
}


def bench_stability(bench: Bench) -> Iterator[Record]:
    """Yield the score of each run and the healthy one's, for as many seeds of every setting as there are rounds."""
    data = _faces() if os.environ.get(DATA_VARIABLE) and not bench.quick else bench.size(ROOMS, "rooms:64")
    names = list(SETTINGS)[: bench.size(len(SETTINGS), 4)]
    for seed in range(bench.rounds):
        healthy = 0.0
        for name in names:
            location = FOLDER / bench.size("", "quick") / f"{name}-seed{seed}"
            diverged = train_setting(bench, name, data, seed, location)
            verdict = judge(Run(location).rows(), diverged=diverged)
            healthy = verdict.score if name == "healthy" else healthy
            what = f"{location} on {data}: {verdict.name}: {verdict.reason}"
            yield bench.record(what, "score of stability", [verdict.score], f"healthy-seed{seed}", [healthy])


def train_setting(bench: Bench, name: str, data: str, seed: int, location: Path) -> bool:
    """Train one of SETTINGS in a run directory, and return whether it diverged; progress is printed to stderr."""
    config = override(BASE, {**bench.size({}, QUICK), "name": name, "seed": seed, "data.path": data, **SETTINGS[name]})
    try:
        with redirect_stdout(sys.stderr):
            train(config, World(0, 1, torch.device("cpu")), run_location=str(location))
    except Diverged as error:
        print(error, file=sys.stderr)
        return True
    return False


def _faces() -> str:
    """Write shards of the faces, unless they exist, and return their folder."""
    folder = FOLDER / "faces32"
    source = Path(os.environ[DATA_VARIABLE], ARCHIVE)
    wanted = PrepareConfig(source="folder", input=str(source), output=str(folder), image_size=32)
    with redirect_stdout(sys.stderr):
        prepare(wanted, LocalPool(usable_cores()))
    return str(folder)
