"""The command `sweep`: what it refuses before anything is made, and where its results go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import SweepConfig
from dcgan_dist.sweep import main, sweep_location

SPACE = {"optim.lr": {"loguniform": [1e-5, 1e-1]}}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"space": {"optim.lrr": {"uniform": [0, 1]}}}, "did you mean optim.lr"),
        ({"space": {}}, "space is empty"),
        ({"space": SPACE, "objective": "fidelitty"}, "there is no score 'fidelitty': take some of representation"),
        ({"space": SPACE, "objective": "coverage", "score": {"samples": 0}}, "score.samples is 0"),
        ({"space": SPACE, "score": {"task": "none"}}, "score.task is none"),
        ({"space": SPACE, "training": {"device": "cuda"}}, "gpus_per_trial is 0"),
        ({"space": SPACE, "trials": 0}, "trials is 0"),
        ({"space": SPACE, "schedul": "asha"}, "did you mean schedule"),
    ],
)
def test_what_no_sweep_can_be_made_of_is_refused_in_a_line(
    settings: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(config), "--sweep-dir", str(tmp_path / "sweep")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert says in err
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_lies_where_it_is_told_to() -> None:
    def location(**settings: object) -> str:
        return sweep_location(build_settings(SweepConfig, settings))

    assert location() == "sweeps/sweep"
    assert location(name="lr") == "sweeps/lr"
    assert location(**{"cluster.storage": "s3://bucket/sweeps/", "name": "lr"}) == "s3://bucket/sweeps/lr"
    assert location(**{"cluster.storage": "s3://bucket", "sweep_dir": "/here"}) == "/here"
