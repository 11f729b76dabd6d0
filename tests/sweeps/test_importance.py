from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dcgan_dist.sweeps import importance as module
from dcgan_dist.sweeps.importance import importance
from dcgan_dist.sweeps.record import TrialRecord

Values = dict[str, Any]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 30)
    monkeypatch.setattr(module, "_TREES", 10)


def trials(
    score: Callable[[Values], float | None], count: int, draw: Callable[[np.random.Generator], Values], seed: int = 0
) -> list[TrialRecord]:
    generator = np.random.default_rng(seed)
    drawn = [draw(generator) for _ in range(count)]
    return [
        TrialRecord(trial=f"t{number:04d}", parameters=values, status="finished", objective=score(values))
        for number, values in enumerate(drawn)
    ]


def unit(generator: np.random.Generator) -> Values:
    return {name: float(generator.uniform()) for name in ("a", "b", "c")}


def shares(records: list[TrialRecord]) -> dict[str, float]:
    found = importance(records)
    assert found is not None
    assert all(entry["ci95"][0] <= entry["value"] <= entry["ci95"][1] for entry in found.values())
    return {key: entry["value"] for key, entry in found.items()}


def test_shares_of_a_sum_are_those_of_its_variance() -> None:
    # Sobol indices of 4a + 2b on the unit cube: 16/20 and 4/20.
    found = importance(trials(lambda values: 4 * values["a"] + 2 * values["b"], 200, unit))
    assert found is not None
    assert next(iter(found)) == "a"
    assert found["a"]["value"] == pytest.approx(0.8, abs=0.1)
    assert found["b"]["value"] == pytest.approx(0.2, abs=0.08)
    assert found["c"]["value"] == pytest.approx(0, abs=0.02)
    assert found["a"]["ci95"][0] > found["b"]["ci95"][1]
    assert found["b"]["ci95"][0] > 0


def test_an_effect_of_two_settings_together_counts_for_both() -> None:
    # Neither has any effect on average; the total index of each is 1.
    both = shares(trials(lambda values: float((values["a"] - 0.5) * (values["b"] - 0.5) > 0), 300, unit))
    assert both["a"] > 0.5
    assert both["b"] > 0.5
    assert abs(both["c"]) < 0.1


def test_noise_and_a_constant_setting_or_score_give_no_importance() -> None:
    noise = np.random.default_rng(5)
    found = importance(trials(lambda _: float(noise.normal()), 40, lambda generator: unit(generator) | {"d": 3}))
    assert found is not None
    assert all(entry["ci95"][0] < 0 for key, entry in found.items() if key != "d")
    assert found["d"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert set(shares(trials(lambda _: 0.5, 10, unit)).values()) == {0.0}


def test_the_scale_of_a_setting_does_not_matter() -> None:
    made = trials(lambda values: values["a"], 60, unit)
    logarithmic = [
        replace(record, parameters={key: 10 ** (4 * value - 5) for key, value in record.parameters.items()})
        for record in made
    ]
    assert importance(logarithmic) == importance(made)


def test_names_booleans_and_settings_that_are_not_always_searched_are_distinguished() -> None:
    def draw(generator: np.random.Generator) -> Values:
        norm = str(generator.choice(["paper", "all", "none"]))
        values = {"norm": norm, "bias": bool(generator.integers(2)), **unit(generator)}
        return {key: value for key, value in values.items() if key != "b" or norm == "all"}

    # Where norm is not `all`, b is missing and scores 2.
    found = shares(
        trials(lambda values: {"paper": 0, "all": 4, "none": 8}[values["norm"]] + values.get("b", 2), 150, draw)
    )
    assert found["norm"] > 0.5
    assert abs(found["bias"]) < 0.05
    assert abs(found["a"]) < 0.05
    # A setting of which only the absence has an effect.
    absent = shares(trials(lambda values: float("b" in values), 80, draw))
    assert absent["b"] > 0.1


def test_a_trial_that_diverged_collapsed_or_failed_counts_as_the_worst() -> None:
    def score(values: Values) -> float | None:
        return None if values["a"] > 0.7 else 1.0 + 0.01 * values["b"]

    kinds: list[dict[str, Any]] = [{"status": "diverged"}, {"status": "failed"}, {"verdict": "collapse"}]
    made = trials(score, 90, unit)
    worst = [
        TrialRecord(trial=record.trial, parameters=record.parameters, **{"status": "finished", **kinds[number % 3]})
        if record.objective is None
        else record
        for number, record in enumerate(made)
    ]
    explicit = [
        TrialRecord(
            trial=record.trial,
            parameters=record.parameters,
            status="finished",
            objective=min(entry.objective for entry in made if entry.objective is not None)
            if record.objective is None
            else record.objective,
        )
        for record in made
    ]
    assert importance(worst) == importance(explicit)
    # Running trials, and those stopped before they had a score, do not count.
    waiting = [TrialRecord(trial="x", parameters={"a": 0.9}, status=status) for status in ("running", "stopped")]
    assert importance([*worst, *waiting]) == importance(worst)


def test_few_trials_give_none_and_the_same_trials_the_same_numbers() -> None:
    made = trials(lambda values: values["a"], 8, unit)
    assert importance(made[:7]) is None
    assert importance(made) == importance(made) is not None
    assert importance([]) is None


def test_intervals_get_narrower_with_more_trials() -> None:
    def width(count: int) -> float:
        found = importance(trials(lambda values: 4 * values["a"] + 2 * values["b"], count, unit))
        assert found is not None
        return float(np.ptp(found["a"]["ci95"]))

    assert width(240) < width(24) / 1.5
