"""The configs of the product's sweeps: they load, are complete, and search what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dcgan_dist.command_line import parse_settings, read_yaml_settings
from dcgan_dist.config import Config, flatten, override
from dcgan_dist.models import build_networks, family_of
from dcgan_dist.models.family import COMMON
from dcgan_dist.sweeps.objective import Objective
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space, Values, run_settings

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "sweeps"
NAMES = ["capacity", "paper-ablations", "stability"]


def load(name: str) -> SweepConfig:
    return parse_settings(SweepConfig, ["--config", str(CONFIGS / f"{name}.yaml")], "test", "")


def points(config: SweepConfig) -> list[Values]:
    space = Space.parse(config.space)
    if config.search == "grid":
        return space.grid(config.train.seed, config.trials)
    return [space.sample(config.train.seed, number) for number in range(config.trials)]


def test_there_is_a_config_for_each_sweep() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_is_complete_and_says_how_to_start_it(name: str) -> None:
    path, config = CONFIGS / f"{name}.yaml", load(name)
    written = read_yaml_settings(path, SweepConfig)
    expected = {key for key in flatten(SweepConfig()) if key.startswith("optim.")}
    expected |= {f"model.{setting}" for setting in COMMON | family_of(config.train.model).settings}
    expected |= {"seed", "name", "space", "trials", "search", "schedule", "milestones", "objective", "score.task"}
    expected |= {"data.path", "training.epochs", "training.batch_size", "training.updates"}
    assert expected - written.keys() == set()
    assert config.name == name
    commands = re.findall(r"python -m dcgan_dist\.sweep --config (\S+)", path.read_text(encoding="utf-8"))
    assert commands == [f"configs/sweeps/{name}.yaml"]
    Objective.parse(config.objective).check(config.score)


@pytest.mark.parametrize("name", NAMES)
def test_every_trial_of_a_config_passes_the_checks_and_builds_networks(name: str) -> None:
    config = load(name)
    assert SweepPlan.of(config).trials == len(points(config))
    for values in points(config):
        made = override(Config(), run_settings(config, values))
        assert {key: flatten(made)[key] for key in values} == values
        with torch.device("meta"):
            generator, discriminator = build_networks(made.model)
            images = generator(torch.zeros(2, made.model.z_dim), torch.zeros(2, 0))
            assert discriminator(images, torch.zeros(2, 0)).shape == (2,)


def test_the_stability_sweep_covers_a_wide_range_around_the_papers_settings() -> None:
    config = load("stability")
    paper = {"optim.lr": 2e-4, "optim.beta1": 0.5, "model.slope": 0.2}
    assert {key: flatten(config)[key] for key in paper} == paper
    drawn = points(config)
    assert len(drawn) >= 24
    for key, value in paper.items():
        assert any(values[key] < value / 1.5 for values in drawn)
        assert any(values[key] > value * 1.5 for values in drawn)


def test_the_ablations_change_one_of_the_papers_choices_at_a_time() -> None:
    drawn = points(load("paper-ablations"))
    paper, *others = [values for values in drawn if values["seed"] == 0]
    assert paper == {
        "optim.beta1": 0.5,
        "model.batch_norm": "paper",
        "model.head": "flatten",
        "training.updates": "paper",
        "seed": 0,
    }
    changes = [{key: value for key, value in values.items() if value != paper[key]} for values in others]
    assert changes == [
        {"optim.beta1": 0.9},
        {"model.batch_norm": "all"},
        {"model.batch_norm": "none"},
        {"model.head": "average_pool"},
        {"training.updates": "released"},
    ]
    assert {values["seed"] for values in drawn} == {0, 1, 2}
    assert len(drawn) == 18
