from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config, flatten, override
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.sweeps.best import write_best
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from tests.conftest import TINY, train

CONFIG = override(
    SweepConfig(space={"optim.lr": {"loguniform": ["1e-5", "1e-1"]}, "model.slope": {"uniform": [0, 1]}}, name="mine"),
    {**TINY, "training.epochs": None},
)


def sweep(location: str, config: SweepConfig = CONFIG, **fields: Any) -> Ledger:
    ledger = Ledger.open(SweepPlan.of(config), location)
    for number, objective in enumerate((0.2, 0.7, 0.5)):
        parameters = {"optim.lr": 1e-4 * (number + 1), "model.slope": 0.1}
        ledger.start(TrialRecord(trial=f"t{number:04d}", parameters=parameters, step=24, steps=24, **fields))
        ledger.finish(f"t{number:04d}", "finished", objective=objective)
    return ledger


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_the_file_holds_every_setting_of_the_best_trial_as_train_reads_it(location: str) -> None:
    with sweep(location) as ledger:
        path = write_best(ledger)
        assert path == f"{location}/best.yaml"
    content = folder_at(location).read("best.yaml")
    assert content is not None
    settings = yaml.safe_load(content)
    config = parse_settings(Config, ["--config", path], "test", "")
    flat = flatten(config)
    assert flatten(Config()).keys() == {
        f"{group}.{key}" if isinstance(values, dict) else group
        for group, values in settings.items()
        for key in (values if isinstance(values, dict) else [""])
    }
    expected = {key: value for key, value in flatten(CONFIG).items() if key in flat}
    assert flat == expected | {"optim.lr": 2e-4, "model.slope": 0.1, "name": "mine-t0001", "run_dir": None}
    header = [line for line in content.decode().splitlines() if line.startswith("#")]
    assert "t0001, by representation 0.7, after 24 of 24 steps" in header[0]


def test_the_file_trains_into_another_run_directory(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    config = override(CONFIG, {"cluster.storage": str(storage), "training.steps": 4})
    with sweep(str(storage / "mine"), config) as ledger:
        path = write_best(ledger)
    before = sorted((storage / "mine").iterdir())
    done = train({"config": path, "training.steps": 4})
    assert done.returncode == 0, done.stderr
    assert (storage / "mine-t0001" / "checkpoints" / "step-00000004").is_dir()
    assert sorted((storage / "mine").iterdir()) == before


def test_a_sweep_in_which_nothing_is_worth_training_gets_no_file(tmp_path: Path) -> None:
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        ledger.start(TrialRecord(trial="t0000", parameters={"optim.lr": 1.0}))
        ledger.finish("t0000", "diverged", "loss_d is nan", objective=0.9)
        assert write_best(ledger) is None
    assert not (tmp_path / "best.yaml").exists()


def test_settings_that_changed_during_the_run_are_marked(tmp_path: Path) -> None:
    with sweep(str(tmp_path), parent={"trial": "t0000", "step": 12, "digest": "ab"}) as ledger:
        write_best(ledger)
    assert "changed during the run (population based training)" in (tmp_path / "best.yaml").read_text()
