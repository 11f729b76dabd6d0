"""The configs of the published runs: they load, are complete, and describe the published networks and protocols."""

import json
import re
import runpy
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from dcgan_dist.command_line import build_settings, parse_settings, read_yaml_settings
from dcgan_dist.config import Config, flatten
from dcgan_dist.models import build_networks, family_of
from dcgan_dist.models.family import COMMON

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = [
    *("faces", "imagenet32", "lsun-bedrooms", "mnist-cdcgan", "mnist-cgan", "mnist-dcgan", "mnist-gan"),
    *("rooms", "svhn", "tutorial64"),
]


def load(name: str) -> Config:
    return parse_settings(Config, ["--config", str(CONFIGS / f"{name}.yaml")], "test", "")


def test_there_is_a_config_for_each_published_run() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_is_complete_and_names_itself(name: str) -> None:
    written = read_yaml_settings(CONFIGS / f"{name}.yaml", Config)
    every = list(flatten(Config()))
    family = family_of(load(name).model)
    expected = {f"model.{setting}" for setting in COMMON | family.settings}
    assert {key for key in written if key.startswith("model.")} == expected, "no setting that the family has not"
    expected |= {key for key in every if key.startswith("optim.")}
    expected |= {"seed", "name", "data.path", "training.epochs", "training.batch_size", "training.updates"}
    assert expected - written.keys() == set()
    config = load(name)
    assert config.name == name
    assert not Path(config.data.path).is_absolute()
    for key, value in written.items():
        number = float(value) if isinstance(value, str) and "e-" in value else value
        assert flatten(config)[key] == (tuple(number) if isinstance(number, list) else number), key


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds_networks_that_turn_noise_into_a_logit(name: str) -> None:
    config = load(name).model
    with torch.device("meta"):
        generator, discriminator = build_networks(config)
        z, y = torch.zeros(2, config.z_dim), torch.zeros(2, generator.classes)
        image = generator(z, y)
        assert image.shape == (2, config.channels, config.image_size, config.image_size)
        assert discriminator(image, y).shape == (2,)


@pytest.mark.parametrize(
    ("name", "generator_values", "discriminator_values"),
    [
        # Sums of the products of each weight's shape, and two values per channel, or unit, for each batch norm.
        (
            "lsun-bedrooms",
            16384 * 100 + 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 2 * (1024 + 512 + 256 + 128),
            25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 16384 + 2 * (256 + 512 + 1024),
        ),
        (
            "faces",
            16384 * 100 + 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 2 * (16384 + 512 + 256 + 128),
            25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 16384 + 2 * (256 + 512 + 1024),
        ),
        (
            "imagenet32",
            8192 * 256
            + 9 * (512 * 512 + 512 * 256 + 256 * 256 + 256 * 128 + 128 * 128 + 128 * 3)
            + 2 * (8192 + 512 + 256 + 256 + 128 + 128),
            9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
            + 8192
            + 2 * (128 + 256 + 256 + 512 + 512),
        ),
        (
            "svhn",
            4096 * 100 + 25 * (256 * 128 + 128 * 64 + 64 * 3) + 2 * (4096 + 128 + 64),
            25 * (3 * 64 + 64 * 128 + 128 * 256) + 4096 + 2 * (128 + 256),
        ),
        (
            "tutorial64",
            8192 * 100 + 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64),
            16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 8192 + 2 * (128 + 256 + 512),
        ),
        (
            "mnist-cdcgan",
            110 * 1024 + 1034 * 6272 + 25 * (138 * 64 + 74 * 1),
            25 * (11 * 64 + 74 * 128) + 6282 * 1024 + 1034,
        ),
        (
            "mnist-dcgan",
            6272 * 100 + 25 * (128 * 64 + 64 * 1) + 2 * (128 + 64),
            25 * (1 * 64 + 64 * 128) + 6272 + 2 * 128,
        ),
        ("mnist-gan", 65 * 256 + 257 * 784, 785 * 128 + 129),
        ("mnist-cgan", 75 * 256 + 257 * 784, 795 * 128 + 129),
    ],
)
def test_a_config_describes_the_published_network(name: str, generator_values: int, discriminator_values: int) -> None:
    with torch.device("meta"):
        generator, discriminator = build_networks(load(name).model)
    assert sum(parameter.numel() for parameter in generator.parameters()) == generator_values
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == discriminator_values


PROTOCOL = [
    "model.z_distribution",
    "model.norm_gain_init",
    "model.projection_norm",
    "model.norm_eps",
    "model.sample_statistics",
    "optim.lr",
    "optim.l2",
    "optim.decay",
    "training.epochs",
    "training.batch_size",
    "training.updates",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lsun-bedrooms", ("uniform", "paper", "paper", 1e-5, "running", 2e-4, 0, 0, 5, 128, "paper")),
        ("faces", ("uniform", "released", "released", 1e-8, "batch", 2e-4, 1e-5, 0, 25, 128, "released")),
        ("imagenet32", ("uniform", "released", "released", 1e-8, "batch", 2e-4, 1e-5, 0, 30, 128, "released")),
        ("svhn", ("normal", "released", "released", 1e-8, "batch", 5e-4, 1e-5, 0, 200, 64, "released")),
        ("tutorial64", ("normal", "released", "paper", 1e-5, "batch", 2e-4, 0, 0, 5, 128, "paper")),
        ("mnist-cdcgan", ("uniform", "paper", "released", 1e-8, "batch", 2e-4, 2.5e-5, 0.5, 200, 128, "released")),
    ],
)
def test_a_config_follows_the_published_protocol(name: str, expected: tuple[object, ...]) -> None:
    flat = flatten(load(name))
    assert tuple(flat[key] for key in PROTOCOL) == expected
    assert flat["optim.beta1"] == 0.5
    assert flat["model.slope"] == 0.2
    assert flat["model.conv_bias"] is False


@pytest.mark.parametrize("name", ["mnist-gan", "mnist-cgan"])
def test_the_gans_of_dense_layers_follow_the_seed(name: str) -> None:
    flat = flatten(load(name))
    expected = {"model.z_dim": 64, "optim.lr": 3e-4, "optim.discriminator_loss": "mean", "optim.l2": 0.0}
    expected |= {"training.batch_size": 32, "training.epochs": 50, "training.updates": "paper"}
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_which_source_it_follows_and_how_to_prepare_the_data(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    header = text[: text.index("\nseed:")]
    assert "Contested settings" in header
    commands = re.findall(r"python -m dcgan_dist\.prepare (.*)", header)
    assert len(commands) == 1
    output = re.search(r"--output (\S+)", commands[0])
    assert output is not None
    path = load(name).data.path
    assert path == output[1] or path.startswith("rooms:")


def test_a_config_written_out_whole_is_read_back_the_same() -> None:
    config = load("svhn")
    assert build_settings(Config, flatten(config)) == config


class _Yaml12(yaml.SafeLoader):
    """Reads numbers such as 1e-5 as editors do, by YAML 1.2; to YAML 1.1 they are text."""


_Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+"), list("-+0123456789")
)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_names_its_schema_and_keeps_to_it(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    schema = json.loads((path.parent / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    content = yaml.load(path.read_text(encoding="utf-8"), _Yaml12)
    jsonschema.validate(content, schema)
    for wrong in ({"optim": {"lrr": 1e-3}}, {"optim": {"lr": -1}}, {"model": {"image_size": 48}}, {"optim": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | wrong, schema)


def test_the_schemas_are_what_the_settings_give() -> None:
    made = runpy.run_path(str(CONFIGS.parent / "docs" / "make_schema.py"))
    for path, settings_class in made["FILES"].items():
        assert path.read_text(encoding="utf-8") == made["text"](settings_class), "python docs/make_schema.py writes it"
