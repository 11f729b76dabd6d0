"""Hooks get each event of a run, in order, without the loop knowing of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.errors import DcganDistError, Diverged, StorageError
from dcgan_dist.runs.documents import Row
from dcgan_dist.stopping import Interrupted
from dcgan_dist.training.fixed_samples import Grids
from dcgan_dist.training.hooks import Hook, Hooks, readable_time
from dcgan_dist.training.progress import Progress
from dcgan_dist.training.reporter import Silent
from dcgan_dist.training.setup import open_data, open_run_directory, resolve_config
from dcgan_dist.training.trainer import Trainer
from tests.conftest import TINY

Event = tuple[str, object]


class Recorder(Hook):
    """Writes down each event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_row(self, row: Row) -> None:
        self.events.append(("row", row["step"]))

    def on_samples(self, step: int, grids: Grids) -> None:
        assert {grid.dtype.name for grid in grids.values()} == {"uint8"}
        self.events.append(("samples", step))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        assert (folder / "state.json").exists()
        self.events.append(("checkpoint", step))

    def on_step_done(self, row: Row, checkpoint: Path | None) -> None:
        self.events.append(("done", (row["step"], checkpoint and int(checkpoint.name[-8:]))))

    def on_end(self, status: str, reason: str, facts: Mapping[str, int]) -> None:
        self.events.append(("end", (status, facts["step"])))


def record(folder: Path, **settings: object) -> list[Event]:
    """Train with a recorder among the hooks, and return what it got."""
    config = build_settings(Config, {**TINY, **settings})
    dataset = open_data(config)
    config = resolve_config(config, dataset)
    recorder = Recorder()
    with open_run_directory(config, dataset, str(folder), "") as run:
        trainer = Trainer(config, World(0, 1, torch.device("cpu")), dataset, run, Silent(), hooks=[recorder])
        try:
            trainer.run_to_end()
        except DcganDistError as error:
            recorder.events.append(("raised", type(error)))
    return recorder.events


def test_events_come_in_the_order_row_samples_checkpoint_done(tmp_path: Path) -> None:
    every = {"training.log_every": 2, "training.sample_every": 4, "training.checkpoint_every": 4}
    assert record(tmp_path, **{"training.steps": 5, **every}) == [
        ("samples", 0),
        *[("row", 2), ("done", (2, None))],
        *[("row", 4), ("samples", 4), ("checkpoint", 4), ("done", (4, 4))],
        *[("row", 5), ("samples", 5), ("checkpoint", 5), ("done", (5, 5))],
        ("end", ("finished", 5)),
    ]


def test_a_run_that_diverges_saves_its_last_finite_state_before_its_last_row_is_done(tmp_path: Path) -> None:
    every = {"training.log_every": 8, "training.sample_every": 100, "training.checkpoint_every": 100}
    events = record(tmp_path, **{"training.steps": 8, "optim.lr": 1e30, **every})
    (finite,) = [step for name, step in events if name == "checkpoint"]
    assert isinstance(finite, int)
    assert finite < 8
    assert events == [
        ("samples", 0),
        *[("row", 8), ("checkpoint", finite), ("done", (8, finite))],
        *[("end", ("diverged", finite)), ("raised", Diverged)],
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [(Diverged("x"), "diverged"), (Interrupted(15), "stopped"), (StorageError("x"), "failed"), (OSError(), "failed")],
)
def test_an_error_ends_a_run_with_its_status_and_is_raised(error: BaseException, status: str) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)), Hooks([recorder]).reporting_errors(Progress(step=3)):
        raise error
    assert recorder.events == [("end", (status, 3))]


def test_a_status_that_cannot_be_written_does_not_hide_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(Hook):
        def on_end(self, status: str, reason: str, facts: Mapping[str, int]) -> None:
            raise StorageError("the disk is full")

    with pytest.raises(Diverged, match="first"), Hooks([Full()]).reporting_errors(Progress()):
        raise Diverged("first")
    assert capsys.readouterr().err == "the disk is full\n"


def test_times_are_written_as_people_say_them() -> None:
    assert [readable_time(seconds) for seconds in (0.4, 89, 90, 5399, 12600)] == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "3.5 h",
    ]
