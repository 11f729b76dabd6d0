"""One trial of a sweep, without Ray: its plan, its milestones, its ends; and no trial changes the next one."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import flatten
from dcgan_dist.errors import ConfigError
from dcgan_dist.runs.writer import open_run
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.trial import (
    Milestones,
    TrialEnd,
    TrialPlan,
    milestone_steps,
    plan_trial,
    record_refusal,
    run_trial,
)
from tests.conftest import TINY, metrics

SPACE = {"optim.lr": {"loguniform": [1e-5, 1e-1]}}


def make_sweep(**settings: object) -> SweepConfig:
    given = {"space": SPACE, "milestones": 3, "objective": "stability", "score.task": "none", "score.count": 0}
    return build_settings(SweepConfig, {**TINY, **given, **settings})


def make_plan(folder: Path, parameters: dict[str, Any] | None = None, /, **settings: object) -> TrialPlan:
    return plan_trial(SweepPlan.of(make_sweep(**settings)), "t0000", str(folder), parameters or {})


def go(
    plan: TrialPlan,
    deliver: Callable[[dict[str, Any]], bool] = lambda result: True,
    should_stop: Callable[[], bool] = lambda: False,
    known: tuple[int, ...] = (),
) -> TrialEnd:
    return run_trial(plan, deliver, should_stop, session="launch", known=known)


def keeping(results_so_far: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bool]:
    """Return a `deliver` that keeps the result of every milestone, and lets the trial continue."""

    def deliver(result: dict[str, Any]) -> bool:
        results_so_far.append(result)
        return True

    return deliver


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("total", [1, 2, 3, 7, 24, 100, 101])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_milestones_end_the_run_and_are_evenly_spaced(total: int, count: int) -> None:
    steps = milestone_steps(total, count)
    assert steps[-1] == total
    assert len(steps) == min(total, count)
    assert list(steps) == sorted(set(steps))
    gaps = np.diff([0, *steps])
    assert set(gaps[:-1]) <= {steps[0]}
    assert steps[0] <= gaps[-1] < steps[0] + count


def test_settings_that_are_searched_reach_the_run(tmp_path: Path) -> None:
    searched = {"optim.lr": 0.01, "model.slope": 0.5, "training.epochs": 0.5}
    plan = make_plan(tmp_path, searched)
    settings = flatten(plan.config)
    assert (settings["optim.lr"], settings["model.slope"], settings["training.steps"]) == (0.01, 0.5, 16)
    assert (plan.milestones, settings["training.checkpoint_every"]) == ((5, 10, 16), 5)
    assert settings["training.checkpoint_every"] % settings["training.log_every"] == 0


def test_an_invalid_value_leaves_a_run_directory_with_the_reason(tmp_path: Path) -> None:
    sweep, asked = make_sweep(), {"optim.beta1": 1.5, "model.slope": 0.7}
    with pytest.raises(ConfigError, match=r"optim.beta1 is 1.5") as refusal:
        plan_trial(SweepPlan.of(sweep), "t0000", str(tmp_path), asked)
    record_refusal(sweep, str(tmp_path), "t0000", asked, str(refusal.value), "launch")
    with open_run(str(tmp_path)) as run:
        config = run.read_config()
    assert config is not None
    assert (config["optim"]["beta1"], config["model"]["slope"]) == (1.5, 0.7)
    assert (status(tmp_path)["status"], status(tmp_path)["reason"]) == ("failed", str(refusal.value))


def test_every_milestone_has_a_checkpoint_a_grid_scores_and_a_verdict(tmp_path: Path) -> None:
    results_so_far: list[dict[str, Any]] = []
    scoring = {"score.task": "rooms", "score.data": "rooms:256", "score.labels_per_class": 5, "score.draws": 2}
    plan = make_plan(tmp_path, **{"objective": "representation", "score.count": 100, **scoring})
    end = go(plan, keeping(results_so_far))
    assert (end.status, end.reason) == ("finished", "")
    results = [*results_so_far, end.result]
    assert [(result["milestone"], result["step"]) for result in results] == [(1, 8), (2, 16), (3, 24)]
    assert checkpoints(tmp_path) == [8, 16, 24]
    for result in results:
        assert (tmp_path / f"samples/step-{result['step']:08d}.png").exists()
        scores = result["scores"]
        assert set(scores) >= {"representation", "stability", "precision", "recall", "density", "coverage"}
        low, high = scores["representation"]["ci95"]
        assert 0 <= low <= scores["representation"]["value"] <= high <= 1
        assert result["verdict"]
    recorded = json.loads((tmp_path / "scores.json").read_text())
    assert [entry["step"] for entry in recorded["rooms"]] == [8, 16, 24]
    assert [entry["step"] for entry in recorded["fidelity"]] == [8, 16, 24]
    mine = recorded["rooms"][-1]["metrics"]["accuracy"]["value"]
    assert results[-1]["scores"]["representation"]["value"] == pytest.approx(mine / 100)


def test_samples_are_compared_with_all_images_if_there_are_fewer(tmp_path: Path) -> None:
    results_so_far: list[dict[str, Any]] = []
    end = go(make_plan(tmp_path, **{"objective": "coverage", "score.count": 500}), keeping(results_so_far))
    assert end.status == "finished", end.reason
    entries = json.loads((tmp_path / "scores.json").read_text())["fidelity"]
    assert {entry["metrics"]["coverage"]["n"] for entry in entries} == {256}


def test_a_trial_that_is_given_up_stops_at_its_milestone_with_a_checkpoint_and_the_reason(tmp_path: Path) -> None:
    end = go(make_plan(tmp_path), lambda result: result["milestone"] < 2)
    reason = "stopped early by asha at step 16 of 24: it was not among the best 1 in 2 that got this far"
    assert (end.status, end.reason) == ("stopped", reason)
    assert (status(tmp_path)["status"], status(tmp_path)["reason"]) == ("stopped", reason)
    assert checkpoints(tmp_path) == [8, 16]
    assert status(tmp_path)["locked"] is False


def test_a_trial_whose_samples_never_differed_is_undecided_and_at_its_end_collapsed(tmp_path: Path) -> None:
    results_so_far: list[dict[str, Any]] = []
    end = go(make_plan(tmp_path, **{"training.steps": 36}), keeping(results_so_far))
    assert [result["verdict"] for result in results_so_far] == ["undecided"] * 2
    assert all(result["objective"] is not None for result in results_so_far)
    assert "not begun: samples of different z are alike" in results_so_far[0]["verdict_reason"]
    assert (end.result["verdict"], end.result["objective"]) == ("collapse", None)


def test_samples_that_differed_and_grow_alike_have_collapsed_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"step": step, "loss_d": 1.0, "loss_g": 1.0, "d_real": 0.7, "d_fake": 0.3} for step in range(1, 37)]
    rows = [line | {"time_s": 1.0, "sample_distance": 0.5 if line["step"] < 10 else 0.05} for line in lines]
    monkeypatch.setattr("dcgan_dist.runs.run.Run.rows", lambda self: rows)
    plan = make_plan(tmp_path, **{"training.steps": 36})
    milestones = Milestones(plan, torch.device("cpu"), lambda result: True, lambda: False, lambda step, steps: None)
    result = milestones.measure(24)
    assert (result["verdict"], result["objective"]) == ("collapse", None)


def test_a_diverged_trial_says_so_and_is_worse_than_all_others(tmp_path: Path) -> None:
    end = go(make_plan(tmp_path, {"optim.lr": 1e30}))
    assert (end.status, status(tmp_path)["status"]) == ("diverged", "diverged")
    assert (end.result["verdict"], end.result["objective"]) == ("diverged", None)
    assert "non-finite" in end.reason


def test_unusable_data_fail_the_trial_with_their_message(tmp_path: Path) -> None:
    end = go(make_plan(tmp_path / "run", **{"training.batch_size": 400}))
    assert end.status == "failed"
    assert "take a smaller batch" in end.reason
    assert status(tmp_path / "run")["reason"] == end.reason
    assert (tmp_path / "run/config.yaml").exists()


def test_a_stopped_sweep_stops_its_trials_at_once_and_they_resume_to_the_same_end(tmp_path: Path) -> None:
    asked = threading.Event()

    def deliver(result: dict[str, Any]) -> bool:
        asked.set()
        return True

    end = go(make_plan(tmp_path / "a"), deliver, asked.is_set)
    assert (end.status, end.result["step"]) == ("stopped", 8)
    assert go(make_plan(tmp_path / "a"), known=(8,)).status == "finished"
    assert go(make_plan(tmp_path / "b")).status == "finished"
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_milestone_that_was_not_delivered_is_delivered_after_a_restart(tmp_path: Path) -> None:
    def die(result: dict[str, Any]) -> bool:
        raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        go(make_plan(tmp_path), die)
    results_so_far: list[dict[str, Any]] = []
    end = go(make_plan(tmp_path), keeping(results_so_far))
    assert ([result["step"] for result in results_so_far], end.status, end.result["step"]) == ([8, 16], "finished", 24)


def test_a_trial_that_does_not_continue_after_a_milestone_is_stopped_after_a_restart(tmp_path: Path) -> None:
    def die(result: dict[str, Any]) -> bool:
        raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        go(make_plan(tmp_path), die)
    end = go(make_plan(tmp_path), lambda result: False)
    assert (end.status, end.result["step"], status(tmp_path)["status"]) == ("stopped", 8, "stopped")
    assert "at step 8 of 24" in status(tmp_path)["reason"]


@pytest.mark.slow
def test_a_trial_does_not_depend_on_earlier_trials_in_the_process(tmp_path: Path) -> None:
    trials: list[dict[str, Any]] = [
        {"optim.lr": 1e-3, "model.slope": 0.5},
        {"optim.lr": 1e-4, "training.precision": "fp64"},
        {"optim.lr": 1e30},
        {"optim.lr": 2e-4, "training.precision": "bf16", "model.batch_norm": "none"},
    ]

    def run_all(folder: Path, order: list[int]) -> None:
        for number in order:
            plan = plan_trial(SweepPlan.of(make_sweep()), f"t{number}", str(folder / str(number)), trials[number])
            go(plan)

    run_all(tmp_path / "forth", [0, 1, 2, 3])
    before = _belongings()
    run_all(tmp_path / "back", [3, 2, 1, 0])
    assert _belongings() == before
    for number in range(len(trials)):
        one, other = tmp_path / "forth" / str(number), tmp_path / "back" / str(number)
        assert metrics(one) == metrics(other)
        assert checkpoints(one) == checkpoints(other)
        for step in checkpoints(one):
            weights = f"checkpoints/step-{step:08d}/generator.safetensors"
            assert (one / weights).read_bytes() == (other / weights).read_bytes()


def _belongings() -> dict[str, Any]:
    """Return the state of the process that a trial could change for the next one."""
    gc.collect()
    return {
        "files": sorted(os.readlink(f"/proc/self/fd/{name}").split(":")[0] for name in _open_files()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "dtype": torch.get_default_dtype(),
        "torch threads": torch.get_num_threads(),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "tensors": sum(isinstance(item, torch.nn.Parameter) for item in gc.get_objects()),
    }


def _open_files() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
