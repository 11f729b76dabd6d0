"""The settings themselves: what each range admits, and changing them by dotted key."""

import dataclasses
import datetime
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist import config
from dcgan_dist.command_line import build_settings
from dcgan_dist.config import ALTERNATIVES, IMAGE_SIZES, Config, ModelConfig, OptimConfig, flatten, override
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.exploration.catalogue import FIGURES
from dcgan_dist.generation.settings import SampleConfig
from dcgan_dist.results.settings import CompareConfig, ReportConfig
from dcgan_dist.settings import describe, kinds_of, settings_in
from dcgan_dist.sweeps.settings import SweepConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("name", ""),
        ("name", "a/b"),
        ("name", ".."),
        ("model.image_size", 48),
        ("model.z_dim", 0),
        ("model.ngf", 0),
        ("model.ndf", -4),
        ("model.classes", -1),
        ("model.slope", float("nan")),
        ("model.norm_eps", 0.0),
        ("model.norm_eps", float("inf")),
        ("model.norm_momentum", 1.5),
        ("optim.lr", 0.0),
        ("optim.lr", float("inf")),
        ("optim.beta1", 1.0),
        ("optim.beta2", -0.1),
        ("optim.eps", float("nan")),
        ("optim.l2", -1e-5),
        ("optim.l2", float("inf")),
        ("optim.decay", 1.1),
        ("data.path", ""),
        ("data.workers", -1),
        ("data.prefetch", 0),
        ("data.image_member", ""),
        ("data.image_member", ".png"),
        ("data.image_member", "a/b"),
        ("training.epochs", 0.0),
        ("training.epochs", float("inf")),
        ("training.epochs", float("nan")),
        ("training.steps", 0),
        ("training.batch_size", 0),
        ("training.log_every", 0),
        ("training.sample_every", 0),
        ("training.sample_count", 0),
        ("training.checkpoint_every", 0),
        ("training.checkpoint_minutes", -1.0),
        ("training.keep_last", 0),
        ("training.keep_every", -500),
        ("cluster.workers", 0),
        ("cluster.max_failures", -2),
        ("cluster.cpus_per_worker", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_naming_key_and_value(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r}: ")) as caught:
        override(Config(), {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 48),
        ("count", 0),
        ("shard_size", 0),
        ("workers", 0),
        ("max_bad", 1.5),
        ("seed", -1),
    ],
)
def test_prepare_refuses_values_out_of_range(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r}: ")):
        override(PrepareConfig(), {key: value})


SETTINGS = {
    "train": Config,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "sample": SampleConfig,
    "sweep": SweepConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    **{name: figure.settings for name, figure in FIGURES.items()},
}
NEGATIVE = {"cluster.max_failures": "-1 is no limit", "model.slope": "any finite number"}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_number_is_infinite_negative_or_absurdly_large(name: str) -> None:
    defaults = SETTINGS[name]()
    for key, setting in settings_in(type(defaults)).items():
        kinds = {int, float} & set(kinds_of(setting.hint))
        if not kinds:
            continue
        absurd = [10**31] if key == "optim.lr" else [10**13, 10**30]  # people raise the rate to see a run diverge
        values: list[float] = absurd + [-1] * (key not in NEGATIVE)
        if float in kinds:
            values = [*map(float, values), math.nan, math.inf, -math.inf]
        for value in values:
            named = rf"\b{key.rpartition('.')[2]}\b.* {re.escape(repr(value))}"
            with pytest.raises(ConfigError, match=named) as caught:
                override(defaults, {key: value})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "way_out"),
    [
        ("model.ngf", 10**6, "expected a whole number from 1 to 1,024"),
        ("model.z_dim", 10**6, "expected a whole number from 1 to 16,384"),
        ("training.batch_size", 10**6, "expected a whole number from 1 to 131,072"),
        ("training.sample_count", 100_000, "expected a whole number from 1 to 10,000"),
        ("cluster.workers", 10**6, "expected a whole number from 1 to 4,096"),
        ("data.workers", 10**6, "expected a whole number from 0 to 512"),
        (
            *("model.generator_units", "256,1000000"),
            "expected a list such as 1,2 or [1, 2], each a whole number from 1 to 16,384",
        ),
    ],
)
def test_an_absurd_size_is_refused_with_the_sizes_that_work(key: str, value: object, way_out: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r}: {way_out}")):
        override(Config(), {key: value})


def test_a_grid_of_samples_is_bounded_by_the_size_of_its_images() -> None:
    assert override(Config(), {"training.sample_count": 10_000, "model.image_size": 64}).training.sample_count == 10_000
    with pytest.raises(ConfigError, match=r"training.sample_count is 2000: a grid of 256 pixels has at most 1,502"):
        override(Config(), {"training.sample_count": 2000, "model.image_size": 256})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"convs_per_scale": 2, "kernel_size": 4}, "model.kernel_size is 4"),
        ({"generator_units": "256,"}, "model.generator_units is '256,'"),
        ({"discriminator_units": "0"}, "model.discriminator_units is '0'"),
        ({"maxout": 1}, "model.maxout is 1"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
    ],
)
def test_settings_of_the_networks_that_exclude_each_other_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        ModelConfig(**changes)  # type: ignore[arg-type]


def test_every_image_size_of_the_contract_is_admitted() -> None:
    assert IMAGE_SIZES == (16, 28, 32, 64, 128, 256)
    assert [ModelConfig(image_size=size).image_size for size in IMAGE_SIZES] == list(IMAGE_SIZES)


def test_epochs_and_steps_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"training.epochs is 5.0 and training.steps is 100: give one of them"):
        override(Config(), {"training.epochs": 5, "training.steps": 100})


def test_a_batch_that_the_workers_cannot_share_evenly_is_refused() -> None:
    assert override(Config(), {"cluster.workers": 4}).cluster.workers == 4
    with pytest.raises(ConfigError, match=r"training.batch_size is 128: .*cluster.workers \(3\)"):
        override(Config(), {"cluster.workers": 3})


def test_override_changes_the_named_settings_and_no_others() -> None:
    before = flatten(Config())
    changed = override(Config(), {"seed": 3, "optim.lr": 1e-3, "optim.beta1": 0.9, "model.ngf": 16})
    differing = {key: value for key, value in flatten(changed).items() if value != before[key]}
    assert differing == {"seed": 3, "optim.lr": 1e-3, "optim.beta1": 0.9, "model.ngf": 16}
    assert flatten(Config()) == before


@pytest.mark.parametrize("key", ["optim.learning_rate", "optimiser.lr", "mode"])
def test_override_refuses_an_unknown_key(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        override(Config(), {key: 1})


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


def test_alternatives_name_settings_that_exist() -> None:
    assert {key for group in ALTERNATIVES for key in group} <= flatten(Config()).keys()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-12, 1e3),
    path=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(str.strip),
    size=st.sampled_from([None, *IMAGE_SIZES]),
    compiled=st.booleans(),
)
def test_settings_survive_being_flattened_and_built_again(
    seed: int, lr: float, path: str, size: int | None, compiled: bool
) -> None:
    changes = {"seed": seed, "optim.lr": lr, "data.path": path, "model.image_size": size, "training.compile": compiled}
    config = override(Config(), changes)
    assert build_settings(Config, {key: flatten(config)[key] for key in changes}) == config


@pytest.mark.parametrize("name", SETTINGS)
def test_the_types_of_all_settings_can_be_named_in_messages(name: str) -> None:
    for key, setting in settings_in(SETTINGS[name]).items():
        words = describe(setting.hint)
        assert "<" not in words, f"{key}: {words}"
        assert "None" not in words, f"{key}: {words}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "3", 3),
        ("seed", np.int64(3), 3),
        ("optim.lr", "2e-4", 2e-4),
        ("optim.lr", 1, 1.0),
        ("optim.lr", np.float32(0.5), 0.5),
        ("name", 1, "1"),
        ("name", datetime.date(2026, 1, 2), "2026-01-02"),
        ("run_dir", Path("a/b"), "a/b"),
        ("run_dir", "null", None),
        ("model.channels", "3", 3),
        ("model.image_size", "null", None),
        ("training.compile", "True", True),
        ("model.generator_units", 5, (5,)),
        ("model.generator_units", "[9, 7]", (9, 7)),
        ("model.generator_units", np.array([9, 7]), (9, 7)),
    ],
)
def test_a_value_takes_its_declared_type_wherever_it_comes_from(key: str, value: object, expected: object) -> None:
    group, _, name = key.rpartition(".")
    in_python = getattr(Config(), group) if group else Config()
    for found in (
        flatten(build_settings(Config, {key: value}))[key],
        flatten(override(Config(), {key: value}))[key],
        getattr(dataclasses.replace(in_python, **{name: value}), name),
    ):
        assert found == expected
        assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"), [("seed", True), ("optim.lr", True), ("name", True), ("training.compile", 2)]
)
def test_truth_is_no_number_and_no_text(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r}: expected ")):
        build_settings(Config, {key: value})


def test_a_sweep_has_the_settings_of_a_run_under_their_own_names() -> None:
    names = settings_in(SweepConfig)
    assert names.keys() >= settings_in(Config).keys()
    sweep = build_settings(SweepConfig, {"optim.lr": 1e-3, "seed": 4, "name": "mine", "trials": 2})
    assert sweep == SweepConfig(train=Config(seed=4, optim=OptimConfig(lr=1e-3)), name="mine", trials=2)
    assert flatten(sweep)["name"] == "mine"
    assert sweep.train.name == Config().name, "trials have names of their own"
    with pytest.raises(ConfigError, match=re.escape("optim.lr is -1.0: expected")):
        override(sweep, {"optim.lr": -1})


def test_settings_of_all_packages_are_imported_without_torch_and_ray() -> None:
    folders = [path.parent.name for path in Path(config.__file__).parent.glob("*/settings.py")]
    assert len(folders) == 5
    modules = ["dcgan_dist.config", "dcgan_dist.doctor", *(f"dcgan_dist.{name}.settings" for name in folders)]
    code = f"import sys, {', '.join(modules)}\nprint({{'torch', 'ray', 'pyarrow'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
