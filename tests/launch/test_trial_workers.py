"""Trials that train in several workers of Ray Train, on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import metrics
from tests.launch.conftest import RayCluster, command_line, descendants
from tests.launch.test_ray_tune import LONG, Driver, drive, run_status, trials

__all__ = ["drive"]  # a fixture

pytestmark = pytest.mark.timeout(600)  # on a busy machine the processes of a trial start slowly
PAIR = {"cluster.workers": 2, "schedule": "asha", "training.steps": 24, "milestones": 2}


def trial_processes(cluster: RayCluster) -> list[int]:
    """Return the ids of the processes in which trials run, or wait for their workers."""
    return [pid for pid in descendants(cluster.process) if b"ray::_Inner" in command_line(pid)]


def helpers(cluster: RayCluster) -> list[bytes]:
    """Return the processes of Ray Train and this program besides the workers of a trial."""
    lines = [command_line(pid) for pid in descendants(cluster.process)]
    return [line for line in lines if any(name in line for name in (b"ray::Train", b"Watchdog", b"EventBus"))]


def seconds_until(reached: Callable[[], bool], *, limit: float) -> float:
    """Return the time until a condition holds, in seconds."""
    begun = time.monotonic()
    while not reached():
        assert time.monotonic() - begun < limit
        time.sleep(0.05)
    return time.monotonic() - begun


def test_a_trial_of_two_workers_that_is_stopped_early_frees_its_resources_at_once(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    # Only the workers of one trial fit on the cluster. With the second rate, the generator's images stay grey.
    driver = drive(**PAIR, space={"optim.lr": {"grid": [0.03, 1e-7]}})
    driver.until(lambda found: found.get("t0001", {}).get("status") == "stopped")
    free = seconds_until(lambda: not ray_cluster.workers(), limit=60)
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    found = trials(driver.ledger)
    assert {name: trial["status"] for name, trial in found.items()} == {"t0000": "finished", "t0001": "stopped"}
    assert found["t0001"]["reason"].startswith("stopped early by asha at step 12 of 24")
    status = run_status(driver.folder, "t0001")
    assert (status["status"], status["reason"], status["locked"]) == ("stopped", found["t0001"]["reason"], False)
    for name in found:
        assert {row["world_size"] for row in metrics(driver.folder / "trials" / name)} == {2}
    assert free < 5  # about 1 on an idle machine
    seconds_until(lambda: not helpers(ray_cluster), limit=30)


def test_the_workers_of_a_trial_whose_process_is_killed_end_and_it_resumes_with_new_ones(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    driver = drive(**PAIR, space={"training.steps": {"grid": [LONG]}})
    driver.until(lambda found: found.get("t0000", {}).get("step", 0) > 0)
    workers = set(ray_cluster.workers())
    assert len(workers) == 2
    (process,) = trial_processes(ray_cluster)
    before = run_status(driver.folder, "t0000")["step"]
    os.kill(process, signal.SIGKILL)
    assert seconds_until(lambda: not workers & set(ray_cluster.workers()), limit=60) < 10
    driver.until(lambda found: found["t0000"]["attempts"] == 2 and found["t0000"]["step"] > before)
    assert trials(driver.ledger)["t0000"]["reason"].startswith("attempt 1 ended: its process died")
    driver.process.send_signal(signal.SIGINT)
    assert driver.finish()[0] == 130
    stopped = run_status(driver.folder, "t0000")
    assert (stopped["status"], stopped["step"] >= before) == ("stopped", True)
    seconds_until(lambda: not ray_cluster.workers() and not helpers(ray_cluster), limit=30)
