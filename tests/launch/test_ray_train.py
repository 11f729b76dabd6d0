"""Training in Ray Train workers, on a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.errors import ClusterError
from dcgan_dist.launch.ray_train import run_on_ray
from tests.conftest import TINY, metrics, options
from tests.launch.conftest import RayCluster

pytestmark = pytest.mark.timeout(600)  # on a busy machine the processes of a run start slowly

LONG = 100_000  # steps, so that the run does not end during a test

WITH_REPORTS = """
import json, sys
from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config
from dcgan_dist.launch.ray_train import run_on_ray
config = parse_settings(Config, sys.argv[1:], "test", "")
run_on_ray(config, config.run_dir, on_report=lambda values, checkpoint: print("reported", values["step"]))
"""

# In a thread of an actor without CPUs; when it is stopped or killed, the cluster's CPUs become free.
IN_AN_ACTOR = """
import json, sys, time, ray
from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config
from dcgan_dist.errors import Stopped
from dcgan_dist.launch.ray_train import RAY_SETTINGS, run_on_ray

@ray.remote(num_cpus=0, max_concurrency=2)
class Host:
    reports, stop = 0, False
    def report(self, values, checkpoint):
        self.reports += 1
    def run(self, config):
        try:
            run_on_ray(config, config.run_dir, self.report, should_stop=lambda: self.stop, quiet=True)
        except Stopped as stop:
            return str(stop)
    def count(self):
        return self.reports
    def ask(self):
        self.stop = True

ray.init(log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": RAY_SETTINGS})
config = parse_settings(Config, sys.argv[1:], "test", "")
for how in ("asked", "killed"):
    host = Host.remote()
    ended = host.run.remote(config)
    while not ray.get(host.count.remote()):
        time.sleep(0.1)
    assert ray.available_resources().get("CPU", 0) == 0
    host.ask.remote() if how == "asked" else ray.kill(host)
    begun = time.monotonic()
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
    print(how, "free after", time.monotonic() - begun)
    if how == "asked":
        print(ray.get(ended))
        with open(config.run_dir + "/status.json") as file:
            print(json.load(file)["status"])
"""


class Driver:
    """A run on the cluster: the output of its driver, and its end."""

    def __init__(self, cluster: RayCluster, run: Path, *words: str, **settings: object) -> None:
        self.run = run
        self._process = subprocess.Popen(
            [
                *(sys.executable, *(words or ("-m", "dcgan_dist.train"))),
                *options({**TINY, "cluster.workers": 2, "run_dir": run, **settings}),
            ],
            env={**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, start: str) -> None:
        """Read until a line with this beginning."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return
        raise AssertionError(f"no line began with {start!r}: {self.lines} {self.finish()}")

    def finish(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and the standard error."""
        out, err = self._process.communicate(timeout=240)
        self.lines += out.splitlines(keepends=True)
        return self._process.returncode, err

    def printed(self, text: str) -> int:
        """Return the number of lines that contain a text."""
        return sum(text in line for line in self.lines)

    @property
    def status(self) -> dict[str, Any]:
        """Return the run's status.json."""
        found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return found


@pytest.fixture
def drive(ray_cluster: RayCluster, tmp_path: Path) -> Callable[..., Driver]:
    """Return a function that starts a run on the cluster, in this test's folder."""
    return lambda *words, **settings: Driver(ray_cluster, tmp_path / "run", *words, **settings)


def kill_follower(cluster: RayCluster, driver: Driver) -> None:
    """Send SIGKILL to the worker that is not the leader."""
    (follower,) = set(cluster.workers()) - {driver.status["pid"]}
    os.kill(follower, signal.SIGKILL)


def test_more_workers_than_the_cluster_has_are_refused_with_what_it_has(drive: Callable[..., Driver]) -> None:
    driver = drive(**{"cluster.workers": 4})
    code, err = driver.finish()
    assert (code, err.count("\n")) == (2, 1), err
    assert "cluster.workers is 4, 1 CPU each, but the cluster has 2 CPUs and 0 GPUs on 1 host, room for 2" in err
    assert not driver.run.exists()


def test_killed_worker_is_replaced_and_the_run_ends_with_every_image_seen_once(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    steps = 150
    settings = {"training.steps": steps, "training.checkpoint_every": 5, "cluster.max_failures": 1}
    driver = drive("-c", WITH_REPORTS, **settings)
    driver.until("step 15/")
    kill_follower(ray_cluster, driver)
    assert driver.finish() == (0, "")
    rows = metrics(driver.run)
    assert [row["step"] for row in rows] == list(range(5, steps + 1, 5))
    assert [row["images_seen"] for row in rows] == list(range(40, 8 * steps + 1, 40))
    assert {row["world_size"] for row in rows} == {2}
    assert driver.status["status"] == "finished"
    assert driver.printed("died (killed") == driver.printed("(restart 1 of at most 1)") == 1
    assert driver.printed("resuming at step") == 1
    assert all(driver.printed(f"reported {row['step']}\n") >= 1 for row in rows)
    assert driver.printed("raylet") == 0


def test_killed_worker_without_retries_fails_the_run_with_one_line_and_its_status(
    ray_cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    driver = drive(**{"training.steps": LONG})
    driver.until("step 10/")
    kill_follower(ray_cluster, driver)
    code, err = driver.finish()
    assert (code, err.count("\n")) == (1, 1), err
    assert "worker rank 1 (process" in err
    assert "died" in err
    assert "--cluster.max_failures 1" in err
    found = driver.status
    assert (found["status"], found["locked"]) == ("failed", False)
    assert found["reason"] in err


def test_diverged_run_is_never_retried(drive: Callable[..., Driver]) -> None:
    driver = drive(**{"optim.lr": 1e30, "cluster.max_failures": 3})
    code, err = driver.finish()
    assert (code, err.count("\n")) == (3, 1), err
    assert driver.status["status"] == "diverged"
    assert (driver.printed("starting: "), driver.printed("restart")) == (1, 0)


def test_bad_input_of_workers_is_one_line_and_not_retried(drive: Callable[..., Driver], tmp_path: Path) -> None:
    driver = drive(**{"data.path": tmp_path / "shards", "cluster.max_failures": 3})
    code, err = driver.finish()
    assert (code, err.count("\n")) == (2, 1), err
    assert str(tmp_path / "shards") in err
    assert driver.printed("restart") == 0
    assert not driver.run.exists()


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:9", "no Ray cluster can be used"), ("http://127.0.0.1:8265", "ray job submit")],
)
def test_an_unusable_ray_address_is_named_at_once(
    address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=says):
        run_on_ray(build_settings(Config, {**TINY, "cluster.workers": 2}), str(tmp_path / "run"))


def test_resources_are_free_at_once_when_a_run_is_stopped_or_its_process_killed(
    drive: Callable[..., Driver],
) -> None:
    driver = drive("-c", IN_AN_ACTOR, **{"training.steps": LONG})
    assert driver.finish() == (0, "")
    assert driver.printed("stopped at step") == driver.lines.count("stopped\n") == 1
    free = [line.split() for line in driver.lines if " free after " in line]
    assert [words[0] for words in free] == ["asked", "killed"]
    assert all(float(words[-1]) < 4 for words in free)  # about 1 on an idle machine
    assert not [line for line in driver.lines if line.startswith(("starting", "waiting", "step "))]  # with quiet=True
