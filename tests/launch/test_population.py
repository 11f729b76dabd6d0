"""Population based training on a real Ray cluster: the worst trial continues from the best one's checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import Checkpoint
from safetensors.torch import load_file

from dcgan_dist.command_line import build_settings
from dcgan_dist.launch.ray_tune import SOURCE_NAME, _Population, to_tune, tune_result
from dcgan_dist.runs.checkpoints import name_of, read_checkpoint
from dcgan_dist.runs.run import Run
from dcgan_dist.sweeps.exploit import SourceCheckpoint
from dcgan_dist.sweeps.ledger import Ledger
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from tests.launch.test_ray_tune import SWEEP, Driver, drive, trials

pytestmark = pytest.mark.timeout(600)  # on a busy machine the processes of a run start slowly

__all__ = ["drive"]  # a fixture

LRS = [0.032, 0.03, 0.031, 1e-7]  # with the last one, the images of the generator stay grey
SETTINGS = {
    "schedule": "pbt",
    "training.steps": 96,
    "training.log_every": 3,
    "space": {"optim.lr": {"grid": LRS}},
}


def assert_exploited(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Check that the trial with the bad learning rate has another trial's weights, a new learning rate and a parent."""
    bad, parent = found["t0003"], found["t0003"]["parent"]
    assert parent is not None
    assert parent["trial"] in found
    assert parent["trial"] != "t0003"
    own, source = (
        folder / "trials" / name / "checkpoints" / name_of(parent["step"]) for name in ("t0003", parent["trial"])
    )
    assert read_checkpoint(source).state["digest"] == parent["digest"]  # not changed
    assert read_checkpoint(own).state["parent"] == parent
    for name in ("generator", "discriminator", "optim"):
        ours, theirs = load_file(own / f"{name}.safetensors"), load_file(source / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)
    assert bad["parameters"]["optim.lr"] in LRS[:3]
    rows = Run(folder / "trials/t0003").rows()
    before = [row for row in rows if row["step"] <= 32]
    after = [row for row in rows if row["step"] > parent["step"]]
    assert {row["lr"] for row in before} == {1e-7}
    assert {row["lr"] for row in after} == {bad["parameters"]["optim.lr"]}
    assert {(row["parent"], row["parent_step"], row["parent_digest"]) for row in after} == {
        (parent["trial"], parent["step"], parent["digest"])
    }
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 96


def test_a_bad_trial_continues_from_the_best_with_other_values_also_after_a_kill(
    drive: Callable[..., Driver],
) -> None:
    driver = drive(**SETTINGS)
    driver.until(lambda found: found.get("t0003", {}).get("parent") is not None)
    driver.kill()
    again = drive(**SETTINGS)
    code, out, err = again.finish()
    assert (code, err) == (0, ""), out
    found = trials(again.ledger)
    assert {trial["status"] for trial in found.values()} == {"finished"}
    assert {trial["step"] for trial in found.values()} == {96}
    assert_exploited(again.folder, found)


# Without a cluster


class Waiting:
    """A trial that Tune has paused at a milestone, with Tune's checkpoint of it."""

    def __init__(self, folder: Path, record: TrialRecord) -> None:
        self.trial_id = f"id of {record.trial}"
        self.config = to_tune(record)
        self.status = "PAUSED"
        self.experiment_tag = record.trial
        kept = folder / f"kept-{record.trial}"
        kept.mkdir()
        source = SourceCheckpoint(str(folder / "trials" / record.trial), 16, f"digest of {record.trial}")
        (kept / SOURCE_NAME).write_text(json.dumps(asdict(source)))
        self.checkpoint = Checkpoint.from_directory(str(kept))
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=SimpleNamespace())

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag


class Population:
    """A ledger of trials, the scheduler, and the part of Tune that it uses."""

    def __init__(self, folder: Path, most: int = 4) -> None:
        settings = {**SWEEP, "schedule": "pbt", "space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}}}
        self.ledger = Ledger.open(SweepPlan.of(build_settings(SweepConfig, settings)), str(folder))
        records = [
            self.ledger.start(TrialRecord(trial=f"t000{number}", parameters={"optim.lr": lr}))
            for number, lr in enumerate((1e-3, 2e-3, 3e-3, 9e-3))
        ]
        self.trials = [Waiting(folder, record) for record in records]
        self.scheduler = _Population(self.ledger, most)
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[Waiting]:
        return self.trials

    def get_live_trials(self) -> list[Waiting]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def reach(self, number: int, objective: float, milestone: int = 1) -> None:
        """Let a trial reach a milestone."""
        report = {"milestone": milestone, "step": 16 * milestone, "objective": objective}
        self.scheduler.on_trial_result(self, self.trials[number], tune_result(report))  # type: ignore[arg-type]

    def next(self) -> str | None:
        """Return the name of the trial that runs next."""
        trial = self.scheduler.choose_trial_to_run(self)
        return None if trial is None else trial.config["trial"]


@pytest.fixture
def population(tmp_path: Path) -> Iterator[Population]:
    made = Population(tmp_path / "sweep")
    with made.ledger:
        yield made


def test_the_worst_copies_the_best_checkpoint_and_a_value_close_to_its_own_when_all_have_reported(
    population: Population,
) -> None:
    for number, objective in enumerate((0.9, 0.5, 0.4)):
        population.reach(number, objective)
    assert [trial.config["parent"] for trial in population.trials] == [None] * 4
    assert population.next() == "t0003"  # the others wait for it
    population.reach(3, -math.inf)
    parent = {"trial": "t0000", "step": 16, "digest": "digest of t0000"}
    worst = population.trials[3].config
    assert (worst["trial"], worst["known"], worst["parent"]) == ("t0003", [16], parent)
    assert worst["optim.lr"] != 9e-3
    assert 1e-5 <= worst["optim.lr"] <= 1e-2
    assert [trial.config["optim.lr"] for trial in population.trials[:3]] == [1e-3, 2e-3, 3e-3]
    # It is on the disk before the trial continues.
    entered = json.loads(Path(population.ledger.location, "sweep.json").read_text())["trials"][3]
    assert (entered["parent"], entered["parameters"]) == (parent, {"optim.lr": worst["optim.lr"]})
    assert population.next() is not None


def test_if_all_are_equally_bad_none_is_replaced(population: Population) -> None:
    for number in range(4):
        population.reach(number, -math.inf)
    assert [trial.config["parent"] for trial in population.trials] == [None] * 4
    assert population.next() is not None


@pytest.mark.parametrize("how", ["on_trial_complete", "on_trial_error"])
def test_the_others_do_not_wait_for_a_trial_that_has_ended(population: Population, how: str) -> None:
    for number, objective in enumerate((0.9, 0.5, 0.4)):
        population.reach(number, objective)
    if how == "on_trial_complete":
        population.scheduler.on_trial_complete(population, population.trials[3], {})
    else:
        population.scheduler.on_trial_error(population, population.trials[3])
    population.trials[3].status = "TERMINATED"
    assert population.trials[2].config["parent"] == {"trial": "t0000", "step": 16, "digest": "digest of t0000"}
    assert population.trials[3].config["parent"] is None
    assert population.next() in ("t0000", "t0001", "t0002")


def test_at_most_the_allowed_number_of_trials_runs_at_a_time(tmp_path: Path) -> None:
    population = Population(tmp_path / "sweep", most=2)
    with population.ledger:
        population.trials[0].status = "RUNNING"
        assert population.next() == "t0001"
        population.trials[1].status = "RUNNING"
        assert population.next() is None


def test_in_a_restarted_population_trials_that_are_behind_catch_up_first(tmp_path: Path) -> None:
    population = Population(tmp_path / "sweep")
    with population.ledger:
        population.ledger.update("t0000", milestones=({"step": 16}, {"step": 32}))
        population.scheduler = _Population(population.ledger, 4)
        for trial in population.trials:
            population.scheduler.on_trial_add(population, trial)
        for number in range(4):
            population.reach(number, 0.1 * number, milestone=1)
        assert all(trial.config["parent"] is None for trial in population.trials)
