"""Networks of a tiny run of every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan_dist.exploration.networks import Trained, open_trained
from dcgan_dist.runs.run import Run
from tests.generation.conftest import trained

__all__ = ["trained"]


@pytest.fixture
def opened(trained: Callable[..., Path], tmp_path: Path) -> Callable[..., Trained]:
    """The networks of a tiny run by the name of its family, and `sample_statistics`."""

    def get(name: str = "dcgan", statistics: str = "running", seed: int = 0) -> Trained:
        cache = tmp_path / "cache"
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        run = trained(name, statistics)
        return open_trained(Run(run), "latest", seed=seed, device=torch.device("cpu"), cache=cache)

    return get


def with_settings(trained: Trained, settings: dict[str, Any]) -> Trained:
    """Return the same networks, of a run with another config.yaml."""
    run = Run(trained.location)
    run.settings = settings
    return replace(trained, run=run)
