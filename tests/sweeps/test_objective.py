from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation import diversity
from dcgan_dist.sweeps.objective import FRECHET_SAMPLES, SCORES, Objective, best_of, pareto_front, ranked
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import ScoreConfig

GOOD = {"representation": 0.8, "coverage": 0.5, "frechet_distance": 12.0}


def record(trial: str, **fields: object) -> TrialRecord:
    scores = {name: {"value": value} for name, value in dict(fields.pop("scores", {})).items()}  # type: ignore[call-overload]
    return TrialRecord(trial=trial, parameters={}, scores=scores, **fields)  # type: ignore[arg-type]


def test_one_score_or_the_first_of_several_or_their_weighted_sum_is_maximised() -> None:
    assert Objective.parse("coverage").value(GOOD) == 0.5
    assert Objective.parse(" coverage , representation").value(GOOD) == 0.5
    assert Objective.parse("representation:1,coverage:0.5").value(GOOD) == pytest.approx(0.8 + 0.5 * 0.5)
    assert Objective.parse("representation,coverage").values(GOOD) == [0.8, 0.5]
    assert Objective.parse("representation,coverage").is_multiple
    assert not Objective.parse("representation:1,coverage:1").is_multiple


def test_a_distance_is_minimised_alone_in_a_sum_and_on_the_front() -> None:
    assert Objective.parse("frechet_distance").value(GOOD) == -12
    assert Objective.parse("coverage:2,frechet_distance:0.1").value(GOOD) == pytest.approx(1 - 1.2)
    near, far = ({"coverage": 0.5, "frechet_distance": distance} for distance in (3.0, 4.0))
    records = [record("near", scores=near), record("far", scores=far)]
    assert pareto_front(records, ["coverage", "frechet_distance"]) == ["near"]


def test_missing_scores_give_no_objective() -> None:
    assert Objective.parse("stability").value(GOOD) is None
    assert Objective.parse("coverage").value({"coverage": math.nan}) is None
    assert Objective.parse("coverage:1,stability:1").value(GOOD) is None
    # Without weights only the first score is needed; the front needs all.
    several = Objective.parse("coverage,stability")
    assert several.value(GOOD | {"frechet_distance": math.inf}) == 0.5
    assert several.values(GOOD) is None


@pytest.mark.parametrize("verdict", ["diverged", "collapse"])
def test_trials_that_diverged_or_collapsed_rank_below_all_others_whatever_their_scores(verdict: str) -> None:
    objective = Objective.parse("representation")
    assert objective.value({"representation": 0.99}, verdict) is None
    for other in ("stable", "oscillation", "discriminator_wins", "undecided", None):
        assert objective.value({"representation": 0.1}, other) == 0.1
    records = [
        record("early", verdict=verdict, scores={"representation": 0.99}, step=10),
        record("poor", verdict="stable", scores={"representation": 0.1}, objective=0.1, step=5),
        record("late", verdict=verdict, scores={"representation": 0.98}, step=20),
        record("negative", scores={"representation": -3}, objective=-3.0, step=1),
        record("good", verdict="stable", scores={"representation": 0.5}, objective=0.5, step=5),
    ]
    assert [entry.trial for entry in ranked(records)] == ["good", "poor", "negative", "late", "early"]
    assert pareto_front(records, ["representation"]) == ["good"]
    best = best_of(records)
    assert best is not None
    assert best.trial == "good"
    assert best_of([records[0], records[2]]) is None


def test_the_front_is_that_of_optuna_on_random_scores() -> None:
    rng = np.random.default_rng(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for names in (["coverage", "recall"], ["coverage", "recall", "frechet_distance"]):
        directions = ["minimize" if name == "frechet_distance" else "maximize" for name in names]
        study = optuna.create_study(directions=directions)
        values = rng.integers(0, 6, size=(60, len(names))).astype(float)  # coarse, so that there are ties
        records = [record(f"t{i:04d}", scores=dict(zip(names, row, strict=True))) for i, row in enumerate(values)]
        study.add_trials([optuna.create_trial(values=row.tolist()) for row in values])
        front = pareto_front(records, names)
        assert front == [f"t{trial.number:04d}" for trial in sorted(study.best_trials, key=lambda trial: trial.number)]
        assert 0 < len(front) < 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beauty", "no score 'beauty': take some of representation, stability, precision, .*frechet_distance"),
        ("", "no score ''"),
        ("coverage,", "no score ''"),
        ("coverage,coverage", "coverage twice"),
        ("coverage:1,recall", "give each score a weight, or none"),
        ("coverage:x", "the weight 'x' is not a positive number"),
        ("coverage:", "the weight '' is not a positive number"),
        ("coverage:-1", "the weight '-1' is not a positive number"),
        ("coverage:inf", "the weight 'inf' is not a positive number"),
    ],
)
def test_an_invalid_objective_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective.parse(text)


def test_other_scores_can_be_given() -> None:
    known = [*SCORES, "window"]
    assert Objective.parse("window", known).value({"window": 0.7}) == 0.7
    with pytest.raises(ConfigError, match="frechet_distance, window"):
        Objective.parse("windows", known)


@pytest.mark.parametrize(
    ("text", "score", "message"),
    [
        ("representation", ScoreConfig(task="none"), "score.task is none"),
        ("stability,coverage", ScoreConfig(count=0), "coverage, but score.count is 0"),
        ("frechet_distance", ScoreConfig(count=500), "score.count is 500: take 5000 or more"),
    ],
)
def test_a_score_that_no_trial_will_have_is_refused_before_any_starts(
    text: str, score: ScoreConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective.parse(text).check(score)
    Objective.parse(text).check(ScoreConfig(count=5000))
    Objective.parse("stability").check(score)


def test_the_fewest_samples_for_a_frechet_distance_are_those_of_the_evaluation() -> None:
    assert FRECHET_SAMPLES == diversity.FRECHET_IMAGES
