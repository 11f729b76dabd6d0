"""A sweep's settings are read once, and its data opened once, for all trials."""

from __future__ import annotations

from typing import Any

import pytest

from dcgan_dist.settings import build_settings
from dcgan_dist.sweeps import plan as plan_module
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.trial import plan_trial
from tests.conftest import TINY

EPOCHS = {**TINY, "training.steps": None, "training.epochs": 2.5}


def plan_of(space: dict[str, Any], **settings: object) -> SweepPlan:
    return SweepPlan.of(build_settings(SweepConfig, {**EPOCHS, "space": space, **settings}))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of data in the order in which they are opened."""
    paths: list[str] = []
    real = plan_module.open_data
    monkeypatch.setattr(plan_module, "open_data", lambda config: paths.append(config.data.path) or real(config))
    return paths


def test_the_data_is_opened_once_and_all_trials_have_as_many_steps_as_before(opened: list[str]) -> None:
    plan = plan_of({"optim.lr": {"choice": [1e-4, 1e-3]}})
    values = [{"optim.lr": 1e-4}, {"optim.lr": 1e-3}]
    before = [plan_trial(plan, "t0000", "nowhere", parameters) for parameters in values]
    assert opened == ["rooms:256"] * 2
    once = plan.in_steps()
    assert once.config.train.training.steps == 2.5 * 256 / 8
    assert [plan_trial(once, "t0000", "nowhere", parameters) for parameters in values] == before
    assert opened == ["rooms:256"] * 3


@pytest.mark.parametrize(
    ("key", "value"), [("training.batch_size", 16), ("training.epochs", 4), ("data.path", "rooms:512")]
)
def test_a_searched_setting_that_decides_the_length_leaves_it_to_each_trial(key: str, value: object) -> None:
    plan = plan_of({key: {"choice": [value]}})
    assert plan.in_steps() is plan
    steps = plan_trial(plan, "t0000", "nowhere", {key: value}).config.training.steps
    assert steps == {"training.batch_size": 40, "training.epochs": 128, "data.path": 160}[key]


def test_a_length_in_steps_needs_no_data(opened: list[str]) -> None:
    plan = plan_of({"optim.lr": {"choice": [1e-4]}}, **{"training.epochs": None, "training.steps": 24})
    assert plan.in_steps() is plan
    assert opened == []
