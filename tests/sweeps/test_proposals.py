"""The search algorithms of sweeps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dcgan_dist.command_line import build_settings
from dcgan_dist.sweeps.objective import Objective
from dcgan_dist.sweeps.proposals import OptunaProposals, Proposals, proposals
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space

RAW = {"optim.lr": {"loguniform": [1e-5, 1e-1]}, "model.batch_norm": {"choice": ["paper", "all"]}}
SPACE = Space.parse(RAW)


def source(search: str, ended: list[TrialRecord] | None = None, **settings: object) -> Proposals:
    config = build_settings(SweepConfig, {"space": RAW, "search": search, **settings})
    return proposals(config, SPACE, Objective.parse(config.objective), ended or [])


def ended(number: int, parameters: dict[str, Any], **scores: float) -> TrialRecord:
    measured = {name: {"value": value} for name, value in scores.items()}
    return TrialRecord(
        trial=f"t{number:04d}", parameters=parameters, status="finished", step=8, steps=8, scores=measured
    )


@pytest.mark.parametrize("search", ["random", "grid"])
def test_values_of_a_number_are_the_same_after_a_restart(search: str) -> None:
    first, second = source(search, trials=6), source(search, trials=6)
    values = [first.propose(f"t{number:04d}", number) for number in range(first.total)]
    assert [second.propose(f"t{number:04d}", number) for number in reversed(range(second.total))] == values[::-1]
    assert len({str(each) for each in values}) == first.total


def test_a_grid_has_as_many_trials_as_points() -> None:
    assert source("grid", trials=5).total == 10
    assert source("random", trials=5).total == 5


def test_optuna_proposes_values_closer_to_good_ones_than_chance() -> None:
    asked, distances = source("optuna", trials=40, seed=3), []
    for number in range(40):
        values = asked.propose(f"t{number:04d}", number)
        distances.append(abs(math.log10(values["optim.lr"]) + 3))
        asked.tell(ended(number, values, representation=-distances[-1]))
    assert sum(distances[20:]) / 20 < 0.75  # by chance 1


def test_optuna_knows_earlier_trials_after_a_restart() -> None:
    first = source("optuna", trials=40)
    records = []
    for number in range(12):
        record = ended(number, first.propose(f"t{number:04d}", number), representation=number / 12)
        first.tell(record)
        records.append(record)
    again = source("optuna", records, trials=40)
    assert isinstance(first, OptunaProposals)
    assert isinstance(again, OptunaProposals)

    def known(asked: OptunaProposals) -> list[Any]:
        return [(trial.params, trial.values, trial.state) for trial in asked.study.get_trials()]

    assert known(again) == known(first)


def test_optuna_gets_the_right_state_of_stopped_diverged_and_failed_trials() -> None:
    asked = source("optuna", trials=40)
    assert isinstance(asked, OptunaProposals)
    changes: list[dict[str, Any]] = [
        {"status": "finished"},
        {"status": "stopped", "step": 4},
        {"status": "diverged"},
        {"status": "finished", "verdict": "collapse"},
        {"status": "failed"},
    ]
    for number, change in enumerate(changes):
        record = ended(number, asked.propose(f"t{number:04d}", number), representation=0.5)
        asked.tell(dataclasses.replace(record, **change))
    found = asked.study.get_trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "FAIL"]
    assert [trial.intermediate_values for trial in found] == [{}, {4: 0.5}, {}, {}, {}]


def test_several_scores_without_weights_are_several_directions() -> None:
    asked = source("optuna", trials=40, objective="coverage,frechet_distance")
    assert isinstance(asked, OptunaProposals)
    for number, coverage in enumerate((0.5, 0.9, 0.1)):
        values = asked.propose(f"t{number:04d}", number)
        asked.tell(ended(number, values, coverage=coverage, frechet_distance=10 * coverage))
    collapsed = ended(3, asked.propose("t0003", 3), coverage=1.0, frechet_distance=0.0)
    asked.tell(dataclasses.replace(collapsed, verdict="collapse"))
    known = [trial.values for trial in asked.study.get_trials()]
    assert known == [[0.5, -5.0], [0.9, -9.0], [0.1, -1.0], [0.1, -9.0]]
    weighted = source("optuna", trials=40, objective="coverage:1,frechet_distance:0.5")
    assert isinstance(weighted, OptunaProposals)
    weighted.tell(ended(0, {"optim.lr": 1e-3, "model.batch_norm": "all"}, coverage=0.5, frechet_distance=2.0))
    assert weighted.study.get_trials()[0].values == [-0.5]
