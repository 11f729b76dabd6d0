"""The report's reading of ten thousand runs, beside Ray Tune's own reader of results."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dcgan_dist.config import Config, override

TRIALS = 10_000
ROWS = 200
GRIDS = 5
_CURVES = 100  # different metrics files; each is that of many trials, as one file with many names


def make_pile(folder: Path, trials: int = TRIALS, rows: int = ROWS) -> None:
    """Write run directories: settings of their own, metrics, five grids and scores; equal files are hard links."""
    shared = folder / ".shared"
    shared.mkdir(parents=True)
    for number in range(_CURVES):
        (shared / f"{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in _curve(number, rows)))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((512, 512)).save(shared / "grid.png")
    draw = random.Random(0)
    for number in range(trials):
        run = folder / f"t{number:05d}"
        (run / "samples").mkdir(parents=True)
        changes = {
            "name": run.name,
            "optim.lr": round(10 ** draw.uniform(-5, -2), 8),
            "optim.beta1": round(draw.uniform(0, 0.95), 4),
            "model.slope": round(draw.uniform(0, 0.5), 4),
            "training.steps": 50 * rows,
        }
        settings = asdict(override(Config(), changes)) | {"environment": {"torch": "2.13.0+cpu", "host": "a"}}
        (run / "config.yaml").write_text(_yaml(settings))
        status = {"status": "finished", "reason": "", "host": "a", "pid": 1, "heartbeat": 1e9, "step": 50 * rows}
        (run / "status.json").write_text(json.dumps(status))
        interval = {"value": draw.uniform(0, 1), "ci95": [0.4, 0.6], "n": 500}
        entry = {"step": 50 * rows, "method": "dcgan", "protocol": "full", "metrics": {"accuracy": interval}}
        (run / "scores.json").write_text(json.dumps({"rooms": [entry]}))
        os.link(shared / f"{number % _CURVES}.jsonl", run / "metrics.jsonl")
        for grid in range(GRIDS):
            os.link(shared / "grid.png", run / "samples" / f"step-{grid * 10 * rows:08d}.png")
        os.link(shared / "grid.png", run / "samples" / "real.png")


def _yaml(tree: dict[str, Any], indentation: str = "") -> str:
    """Write settings as a run does, only faster."""
    lines = ""
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += f"{indentation}{key}:\n{_yaml(value, indentation + '  ')}"
        else:
            lines += f"{indentation}{key}: {yaml.safe_dump(value).splitlines()[0]}\n"
    return lines


def _curve(number: int, rows: int) -> Iterator[dict[str, float | int | None]]:
    draw = random.Random(number)
    for row in range(1, rows + 1):
        yield {
            "step": 50 * row,
            "epoch": 50 * row / 157,
            "images_seen": 6400 * row,
            "loss_d": draw.uniform(0.1, 1.5),
            "loss_g": draw.uniform(0.5, 6),
            "d_real": draw.uniform(0.5, 1),
            "d_fake": draw.uniform(0, 0.5),
            "images_per_s": draw.uniform(300, 500),
            "data_wait": draw.uniform(0, 0.01),
            "sample_distance": draw.uniform(0.3, 0.9),
            "filter_oscillation": draw.uniform(0, 0.1) if row > 20 else None,
            "lr": 0.0002,
            "images_lost": 0,
            "world_size": 1,
            "time_s": 16.4 * row + draw.random(),
        }


def make_tune_pile(pile: Path, folder: Path) -> None:
    """Write what `make_pile` wrote as Ray Tune lays it out: result.json of each trial, and the experiment's state.

    Tune also repeats the whole config, the host and the like in every line, which is left out here in its favour.
    """
    from ray.train._internal.storage import StorageContext
    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    trials = []
    for run in sorted(pile.glob("t*")):
        settings = yaml.load((run / "config.yaml").read_text(), yaml.CSafeLoader)
        settings.pop("environment")
        trial = Trial(
            "trainable",
            config=settings,
            trial_id=run.name,
            storage=copy(storage),
            stub=True,
        )
        trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
        trial.storage.trial_dir_name = run.name
        (folder / run.name).mkdir()
        os.link(run / "metrics.jsonl", folder / run.name / "result.json")
        with (run / "metrics.jsonl").open() as file:
            *_, last = file
        trial.run_metadata.last_result = {"trial_id": run.name, "config": settings, **json.loads(last)}
        trials.append(trial.get_json_state())
    (folder / "experiment_state-2026-01-01_00-00-00.json").write_text(json.dumps({"trial_data": trials}))
