"""The command `sweep`: its refusals before anything is written, and the location of its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from dcgan_dist.command_line import build_settings
from dcgan_dist.errors import DataError
from dcgan_dist.launch.ray_tune import check_data
from dcgan_dist.sweep import main, sweep_location
from dcgan_dist.sweeps.ledger import Ledger
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig

SPACE = {"optim.lr": {"loguniform": [1e-5, 1e-1]}}
OF_SIZES = {"model.ngf": {"choice": [4, 8]}}
OF_BATCHES = {"training.batch_size, model.slope": {"choice": [[8, 0.1], [16, 0.2]]}}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"space": {"optim.lrr": {"uniform": [0, 1]}}}, "did you mean optim.lr"),
        ({"space": {}}, "space is empty"),
        ({"space": SPACE, "objective": "fidelitty"}, "there is no score 'fidelitty': take some of representation"),
        ({"space": SPACE, "objective": "coverage", "score": {"count": 0}}, "score.count is 0"),
        ({"space": SPACE, "score": {"task": "none"}}, "score.task is none"),
        ({"space": SPACE, "training": {"device": "cuda"}}, "gpus_per_trial is 0"),
        ({"space": SPACE, "trials": 0}, "trials is 0"),
        ({"space": SPACE, "run_dir": "runs/a"}, "run_dir is 'runs/a': each trial has its own"),
        ({"space": SPACE, "schedul": "asha"}, "did you mean schedule"),
        ({"space": OF_SIZES, "schedule": "pbt"}, "which cannot change during a run"),
        ({"space": OF_BATCHES, "schedule": "pbt"}, "which cannot change during a run"),
    ],
)
def test_unusable_settings_are_refused_in_a_line(
    settings: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(config), "--sweep-dir", str(tmp_path / "sweep")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert says in err
    assert not (tmp_path / "sweep").exists()


def test_the_directory_of_another_sweep_is_refused_before_ray_starts_and_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    with Ledger.open(SweepPlan.of(build_settings(SweepConfig, {"space": SPACE, "seed": 1})), str(folder)):
        pass
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({"space": SPACE, "seed": 2}))
    assert main(["--config", str(config), "--sweep-dir", str(folder)]) == 2
    assert "the directory of another sweep, with seed 1, not 2" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data.path": "/nowhere"}, "'/nowhere' does not exist: give a folder of shards"),
        ({"data.path": "rooms:9", "score.data": "/nowhere"}, "score.data is '/nowhere', which does not exist"),
    ],
)
def test_data_that_no_trial_could_read_are_refused_before_the_start(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_data(SweepPlan.of(build_settings(SweepConfig, {"space": SPACE, **settings})))


def test_data_that_is_searched_is_checked_by_the_trials() -> None:
    space = {"data.path": {"choice": ["/nowhere", "rooms:9"]}}
    check_data(SweepPlan.of(build_settings(SweepConfig, {"space": space, "data.path": "/nowhere"})))


def test_a_sweep_is_written_to_the_given_location() -> None:
    def location(**settings: object) -> str:
        return sweep_location(build_settings(SweepConfig, settings))

    assert location() == "sweeps/sweep"
    assert location(name="lr") == "sweeps/lr"
    assert location(**{"cluster.storage": "s3://bucket/sweeps/", "name": "lr"}) == "s3://bucket/sweeps/lr"
    assert location(**{"cluster.storage": "s3://bucket", "sweep_dir": "/here"}) == "/here"
