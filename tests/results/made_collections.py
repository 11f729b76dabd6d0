"""Runs written by the real writers, for the tests of their readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.config import Config, override
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import open_run
from dcgan_dist.settings import as_record

ENVIRONMENT = {"dcgan_dist": "0.1.0", "torch": "2.13.0+cpu", "host": "example"}


def metrics_row(step: int, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "images_seen": 64 * step,
        "loss_d": 1.0,
        "loss_g": 2.0 - step / 1000,
        "d_real": 0.7,
        "d_fake": 0.3,
        "images_per_s": 400.0,
        "sample_distance": 0.5,
        "filter_oscillation": None if step < 100 else 0.01,
        "world_size": 1,
        "time_s": step / 10,
    } | values


def make_run(
    location: str | Path, *, status: str = "finished", reason: str = "", steps: int = 200, **changes: Any
) -> Path:
    """Write a run of `steps` steps as training does; settings are given as `optim__lr`."""
    settings = override(Config(), {key.replace("__", "."): value for key, value in changes.items()})
    grid = np.zeros((16, 16, 3), dtype=np.uint8)
    with open_run(str(location)) as run:
        run.write_config(as_record(settings), ENVIRONMENT)
        run.write_image("real", grid)
        for step in range(0, steps + 1, 100):
            run.write_image(f"step-{step:08d}", grid)
        for step in range(10, steps + 1, 10):
            run.append_metrics(metrics_row(step))
        run.set_status(status, reason, step=steps, steps=steps)  # type: ignore[arg-type]
    return Path(location)


def add_score(location: str | Path, task: str, step: int | None, value: float, **fields: Any) -> None:
    metrics = {"accuracy": {"value": value, "ci95": [value - 1, value + 1], "n": 100}}
    entry = {"step": step, "method": "dcgan", "protocol": "full", "checkpoint_digest": "ab", "metrics": metrics}
    Run(location).add_scores(task, [entry | fields])
