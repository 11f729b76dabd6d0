from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import optuna
import pytest
from scipy import stats

from dcgan_dist.config import Config, flatten, override
from dcgan_dist.errors import ConfigError
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space, run_settings

NESTED = {
    "training.precision": {"choice": ["fp32", "bf16"], "when": {"model.norm_momentum": 0.25}},
    "model.norm_momentum": {"grid": [0.25, 0.5], "when": {"model.batch_norm": ["paper", "all"]}},
    "model.batch_norm": {"grid": ["paper", "none"]},
    "optim.lr": {"loguniform": ["1e-5", "1e-1"]},
}


def column(space: Space, key: str, count: int = 2000, seed: int = 0) -> list[Any]:
    return [space.sample(seed, number)[key] for number in range(count)]


def test_drawn_values_have_the_distributions_that_the_space_names() -> None:
    space = Space.parse(
        {
            "optim.beta1": {"uniform": [0.1, 0.9]},
            "optim.lr": {"loguniform": ["1e-5", "1e-1"]},
            "model.z_dim": {"randint": [3, 7]},
            "model.head": {"choice": ["flatten", "average_pool"]},
        }
    )
    assert stats.kstest(column(space, "optim.beta1"), stats.uniform(0.1, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(column(space, "optim.lr"), stats.loguniform(1e-5, 1e-1).cdf).pvalue > 0.01
    whole = column(space, "model.z_dim")
    assert sorted(set(whole)) == [3, 4, 5, 6, 7]
    assert stats.chisquare(np.bincount(whole)[3:]).pvalue > 0.01
    heads = column(space, "model.head")
    assert stats.binomtest(heads.count("flatten"), len(heads)).pvalue > 0.01
    # Settings, and successive trials, are independent of each other.
    lr, beta1 = np.log(column(space, "optim.lr")), np.array(column(space, "optim.beta1"))
    assert abs(stats.pearsonr(lr, beta1).statistic) < 0.08
    assert abs(stats.pearsonr(lr[1:], lr[:-1]).statistic) < 0.08


def test_a_random_trial_depends_only_on_the_seed_and_its_number() -> None:
    lr, beta1 = {"optim.lr": {"loguniform": [1e-5, 1e-1]}}, {"optim.beta1": {"uniform": [0, 1]}}
    both = Space.parse({**lr, **beta1})
    backwards = {number: both.sample(3, number) for number in reversed(range(20))}
    assert [backwards[number] for number in range(20)] == [both.sample(3, number) for number in range(20)]
    # Searching one more setting, or in another order, does not change the values of the others.
    assert [Space.parse(lr).sample(3, number) for number in range(20)] == [
        {"optim.lr": both.sample(3, number)["optim.lr"]} for number in range(20)
    ]
    assert Space.parse({**beta1, **lr}).sample(3, 5) == both.sample(3, 5)
    assert both.sample(3, 0) != both.sample(4, 0)


def test_values_have_the_declared_types_of_their_settings() -> None:
    space = Space.parse(
        {
            "optim.lr": {"choice": ["1e-5"]},
            "optim.l2": {"choice": [0]},
            "model.z-dim": {"choice": ["12"]},
            "training.steps": {"choice": [None]},
            "model.kernel_size": {"choice": ["5"]},
            "model.conv_bias": {"choice": [True]},
            "data.path": {"choice": ["rooms:64"]},
            "model.ngf, model.ndf": {"grid": [[8, "16"]]},
            "model.norm_momentum": {"uniform": ["1e-2", 1]},
        }
    )
    values = space.sample(0, 0)
    momentum = values.pop("model.norm_momentum")
    assert isinstance(momentum, float)
    assert repr(values) == repr(
        {
            "optim.lr": 1e-5,
            "optim.l2": 0.0,
            "model.z_dim": 12,
            "training.steps": None,
            "model.kernel_size": 5,
            "model.conv_bias": True,
            "data.path": "rooms:64",
            "model.ngf": 8,
            "model.ndf": 16,
        }
    )


def test_a_setting_with_a_condition_is_searched_where_it_holds_and_nowhere_else() -> None:
    space = Space.parse(NESTED)
    seen = set()
    for number in range(200):
        values = space.sample(0, number)
        seen.add(tuple(sorted(values)))
        assert ("model.norm_momentum" in values) == (values["model.batch_norm"] == "paper")
        assert ("training.precision" in values) == (values.get("model.norm_momentum") == 0.25)
    assert len(seen) == 3


def test_the_grid_has_every_combination_once_and_conditions_hold_in_it() -> None:
    kinds = {"model.ngf": {"grid": [8, 16, 24]}, "optim.beta1": {"choice": [0.5, 0.9]}}
    points = Space.parse(kinds).grid(draws=7)
    assert points == [{"model.ngf": a, "optim.beta1": b} for a, b in itertools.product([8, 16, 24], [0.5, 0.9])]
    drawn = Space.parse(NESTED).grid(seed=1, draws=3)
    plans = [{key: value for key, value in point.items() if key != "optim.lr"} for point in drawn]
    assert plans[:4] == plans[4:8] == plans[8:]
    assert plans[:4] == [
        {"model.batch_norm": "paper", "model.norm_momentum": 0.25, "training.precision": "fp32"},
        {"model.batch_norm": "paper", "model.norm_momentum": 0.25, "training.precision": "bf16"},
        {"model.batch_norm": "paper", "model.norm_momentum": 0.5},
        {"model.batch_norm": "none"},
    ]
    # Combinations share the drawn values; further draws are added at the end.
    assert len({point["optim.lr"] for point in drawn}) == 3
    assert Space.parse(NESTED).grid(seed=1, draws=2) == drawn[:8]


def test_optuna_gets_the_same_ranges_and_can_learn_earlier_trials() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space.parse(
        {**NESTED, "model.z_dim": {"randint": [4, 9]}, "model.ngf, model.ndf": {"grid": [[8, 4], [16, 8]]}}
    )
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=False))
    informed = optuna.create_study()
    for _ in range(40):
        trial = study.ask()
        values = space.suggest(trial)
        assert set(values) <= set(space.keys)
        assert ("model.norm_momentum" in values) == (values["model.batch_norm"] == "paper")
        assert 1e-5 <= values["optim.lr"] <= 1e-1
        assert (values["model.ngf"], values["model.ndf"]) in [(8, 4), (16, 8)]
        params, distributions = space.as_optuna(values)
        assert params == trial.params
        assert distributions == trial.distributions
        informed.add_trial(optuna.create_trial(params=params, distributions=distributions, value=values["optim.lr"]))
        study.tell(trial, values["optim.lr"])
    assert informed.best_value == study.best_value


def test_optuna_finds_a_minimum_that_a_random_search_of_the_same_size_misses() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space.parse({"optim.lr": {"loguniform": [1e-6, 1]}, "optim.beta1": {"uniform": [0, 1]}})

    def loss(values: dict[str, Any]) -> float:
        return float((np.log10(values["optim.lr"]) + 3.7) ** 2 + 9 * (values["optim.beta1"] - 0.5) ** 2)

    best, random = [], []
    for seed in range(5):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(lambda trial: loss(space.suggest(trial)), n_trials=40)
        best.append(study.best_value)
        random.append(min(loss(space.sample(seed, number)) for number in range(40)))
    assert np.median(best) < np.median(random)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "space is empty"),
        ({"optm.lr": {"choice": [1]}}, "unknown setting optm.lr .* did you mean optim.lr"),
        ({"lr": {"choice": [1]}}, "did you mean optim.lr"),
        ({"trials": {"choice": [1]}}, "trials cannot be searched: it is the same for all trials"),
        ({"score.data_count": {"choice": [1]}}, "score.data_count cannot be searched"),
        ({"training.epochs": {"choice": [1]}, "training.steps": {"choice": [9]}}, "both training.epochs and training"),
        (
            {"optim.lr": {"choice": [1]}, "model.slope": {"choice": [0], "when": {"optim.lr": [2, 3]}}},
            "model.slope when optim.lr is 2.0 or 3.0, which optim.lr never is",
        ),
        (
            {"optim.lr": {"uniform": [0, 1]}, "model.slope": {"choice": [0], "when": {"optim.lr": 2}}},
            "model.slope when optim.lr is 2.0, which optim.lr never is",
        ),
        ({"run_dir": {"choice": ["a"]}}, "run_dir cannot be searched"),
        ({"cluster.workers": {"choice": [1]}}, "cluster.workers cannot be searched: it is the same for all trials"),
        ({"optim.lr": [1, 2]}, "give one of uniform"),
        ({"optim.lr": {"normal": [0, 1]}}, "give one of uniform"),
        ({"optim.lr": {"uniform": [0, 1], "choice": [1]}}, "give one of uniform"),
        ({"optim.lr": {"uniform": [0, 1], "if": {}}}, "give one of uniform"),
        ({"optim.lr": {"uniform": [1, 1]}}, "LOW must be less than HIGH"),
        ({"optim.lr": {"uniform": [0, float("nan")]}}, "both finite"),
        ({"optim.lr": {"uniform": [0, 1, 2]}}, r"expected \[LOW, HIGH\]"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "LOW must be more than 0"),
        ({"optim.lr": {"uniform": ["a", 1]}}, "optim.lr is 'a': expected a number"),
        ({"model.ngf": {"uniform": [8, 16]}}, "model.ngf is a whole number: take randint"),
        ({"model.ngf": {"randint": [8.5, 16]}}, "model.ngf is 8.5: expected a whole number"),
        ({"model.head": {"uniform": [0, 1]}}, "take choice or grid"),
        ({"model.head": {"choice": ["flaten"]}}, "model.head is 'flaten': expected one of flatten, average_pool"),
        ({"model.head": {"choice": []}}, "expected a list that is not empty"),
        ({"model.head": {"grid": "flatten"}}, "expected a list"),
        ({"optim.lr": {"grid": [1e-4, "1e-4"]}}, "twice"),
        ({"optim.lr, optim.beta1": {"uniform": [0, 1]}}, "set together need choice or grid"),
        ({"optim.lr, optim.beta1": {"grid": [[1, 2], [3]]}}, "expected a list of 2 values"),
        ({"optim.lr": {"choice": [1]}, "optim.lr, optim.beta1": {"grid": [[1, 2]]}}, "optim.lr twice"),
        ({"optim.lr": {"choice": [1], "when": {"optim.beta1": 0.5}}}, "optim.beta1 is not searched"),
        ({"optim.lr": {"choice": [1], "when": {"optim.beta": 0.5}}}, "did you mean optim.beta"),
        ({"optim.lr": {"choice": [1], "when": "optim.beta1"}}, "when"),
        (
            {
                "optim.lr": {"choice": [1], "when": {"optim.beta1": 0.5}},
                "optim.beta1": {"choice": [0.5], "when": {"optim.lr": 1}},
            },
            "circle: optim.lr, optim.beta1",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Space.parse(raw)
    assert "\n" not in str(caught.value)


def test_a_value_that_a_check_refuses_is_parsed_and_refused_by_the_trial_that_draws_it() -> None:
    parameters = Space.parse({"optim.beta1": {"grid": [0.5, 1.5]}}).grid()[1]
    with pytest.raises(ConfigError, match=r"optim.beta1 is 1.5: expected a number in \[0, 1\)"):
        override(Config(), run_settings(SweepConfig(), parameters))


INTERVALS = [f"training.{name}" for name in ("log_every", "sample_every", "checkpoint_every", "keep_every")]


@pytest.mark.parametrize("key", INTERVALS)
def test_settings_that_the_milestones_determine_cannot_be_searched(key: str) -> None:
    with pytest.raises(ConfigError, match="follows from the milestones"):
        Space.parse({key: {"choice": [1, 2]}})


@pytest.mark.parametrize(
    "key",
    [key for key in flatten(Config()) if key.startswith(("model.", "optim.", "training.")) and key not in INTERVALS],
)
def test_every_setting_of_networks_optimiser_and_loop_can_be_searched(key: str) -> None:
    assert Space.parse({key: {"choice": [flatten(Config())[key]]}}).sample(0, 0) == {key: flatten(Config())[key]}


def test_settings_of_a_run_are_the_sweeps_overridden_by_the_trials_values() -> None:
    config = override(SweepConfig(), {"optim.beta2": 0.9, "training.epochs": 3.0, "trials": 5})
    settings = run_settings(config, {"optim.lr": 0.5, "training.steps": 7})
    made = flatten(override(Config(), settings))
    changed = {key: value for key, value in made.items() if value != flatten(Config())[key]}
    assert changed == {"optim.beta2": 0.9, "optim.lr": 0.5, "training.steps": 7}


def test_values_of_an_earlier_version_are_read_as_current_ones() -> None:
    spaces = [
        {
            "model.sample_statistics": {"grid": list(statistics)},
            "model.slope": {"choice": [0.1, 0.2], "when": {"model.sample_statistics": statistics[0]}},
        }
        for statistics in (("paper", "released"), ("running", "batch"))
    ]
    assert Space.parse(spaces[0]) == Space.parse(spaces[1])
