"""The Python API on Ray: inside the user's own tasks, and from a plain script without a main guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dcgan_dist as dd
from tests.conftest import TINY, metrics, train
from tests.launch.conftest import RayCluster

pytestmark = pytest.mark.timeout(600)  # on a busy machine the processes of a run start slowly

Script = Callable[..., subprocess.Popen[str]]

LONG = 100_000  # steps, so that the run does not end during a test

IN_TASKS = """
import ray

ray.init(logging_level="ERROR")  # otherwise the output of tasks would be printed

@ray.remote(num_cpus=1)
def train(name, lr):
    run = dd.train(settings, {"run_dir": f"{folder}/{name}", "optim.lr": lr})
    return run, run.status["status"], run.metrics()["step"].tolist()

found = ray.get([train.remote("a", 1e-3), train.remote("b", 1e-4)])
print(json.dumps([(run.location, status, steps, run.sample(5).shape) for run, status, steps in found]))
"""

CANCELLED = """
import time
from pathlib import Path
import ray
from dcgan_dist.errors import Stopped

ray.init(logging_level="ERROR")

@ray.remote(num_cpus=1)
def train():
    dd.train(settings, {"run_dir": f"{folder}/run"}, progress=lambda row: Path(folder, "begun").touch())

task = train.remote()
while not Path(folder, "begun").exists():
    time.sleep(0.05)
ray.cancel(task)
try:
    ray.get(task)
except Stopped as stop:
    print(stop)
"""

WORKERS = """
rows = []
run = dd.train(settings, {"run_dir": f"{folder}/run"}, progress=rows.append)
assert [row["step"] for row in rows] == run.metrics()["step"].tolist() == [5, 10, 15, 20, 24]
"""

STOPPED = """
from dcgan_dist.errors import Stopped

try:
    dd.train(settings, {"run_dir": f"{folder}/run"}, progress=lambda row: print("step", row["step"], flush=True))
except Stopped as stop:
    print("stopped", stop.signal_number, flush=True)
step = dd.Run(f"{folder}/run").steps[-1]
run = dd.train(settings, {"run_dir": f"{folder}/run", "training.steps": step + 8})
print(json.dumps([step, run.steps[-1], run.status["status"]]))
"""

SWEEP = """
search = {"space": {"optim.lr": {"grid": [0.03, 0.01]}}, "search": "grid", "trials": 1, "milestones": 1}
scores = {"score.data_count": 300, "score.labels_per_class": 10, "score.count": 0, "score.finalists": 0}
sweep = dd.sweep({**settings, **search, **scores}, {"sweep_dir": f"{folder}/sweep"})
assert sweep.best is not None
print(json.dumps([sweep.location, sweep.best.location, sorted(sweep.trials), sweep.run("t0001").config.optim.lr]))
"""


@pytest.fixture
def script(ray_cluster: RayCluster, tmp_path: Path) -> Script:
    """Return a function that runs a program as a script on the cluster; `folder` in it is this test's folder."""

    def start(code: str, **settings: Any) -> subprocess.Popen[str]:
        file = tmp_path / "script.py"
        given = {**TINY, **settings}
        file.write_text(
            f"import json\nimport dcgan_dist as dd\nsettings, folder = {given!r}, {str(tmp_path)!r}\n{code}"
        )
        return subprocess.Popen(
            [sys.executable, file],
            env={**os.environ, **ray_cluster.environment, "RAY_ADDRESS": ray_cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a script to succeed without writing to standard error."""
    out, err = process.communicate(timeout=400)
    assert (process.returncode, err) == (0, ""), (out, err)
    return out


def test_two_tasks_of_a_user_train_at_once(script: Script, tmp_path: Path) -> None:
    found = json.loads(output_of(script(IN_TASKS)))
    steps, shape = [5, 10, 15, 20, 24], [5, 16, 16, 3]
    assert found == [[str(tmp_path / name), "finished", steps, shape] for name in ("a", "b")]
    assert train({"run_dir": tmp_path / "alone", "optim.lr": 1e-4}).returncode == 0
    assert metrics(tmp_path / "b") == metrics(tmp_path / "alone") != metrics(tmp_path / "a")


def test_a_task_that_is_cancelled_leaves_a_last_checkpoint(script: Script, tmp_path: Path) -> None:
    process = script(CANCELLED, **{"training.steps": LONG, "training.checkpoint_every": LONG})
    printed = output_of(process)
    run = dd.Run(tmp_path / "run")
    assert run.status is not None
    assert run.status["status"] == "stopped"
    assert f"stopped at step {run.steps[-1]} of 100,000 with a checkpoint" in printed


def test_workers_of_a_plain_script_print_nothing(script: Script, tmp_path: Path) -> None:
    assert output_of(script(WORKERS, **{"cluster.workers": 2})) == ""
    assert {row["world_size"] for row in metrics(tmp_path / "run")} == {2}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_script_gets_an_exception_and_can_continue(workers: int, script: Script) -> None:
    process = script(STOPPED, **{"cluster.workers": workers, "training.steps": LONG, "training.checkpoint_every": LONG})
    assert process.stdout is not None
    assert process.stdout.readline() == "step 5\n"
    process.send_signal(signal.SIGINT)
    *_, stopped, last = output_of(process).splitlines()
    assert stopped == f"stopped {int(signal.SIGINT)}"
    step, last_step, status = json.loads(last)
    assert (last_step, status) == (step + 8, "finished")


def test_a_sweep_of_a_plain_script_returns_its_trials_and_the_best_and_prints_nothing(
    script: Script, tmp_path: Path
) -> None:
    location, best, trials, lr = json.loads(output_of(script(SWEEP)))
    assert (location, trials, lr) == (str(tmp_path / "sweep"), ["t0000", "t0001"], 0.01)
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    objectives = np.array([trial["objective"] for trial in record["trials"]], float)  # NaN for a collapsed one
    assert best == f"{location}/trials/{record['best']}" == f"{location}/trials/t000{np.nanargmax(objectives)}"
