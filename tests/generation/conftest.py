"""Tiny trained runs of every family, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcgan_dist.config import Config, override
from dcgan_dist.distributed import World
from dcgan_dist.training.trainer import train
from tests.conftest import TINY

OF_CONVOLUTIONS = {"model.ngf": 4, "model.ndf": 4}
OF_DENSE_LAYERS = {"model.generator_units": "8", "model.discriminator_units": "8"}
STEPS = 3


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run directories by the name of the family, and `sample_statistics`."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str, statistics: str = "running") -> Path:
        if (name, statistics) not in made:
            own = OF_CONVOLUTIONS if "dcgan" in name else OF_DENSE_LAYERS
            settings = {key: value for key, value in TINY.items() if key not in OF_CONVOLUTIONS}
            settings |= {"model.name": name, "model.sample_statistics": statistics, "training.steps": STEPS, **own}
            folder = tmp_path_factory.mktemp("trained") / f"{name}-{statistics}"
            train(override(Config(), settings), World(0, 1, torch.device("cpu")), run_location=str(folder))
            made[name, statistics] = folder
        return made[name, statistics]

    return get
