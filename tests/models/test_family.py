"""Families of networks: how they are found, and the settings that they refuse."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import dcgan_dist.models
from dcgan_dist.config import ModelConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.models import build_networks, families, family_of


def test_the_names_of_the_contract_are_families() -> None:
    assert {name: family.is_conditional for name, family in families().items()} == {
        "dcgan": False,
        "cdcgan": True,
        "gan": False,
        "cgan": True,
    }


def test_a_file_among_the_models_is_all_that_a_new_family_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newcomer.py").write_text(
        "from dcgan_dist.models.family import Family\n"
        "from dcgan_dist.models.mlp import MlpDiscriminator, MlpGenerator\n"
        "FAMILIES = (Family(name='newcomer', is_conditional=False, generator=MlpGenerator,\n"
        "                   discriminator=MlpDiscriminator, settings=frozenset()),)\n"
    )
    monkeypatch.setattr(dcgan_dist.models, "__path__", [*dcgan_dist.models.__path__, str(tmp_path)])
    generator, discriminator = build_networks(ModelConfig(name="newcomer", image_size=16, channels=1))
    assert discriminator(generator(torch.zeros(2, 100), torch.zeros(2, 0)), torch.zeros(2, 0)).shape == (2,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "stylegan"}, "model.name is 'stylegan': take one of cdcgan, dcgan, gan, cgan"),
        ({"name": "cdcgan", "classes": 0}, "model.classes is 0: cdcgan needs data with labels; or take dcgan or gan"),
        ({"name": "gan", "classes": 10}, "model.classes is 10: gan takes no labels: take 0, or cdcgan or cgan"),
        ({"name": "dcgan", "classes": 10}, "model.classes is 10: dcgan takes no labels"),
        ({"name": "cdcgan", "convs_per_scale": 2}, "model.convs_per_scale is 2: cdcgan has no such setting"),
        ({"name": "cdcgan", "norm_gain_init": "released"}, "model.norm_gain_init is 'released': cdcgan has no such"),
        ({"name": "dcgan", "maxout": 5}, "model.maxout is 5: dcgan has no such setting"),
        ({"name": "cgan", "classes": 10, "kernel_size": 3}, "model.kernel_size is 3: cgan has no such setting"),
    ],
)
def test_settings_that_a_family_does_not_have_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    config = ModelConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape(message)):
        family_of(config)


def test_every_setting_of_the_networks_belongs_to_some_family() -> None:
    from dcgan_dist.models.family import COMMON

    everyones = COMMON.union(*(family.settings for family in families().values()))
    assert everyones == {field.name for field in dataclasses.fields(ModelConfig)}
