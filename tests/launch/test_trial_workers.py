"""Trials that train in several workers of Ray Train, on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import metrics
from tests.launch.conftest import RayCluster
from tests.launch.test_ray_tune import LONG, Driver, drive, run_status, trial_processes, trials

__all__ = ["drive"]  # a fixture

PAIR = {"workers_per_trial": 2, "schedule": "asha", "training.steps": 24, "milestones": 2}


def workers_end(cluster: RayCluster, *, within_s: float) -> bool:
    """Whether no worker of Ray Train is left after a while."""
    deadline = time.monotonic() + within_s
    while cluster.workers():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_trial_of_two_workers_that_is_stopped_early_makes_room_for_the_next(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    # The cluster has room for the workers of one trial: the third starts only if the second's are gone.
    driver = drive(**PAIR, space={"optim.lr": {"grid": [2e-4, 0.3, 3e-4]}})
    code, out, err = driver.finish()
    assert (code, err) == (0, ""), out
    found = trials(driver.ledger)
    assert [found[name]["status"] for name in ("t0000", "t0001")] == ["finished", "stopped"]
    assert found["t0001"]["reason"].startswith("stopped early by asha at step 12 of 24")
    status = run_status(driver.folder, "t0001")
    assert (status["status"], status["reason"], status["locked"]) == ("stopped", found["t0001"]["reason"], False)
    for name in found:
        assert {row["world_size"] for row in metrics(driver.folder / "trials" / name)} == {2}
    assert workers_end(ray_cluster, within_s=5)


def test_the_workers_of_a_trial_whose_process_is_killed_end_and_it_goes_on_with_new_ones(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    driver = drive(**PAIR, space={"training.steps": {"grid": [LONG]}})
    driver.until(lambda found: found.get("t0000", {}).get("step", 0) > 0)
    workers = set(ray_cluster.workers())
    assert len(workers) == 2
    (process,) = trial_processes(ray_cluster)
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while workers & set(ray_cluster.workers()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = run_status(driver.folder, "t0000")["step"]
    driver.until(lambda found: found["t0000"]["attempts"] == 2 and found["t0000"]["step"] > before)
    driver.process.send_signal(signal.SIGINT)
    assert driver.finish()[0] == 130
    assert run_status(driver.folder, "t0000")["status"] == "stopped"
    assert workers_end(ray_cluster, within_s=5)


@pytest.mark.parametrize("share", [0.6])
def test_workers_that_fit_on_no_host_are_refused_in_a_line(drive: Callable[..., Driver], share: float) -> None:
    driver = drive(**{**PAIR, "cpus_per_trial": 1 + share})
    code, _, err = driver.finish()
    assert (code, err.count("\n")) == (2, 1), err
    assert "workers_per_trial is 2, 1.6 CPUs each, but the cluster has 2 CPUs" in err
