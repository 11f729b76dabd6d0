from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcgan_dist.config import override
from dcgan_dist.errors import ConfigError, DataError, InputError, RunDirectoryError, Stopped, StorageError
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import open_run
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord, read_sweep, trial_location
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from tests.conftest import fill

CONFIG = SweepConfig(space={"optim.lr": {"loguniform": ["1e-5", "1e-1"]}}, trials=6)
both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)

WRITER = """
import sys
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord
from dcgan_dist.sweeps.plan import SweepPlan

config = SweepConfig(space={"optim.lr": {"loguniform": ["1e-5", "1e-1"]}}, trials=10**6)
ledger = Ledger.open(SweepPlan.of(config), sys.argv[1])
print("open", len(ledger.records), flush=True)
while True:
    name = ledger.next_name()
    ledger.start(TrialRecord(trial=name, parameters={"optim.lr": 0.1}, steps=9))
    print("started", name, flush=True)
    ledger.update(name, step=5, scores={"coverage": {"value": 0.5}})
    ledger.finish(name, "finished", objective=0.5)
    print("finished", name, flush=True)
"""


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """Yield a list for the drivers that a test starts; those that still run are ended."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start_driver(drivers: list[subprocess.Popen[str]], location: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(location)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    drivers.append(process)
    return process


def read(location: str) -> dict[str, Any]:
    found = read_sweep(location)
    assert found is not None
    return found


def trial(name: str = "t0000", **fields: Any) -> TrialRecord:
    return TrialRecord(trial=name, parameters={"optim.lr": 1e-3}, steps=40, **fields)


@both
def test_a_reopened_sweep_has_every_trial_unchanged(location: str) -> None:
    with Ledger.open(SweepPlan.of(CONFIG), location) as ledger:
        assert not ledger.resumed
        assert (ledger.next_name(), ledger.trials_wanted) == ("t0000", 6)
        ledger.start(trial())
        scores = {"representation": {"value": 0.5, "ci95": [0.4, 0.6], "n": 500}}
        milestone = {"step": 10, "objective": 0.4, "verdict": "stable", "scores": {"representation": 0.4}}
        ledger.update("t0000", step=20, verdict="stable", scores=scores, milestones=(milestone,))
        ended = ledger.finish("t0000", "finished", objective=0.5)
        begun = ledger.start(trial("t0001", parent={"trial": "t0000", "step": 10, "digest": "ab"}))
        ledger.importance = {"optim.lr": {"value": 0.4, "ci95": [0.2, 0.6]}}
    found = read(location)
    assert (found["status"], found["best"], found["pareto_front"]) == ("finished", "t0000", ["t0000"])
    assert found["trials"][0]["directory"] == "trials/t0000"
    assert found["space"] == CONFIG.space
    assert found["settings"]["optim.beta1"] == 0.5
    with Ledger.open(SweepPlan.of(CONFIG), location) as ledger:
        assert ledger.resumed
        assert list(ledger.records) == ["t0000", "t0001"]
        assert ledger.records["t0000"] == ended
        assert replace(ledger.records["t0001"], seconds=begun.seconds) == begun
        assert ledger.importance == found["importance"]
        assert read(location)["started"] == found["started"]
        # The interrupted one resumes: another attempt of the same trial.
        again = ledger.start(ledger.records["t0001"])
        assert (again.attempts, again.started) == (2, begun.started)
    assert trial_location(f"{location}/", "t0001") == f"{location}/trials/t0001"


def test_the_file_is_strict_json_and_has_each_change_in_time(tmp_path: Path) -> None:
    def on_disk() -> dict[str, Any]:
        def refuse(text: str) -> None:
            raise AssertionError(f"{text} is no JSON")

        content = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=refuse)
        return dict(content["trials"][0])

    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        ledger.start(trial())
        assert (on_disk()["status"], on_disk()["attempts"]) == ("running", 1)
        ledger.update("t0000", step=7, scores={"recall": {"value": float("nan"), "n": 3}}, objective=0.25)
        end = time.monotonic() + 3
        while on_disk()["step"] != 7:
            assert time.monotonic() < end, "an update did not reach the disk"
            time.sleep(0.05)
        assert on_disk()["scores"] == {"recall": {"value": None, "n": 3}}
        assert on_disk()["seconds"] > 0
        ledger.finish("t0000", "diverged", "loss_d is nan at step 7")
        assert on_disk()["reason"] == "loss_d is nan at step 7"
        assert on_disk()["objective"] is None
        with pytest.raises(KeyError):
            ledger.update("t0009", step=1)
    with pytest.raises(RunDirectoryError, match="is already closed"):
        ledger.update("t0000", step=1)


def test_a_driver_killed_at_any_moment_leaves_a_valid_file_from_which_the_next_one_resumes(
    tmp_path: Path, drivers: list[subprocess.Popen[str]]
) -> None:
    location, rng, known = str(tmp_path / "sweep"), random.Random(0), 0
    for _ in range(4):
        driver = start_driver(drivers, location)
        assert driver.stdout is not None
        assert driver.stdout.readline().split() == ["open", str(known)]
        time.sleep(rng.uniform(0.1, 0.4))
        driver.kill()
        reported = [line.split() for line in driver.stdout.read().splitlines() if line[-1:].isdigit()]
        trials = {entry["trial"]: entry for entry in read(location)["trials"]}
        # All entries that the driver reported are there, and at most the one that was in progress when it died.
        for event, name in reported:
            assert trials[name]["status"] in ("finished",) if event == "finished" else ("running", "finished")
        assert (
            len(reported)
            <= sum(1 + (entry["status"] == "finished") for entry in list(trials.values())[known:])
            <= len(reported) + 1
        )
        known = len(trials)
    assert [*trials] == [f"t{number:04d}" for number in range(known)]
    assert known > 8


@both
def test_a_second_living_driver_is_refused_and_the_lease_of_a_dead_one_is_taken(
    location: str, drivers: list[subprocess.Popen[str]]
) -> None:
    driver = start_driver(drivers, location)
    assert driver.stdout is not None
    assert driver.stdout.readline().startswith("open")
    with pytest.raises(RunDirectoryError, match=rf"in use by process {driver.pid} on host {os.uname().nodename}"):
        Ledger.open(SweepPlan.of(CONFIG), location)
    driver.kill()
    driver.wait()
    config = override(CONFIG, {"trials": 10**6})
    with Ledger.open(SweepPlan.of(config), location) as ledger:
        assert ledger.resumed
        status = Run(location).status
        assert status is not None
        assert (status["status"], status["pid"]) == ("running", os.getpid())


def test_a_driver_that_lost_the_directory_to_another_writes_no_more(tmp_path: Path) -> None:
    ledger = Ledger.open(SweepPlan.of(CONFIG), str(tmp_path))
    ledger.start(trial())
    path = tmp_path / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"writer": "another", "pid": 1, "host": "elsewhere"}))
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="process 1 on host elsewhere, which took it over"):
        ledger.finish("t0000", "finished")
    with pytest.raises(RunDirectoryError, match="took it over"):
        ledger.close()
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}}}, "space"),
        ({"search": "optuna"}, "search 'random', not 'optuna'"),
        ({"schedule": "fifo"}, "schedule 'asha', not 'fifo'"),
        ({"objective": "coverage"}, "objective 'representation', not 'coverage'"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"milestones": 5}, "milestones 4, not 5"),
        ({"model.ngf": 64, "optim.beta1": 0.9}, r"model.ngf 128, not 64 \(optim.beta1 differ too\)"),
        ({"score.count": 100}, "score.count 500, not 100"),
        ({"trials": 1}, "already has 2 trials: trials is 1"),
    ],
)
def test_the_directory_of_another_sweep_is_refused_and_not_changed(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        ledger.start(trial())
        ledger.start(trial("t0001"))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message) as caught:
        Ledger.open(SweepPlan.of(override(CONFIG, changes)), str(tmp_path))
    assert "\n" not in str(caught.value)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after["sweep.json"] == files["sweep.json"]
    status = Run(tmp_path).status
    assert status is not None
    assert (status["status"], status["locked"]) == ("finished", False)


def test_settings_that_do_not_change_the_trials_may_differ_when_a_sweep_resumes(tmp_path: Path) -> None:
    Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)).close("stopped", "signal 2")
    changes = {"trials": 9, "verbose": True, "concurrent": 2, "trial_failures": 3, "score.finalists": 1}
    written_otherwise = {"space": {"optim.lr": {"loguniform": [0.00001, "0.1"]}}, "data.workers": 2}
    with Ledger.open(SweepPlan.of(override(CONFIG, changes | written_otherwise)), str(tmp_path)) as ledger:
        assert ledger.trials_wanted == 9


def test_a_sweep_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    config = override(CONFIG, {"cluster.workers": 2, "score.count": 100, "model.sample_statistics": "batch"})
    with Ledger.open(SweepPlan.of(config), str(tmp_path)) as ledger:
        parameters = {"optim.lr": 0.1, "model.sample_statistics": "batch"}
        ledger.start(TrialRecord(trial="t0000", parameters=parameters, steps=9))
    content = json.loads((tmp_path / "sweep.json").read_text())
    settings = content["settings"]
    settings |= {"cluster.workers": 1, "workers_per_trial": settings["cluster.workers"]}
    settings |= {"score.images": settings.pop("score.data_count"), "score.samples": settings.pop("score.count")}
    settings["model.sample_statistics"] = content["trials"][0]["parameters"]["model.sample_statistics"] = "released"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with Ledger.open(SweepPlan.of(config), str(tmp_path)) as ledger:
        assert ledger.records["t0000"].parameters == parameters
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(RunDirectoryError, match=r"cluster\.workers 2, not 1"):
        Ledger.open(SweepPlan.of(override(config, {"cluster.workers": 1})), str(tmp_path))


def test_a_folder_with_other_files_or_a_run_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    open_run(str(tmp_path / "run")).close()
    with open_run(str(tmp_path / "run")) as run:
        run.write_config({"seed": 0}, {})
    for name, thing in (("other", "thesis.tex"), ("run", "config.yaml")):
        before = sorted((tmp_path / name).iterdir())
        with pytest.raises(
            RunDirectoryError, match=f"is not a sweep directory, but contains other files such as '{thing}'"
        ):
            Ledger.open(SweepPlan.of(CONFIG), str(tmp_path / name))
        assert sorted((tmp_path / name).iterdir()) == before
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot write the sweep directory"):
        Ledger.open(SweepPlan.of(CONFIG), str(tmp_path / "file"))


def test_a_damaged_file_or_one_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"format": "dcgan_dist sweep 1", "tri')
    with pytest.raises(RunDirectoryError, match=r"sweep.json is damaged: move it away"):
        Ledger.open(SweepPlan.of(CONFIG), str(tmp_path))
    (tmp_path / "sweep.json").write_text('{"format": "dcgan_dist sweep 9"}')
    with pytest.raises(RunDirectoryError, match="of the format 'dcgan_dist sweep 9'"):
        read_sweep(str(tmp_path))


def test_nothing_is_written_for_an_invalid_space_or_objective(tmp_path: Path) -> None:
    unusable: list[dict[str, Any]] = [{"space": {}}, {"objective": "beauty"}]
    for changes in unusable:
        with pytest.raises(ConfigError):
            Ledger.open(SweepPlan.of(override(CONFIG, changes)), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("of no\nuse"), "failed", "of no use"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (Stopped(15, "stopped by signal 15"), "stopped", "stopped by signal 15"),
    ],
)
def test_a_sweep_that_ends_early_records_why(tmp_path: Path, error: BaseException, status: str, reason: str) -> None:
    def work() -> None:
        with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
            ledger.start(trial())
            raise error

    with pytest.raises(type(error)):
        work()
    found, of_driver = read(str(tmp_path)), Run(tmp_path).status
    assert of_driver is not None
    assert (found["status"], found["reason"]) == (of_driver["status"], of_driver["reason"]) == (status, reason)
    assert found["trials"][0]["status"] == "running"


def test_many_threads_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        for number in range(8):
            ledger.start(trial(f"t{number:04d}"))

        def work(name: str) -> None:
            for step in range(1, 41):
                ledger.update(name, step=step)
            ledger.finish(name, "finished", objective=1.0)

        threads = [threading.Thread(target=work, args=(name,)) for name in ledger.records]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(entry["step"], entry["status"]) for entry in read(str(tmp_path))["trials"]] == [(40, "finished")] * 8


def test_a_grid_has_as_many_trials_as_points(tmp_path: Path) -> None:
    space = {"optim.beta1": {"grid": [0.5, 0.9]}, "model.ngf": {"choice": [8, 16, 24]}}
    config = override(CONFIG, {"space": space, "search": "grid"})
    with Ledger.open(SweepPlan.of(config), str(tmp_path)) as ledger:
        assert ledger.trials_wanted == 6


@pytest.mark.parametrize("location", ["s3"], indirect=True)
def test_a_bucket_that_does_not_exist_is_one_line(location: str) -> None:
    with pytest.raises(DataError, match="does the bucket exist") as caught:
        Ledger.open(SweepPlan.of(CONFIG), location.replace("s3://results", "s3://no-such-bucket"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *('"trials": 5', '"trials": [null]', '"settings": [1]', '"started": "x"'),
        *('"trials": [{"trial": "a"}]', '"trials": [{"trial": "a", "parameters": {}, "step": 1e999}]'),
        '"trials": [{"trial": "a", "parameters": {}}, {"trial": "a", "parameters": {}}]',
        '"trials": [{"trial": "../../elsewhere", "parameters": {}}]',
    ],
)
def test_an_invalid_record_is_named_and_not_changed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_text('{"format": "dcgan_dist sweep 1", ' + content + "}")
    before = path.read_bytes()
    with pytest.raises(RunDirectoryError, match=r"sweep\.json is damaged .*: move it away"):
        Ledger.open(SweepPlan.of(SweepConfig(space={"seed": {"choice": [1, 2]}}, trials=2)), str(tmp_path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("between", [True, False])  # between trials, or at the end
def test_a_disk_that_fills_up_is_one_line_and_leaves_a_valid_ledger_that_resumes(
    between: bool, small_disk: Path
) -> None:
    location = str(small_disk / "sweep")

    def sweep() -> None:
        with Ledger.open(SweepPlan.of(CONFIG), location) as ledger:
            ledger.start(trial())
            ledger.finish("t0000", "finished", objective=0.5)
            fill(small_disk)
            if between:
                ledger.start(trial("t0001"))

    with pytest.raises(StorageError, match="No space left") as caught:
        sweep()
    assert "\n" not in str(caught.value)
    status = Run(location).status
    assert status is not None
    assert (status["status"], status["reason"], status["locked"]) == ("failed", str(caught.value), False)
    assert read(location)["trials"][0]["objective"] == 0.5
    assert not list((small_disk / "sweep").glob(".*.writing"))
    (small_disk / "filler").unlink()
    with Ledger.open(SweepPlan.of(CONFIG), location) as ledger:
        assert ledger.records["t0000"].objective == 0.5
        ledger.start(trial("t0001"))
