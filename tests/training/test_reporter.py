"""What the loop tells its launcher, and when it lets itself be stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.errors import Diverged, Stopped
from dcgan_dist.runs.checkpoints import read_checkpoint
from dcgan_dist.training.trainer import train
from tests.conftest import TINY, metrics

ALONE = World(0, 1, torch.device("cpu"))


@dataclass
class Listener:
    """Remembers every report and the checkpoint's step at that moment; stops when asked for the `stop_at`-th time."""

    stop_at: int = 0
    asked: int = 0
    heard: list[tuple[int, int | None]] = field(default_factory=list)

    def report(self, metrics: dict[str, Any], checkpoint_dir: str | None) -> None:
        step = None if checkpoint_dir is None else read_checkpoint(Path(checkpoint_dir)).step
        self.heard.append((metrics["step"], step))

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_at


def run(folder: Path, listener: Listener, **settings: object) -> None:
    train(build_settings(Config, {**TINY, **settings}), ALONE, listener, run_location=str(folder))


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (folder / "checkpoints").iterdir())


def test_a_log_line_is_reported_after_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    listener = Listener()
    run(tmp_path, listener, **{"training.steps": 15, "training.log_every": 3, "training.checkpoint_every": 6})
    assert listener.heard == [(3, None), (6, 6), (9, 6), (12, 12), (15, 15)]


def test_a_listener_stops_the_run_between_two_log_lines_with_a_checkpoint(tmp_path: Path) -> None:
    settings = {"training.log_every": 5, "training.checkpoint_every": 100}
    with pytest.raises(Stopped, match="stopped at step 7 of 24"):
        run(tmp_path, Listener(stop_at=7), **settings)
    assert steps_saved(tmp_path) == [7]
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "stopped"
    run(tmp_path, listener := Listener(), **settings)
    assert [step for step, _ in listener.heard] == [10, 15, 20, 24]


def test_a_diverged_run_reports_its_last_line_with_the_last_finite_state(tmp_path: Path) -> None:
    listener = Listener()
    with pytest.raises(Diverged):
        run(tmp_path, listener, **{"optim.lr": 1e30, "training.log_every": 8, "training.checkpoint_every": 100})
    ((line, saved),) = listener.heard
    assert line == 8
    assert saved is not None
    assert saved < 8


def test_the_slope_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    rows = {}
    for slope in (0.2, 0.9):
        folder = tmp_path / str(slope)
        run(folder, Listener(), **{"training.steps": 8, "training.log_every": 1})
        run(folder, Listener(), **{"training.steps": 9, "training.log_every": 1, "model.slope": slope})
        rows[slope] = metrics(folder)
    assert rows[0.2][:8] == rows[0.9][:8]
    assert rows[0.2][8]["loss_d"] != rows[0.9][8]["loss_d"]
