"""Sweeps on a real Ray cluster: the ends of trials, and interrupted sweeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcgan_dist.command_line import build_settings
from dcgan_dist.errors import ClusterError
from dcgan_dist.launch.capacity import Capacity
from dcgan_dist.launch.ray_tune import METRIC, TIME, WORST, TrialThread, make_scheduler, scratch_folder, trials_at_once
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from tests.conftest import TINY, metrics
from tests.launch.conftest import RayCluster

# The third diverges, the fourth is refused.
POINTS = [[2e-4, 0.5], [1e-3, 0.5], [1e30, 0.5], [2e-4, 1.5], [1e-4, 0.9]]
SWEEP = {
    **TINY,
    "training.steps": 36,
    "milestones": 3,
    "search": "grid",
    "schedule": "fifo",
    "objective": "stability",
    "score.task": "none",
    "score.count": 0,
    "concurrent": 2,
    "space": {"optim.lr, optim.beta1": {"grid": POINTS}},
}
LONG = 1_000_000
pytestmark = pytest.mark.timeout(900)  # on a busy machine the processes of a sweep start slowly


class Driver:
    """A sweep on the cluster."""

    def __init__(self, cluster: RayCluster, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        config = folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump({**SWEEP, **settings, "sweep_dir": str(folder)}))
        own = {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "dcgan_dist.sweep", "--config", str(config)]
        self.process = subprocess.Popen(
            words,
            env={**os.environ, **cluster.environment, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def ledger(self) -> dict[str, Any]:
        """Return the content of sweep.json; no trials before it exists."""
        path = self.folder / "sweep.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"trials": []}
        return found

    def until(self, reached: Callable[[dict[str, dict[str, Any]]], bool]) -> None:
        """Wait until the trials have reached a state."""
        deadline = time.monotonic() + 300
        while not reached(trials(self.ledger)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, self.ledger
            time.sleep(0.05)

    def kill(self) -> None:
        """Send SIGKILL to the driver."""
        self.process.kill()
        self.process.communicate()

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit status and the output."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


def trials(ledger: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trial["trial"]: trial for trial in ledger["trials"]}


def ended(found: dict[str, dict[str, Any]]) -> int:
    return sum(trial["status"] not in ("waiting", "running") for trial in found.values())


def run_status(folder: Path, trial: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trials" / trial / "status.json").read_text())
    return found


@pytest.fixture
def drive(ray_cluster: RayCluster, tmp_path: Path) -> Callable[..., Driver]:
    """Return a function that starts a sweep on the cluster, in this test's folder."""
    return lambda name="sweep", **settings: Driver(ray_cluster, tmp_path / name, settings)


def test_a_sweep_that_is_killed_repeatedly_ends_like_one_that_was_not(
    drive: Callable[..., Driver], tmp_path: Path
) -> None:
    undisturbed = drive("undisturbed")
    code, out, err = undisturbed.finish()
    assert (code, err) == (0, ""), out
    expected = trials(undisturbed.ledger)
    statuses = {name: trial["status"] for name, trial in expected.items()}
    assert statuses == {
        "t0000": "finished",
        "t0001": "finished",
        "t0002": "diverged",
        "t0003": "failed",
        "t0004": "finished",
    }

    before: dict[str, dict[str, Any]] = {}
    for reached in (
        lambda found: any(trial["milestones"] for trial in found.values()),
        lambda found: ended(found) > 1,
    ):
        driver = drive("killed")
        driver.until(reached)
        driver.kill()
        now = trials(driver.ledger)
        for name, trial in before.items():
            if ended({name: trial}):
                assert now[name] == trial
        before = now
    driver = drive("killed")
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    assert "resuming after" in out
    found = trials(driver.ledger)
    assert list(found) == list(expected)
    for name, trial in expected.items():
        for key in ("parameters", "status", "reason", "step", "verdict", "scores", "objective", "milestones"):
            same = trial[key] if key != "reason" else trial[key].replace("undisturbed", "killed")
            assert found[name][key] == same, (name, key)
        if trial["status"] == "finished":
            one, other = (tmp_path / folder / "trials" / name for folder in ("undisturbed", "killed"))
            assert metrics(one) == metrics(other)
            assert run_status(tmp_path / "killed", name)["status"] == "finished"
    assert {path.name for path in (tmp_path / "killed" / "trials").iterdir()} == set(expected)


def test_a_trial_that_is_stopped_early_frees_its_resources_at_once_and_each_leaves_a_run_directory(
    drive: Callable[..., Driver],
) -> None:
    # The first is stable, the second has not learned anything at the first milestone, the third diverges.
    points = [[5e-2, 0.99], [2e-4, 0.5], [1e30, 0.5]]
    driver = drive(schedule="asha", concurrent=1, space={"optim.lr, optim.beta1": {"grid": points}})
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    found = trials(driver.ledger)
    assert [trial["status"] for trial in found.values()] == ["finished", "stopped", "diverged"]
    assert found["t0001"]["reason"].startswith("stopped early by asha at step 12 of 36: it was not among the best")
    assert 0 <= found["t0002"]["started"] - found["t0001"]["ended"] < 1
    for name, trial in found.items():
        run = driver.folder / "trials" / name
        status = run_status(driver.folder, name)
        assert (status["status"], status["reason"], status["locked"]) == (trial["status"], trial["reason"], False)
        assert (run / "config.yaml").exists()
        grids = {path.name for path in (run / "samples").iterdir()}
        reached = {12: ["t0000", "t0001"], 24: ["t0000"], 36: ["t0000"]}
        assert grids >= {f"step-{step:08d}.png" for step, those in reached.items() if name in those}
        assert "step-00000000.png" in grids


def test_a_trial_whose_process_is_killed_resumes_from_its_checkpoint(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    driver = drive(**{"space": {"optim.lr": {"grid": [2e-4, 1e-3]}}, "training.steps": 600, "concurrent": 1})
    driver.until(lambda found: bool(found.get("t0000", {}).get("milestones")))
    os.kill(run_status(driver.folder, "t0000")["pid"], signal.SIGKILL)
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    first, second = trials(driver.ledger).values()
    assert (first["status"], first["attempts"]) == ("finished", 2)
    assert (second["status"], second["attempts"]) == ("finished", 1)
    assert [milestone["step"] for milestone in first["milestones"]] == [200, 400, 600]
    steps = [int(str(row["step"])) for row in metrics(driver.folder / "trials/t0000")]
    assert steps == sorted(set(steps))


def test_a_trial_that_is_killed_too_often_fails_without_the_others(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    space = {"training.steps": {"grid": [LONG, 24]}}
    driver = drive(space=space, trial_failures=0)
    driver.until(lambda found: found.get("t0000", {}).get("step", 0) > 0)
    os.kill(run_status(driver.folder, "t0000")["pid"], signal.SIGKILL)
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    first, second = trials(driver.ledger).values()
    assert (first["status"], second["status"]) == ("failed", "finished")
    assert "its process died" in first["reason"]
    assert run_status(driver.folder, "t0000")["reason"] == first["reason"]


def test_a_signal_ends_a_sweep_with_checkpoints_and_the_table_and_it_resumes(drive: Callable[..., Driver]) -> None:
    space = {"training.steps": {"grid": [LONG, 24]}}
    reached = 0
    for attempt, (number, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143)), start=1):
        driver = drive(space=space)
        driver.until(lambda found, past=reached: ended(found) == 1 and found["t0000"]["step"] > past)
        assert trials(driver.ledger)["t0000"]["attempts"] == attempt
        driver.process.send_signal(number)
        status, out, err = driver.finish()
        assert (status, err.count("\n")) == (code, 1), err
        assert "1 of 2 trials done; the same command resumes the sweep" in err
        assert "t0001" in out
        assert driver.ledger["status"] == "stopped"
        stopped = run_status(driver.folder, "t0000")
        assert stopped["status"] == "stopped"
        assert (driver.folder / f"trials/t0000/checkpoints/step-{stopped['step']:08d}").is_dir()
        reached = stopped["step"]


def test_a_second_signal_ends_a_sweep_at_once_with_true_statuses(drive: Callable[..., Driver]) -> None:
    driver = drive(space={"training.steps": {"grid": [LONG]}}, **{"cluster.workers": 2})
    driver.until(lambda found: any(trial.get("step", 0) > 0 for trial in found.values()))
    driver.process.send_signal(signal.SIGINT)
    time.sleep(1.1)
    driver.process.send_signal(signal.SIGTERM)
    status, _, err = driver.finish()
    assert (status in (128 + signal.SIGINT, 128 + signal.SIGTERM), err.count("\n")) == (True, 1), err
    assert driver.ledger["status"] == "stopped"
    assert run_status(driver.folder, "t0000")["status"] == "stopped"


def test_more_resources_than_the_cluster_has_are_refused_in_a_line(drive: Callable[..., Driver]) -> None:
    driver = drive(**{"cluster.workers": 4})
    code, _, err = driver.finish()
    assert (code, err.count("\n")) == (2, 1), err
    assert "cluster.workers is 4, 1 CPU each, but the cluster has 2 CPUs and 0 GPUs" in err
    assert not driver.folder.exists()


# Without a cluster


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpus_per_trial": 0.5}, "cluster.workers is 1, 1 CPU and 0.5 GPUs each, but the cluster has 2 CPUs and 0"),
        ({"cluster.workers": 2, "cpus_per_trial": 1.6}, "2, 1.6 CPUs each, but the cluster has 2 CPUs and 0 GPUs"),
    ],
)
def test_trials_that_fit_on_no_host_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(says)):
        trials_at_once(make_config(**settings), Capacity((("127.0.0.1", 2.0, 0.0),)))


def make_config(**settings: object) -> SweepConfig:
    return build_settings(SweepConfig, {**SWEEP, **settings})


class Trial:
    """The attributes of a trial that a scheduler uses."""

    def __init__(self, name: str) -> None:
        self.trial_id = f"id of {name}"
        self.config = {"trial": name}


def record(name: str, *objectives: float | None) -> TrialRecord:
    milestones = tuple({"step": 10 * number, "objective": value} for number, value in enumerate(objectives, start=1))
    return TrialRecord(trial=name, parameters={}, milestones=milestones)


@pytest.mark.parametrize(("value", "decision"), [(0.9, "CONTINUE"), (0.1, "STOP")])
@pytest.mark.parametrize("schedule", ["asha", "median"])
def test_a_restarted_schedule_knows_earlier_milestones(schedule: str, value: float, decision: str) -> None:
    past = [record("t0000", 0.5, 0.6), record("t0001", 0.4), record("t0002", 0.6), record("t0003", None)]
    scheduler = make_scheduler(make_config(schedule=schedule), past)
    new: Any = Trial("t0004")
    controller: Any = None
    scheduler.on_trial_add(controller, new)
    assert scheduler.on_trial_result(controller, new, {TIME: 1, METRIC: value}) == decision


@pytest.mark.parametrize("schedule", ["asha", "median"])
def test_a_trial_without_an_objective_does_not_continue_if_there_are_others(schedule: str) -> None:
    scheduler = make_scheduler(make_config(schedule=schedule), [])
    controller: Any = None
    known: dict[str, Any] = {}

    def pass_milestone(number: int, name: str, value: float | None) -> str:
        trial = known.setdefault(name, Trial(name))
        if number == 1:
            scheduler.on_trial_add(controller, trial)
        result = {TIME: number, METRIC: WORST if value is None else value}
        return str(scheduler.on_trial_result(controller, trial, result))

    for name in ("t0000", "t0001", "t0002", "t0003"):
        first = pass_milestone(1, name, None)
    assert first == "STOP"
    assert [pass_milestone(1, f"t{number:04d}", number / 10) for number in range(4, 8)] == ["CONTINUE"] * 4
    assert pass_milestone(1, "t0008", None) == "STOP"
    # A trial that had the best objective and lost it is not better.
    assert [pass_milestone(2, f"t{number:04d}", 0.5) for number in (4, 5, 6)] == ["CONTINUE"] * 3
    assert pass_milestone(2, "t0007", None) == "STOP"


def test_folders_of_killed_drivers_are_removed_and_those_of_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = tmp_path / "dcgan_dist-tune-killed"
    (killed / "sweep").mkdir(parents=True)
    with scratch_folder() as living:
        for folder in (killed, Path(living)):
            os.utime(folder, (0, 0))
        with scratch_folder() as mine:
            assert {path.name for path in tmp_path.iterdir()} == {Path(living).name, Path(mine).name}
    assert not list(tmp_path.iterdir())


def test_a_resumed_trial_is_not_compared_with_itself() -> None:
    past = [record("t0000", 0.9), record("t0001", 0.1)]
    scheduler = make_scheduler(make_config(schedule="asha"), past)
    going_on: Any = Trial("t0001")
    controller: Any = None
    scheduler.on_trial_add(controller, going_on)
    # It passed the first rung before the restart; only the second one is left, which no trial has reached yet.
    assert scheduler.on_trial_result(controller, going_on, {TIME: 2, METRIC: 0.1}) == "CONTINUE"


def test_a_trial_waits_at_its_milestones_and_ends_there_when_it_is_stopped() -> None:
    passed: list[int] = []

    def work(deliver: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for number in range(3):
            passed.append(number)
            if not deliver({"number": number}):
                return {"ended": number}
        return {"ended": 3}

    thread = TrialThread(work)
    assert thread.next(lambda: None) == {"number": 0}
    assert thread.next(lambda: None) == {"number": 1}
    time.sleep(0.05)
    assert passed == [0, 1]
    thread.stop()
    assert passed == [0, 1]
    assert not any(each.name == "trial" for each in threading.enumerate())


def test_an_error_of_a_trial_is_raised_by_its_next_step() -> None:
    def work(deliver: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        raise ZeroDivisionError("as a bug would")

    with pytest.raises(ZeroDivisionError):
        TrialThread(work).next(lambda: None)
