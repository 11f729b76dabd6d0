"""Successive halving replayed on trials that ran to their end."""

from __future__ import annotations

import pytest

from benchmarks.sweep import Halved, replay
from dcgan_dist.command_line import build_settings
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig


def config(schedule: str) -> SweepConfig:
    return build_settings(SweepConfig, {"space": {"optim.lr": {"grid": [1, 2]}}, "schedule": schedule, "milestones": 4})


def record(number: int, *objectives: float | None, status: str = "finished", step: int = 40) -> TrialRecord:
    entries = tuple({"step": min(10 * place, step), "objective": each} for place, each in enumerate(objectives, 1))
    fields = {"milestones": entries, "objective": objectives[-1], "step": step, "seconds": float(step)}
    return TrialRecord.from_json({"trial": f"t{number:04d}", "parameters": {}, "status": status, **fields})


TRIALS = [
    record(0, 0.5, 0.5, 0.5, 0.5),
    record(1, 0.4, 0.9, 0.9, 0.9),  # stopped at 10
    record(2, 0.6, 0.4, 0.7, 0.7),  # stopped at 20
    record(3, 0.6, 0.6, 0.1, 0.6),  # milestone 3 is not a rung
    record(4, None, status="diverged", step=5),
    record(5, None, None, None, None),  # stopped at 10
]


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_without_a_schedule_every_trial_goes_to_its_end(at_once: int) -> None:
    assert replay(TRIALS, config("fifo"), at_once) == Halved(steps=205, seconds=205.0, stopped=0, best=0.9)


def test_halving_stops_what_is_not_among_the_best_half_so_far() -> None:
    assert replay(TRIALS, config("asha"), 1) == Halved(steps=125, seconds=125.0, stopped=3, best=0.6)


def test_trials_are_reported_in_the_order_of_their_arrival() -> None:
    # In parallel, the second reaches its first milestone after the first one.
    assert replay(TRIALS[:2], config("asha"), 2) == Halved(steps=50, seconds=50.0, stopped=1, best=0.5)
    assert replay(TRIALS[1::-1], config("asha"), 2) == Halved(steps=60, seconds=60.0, stopped=1, best=0.9)
