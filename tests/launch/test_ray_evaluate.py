"""Scores on a real cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.launch.conftest import RayCluster, descendants, wait_for_task


def start(folder: Path, words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dcgan_dist.evaluate", "--run=run", "--task=folder", "--data=rooms:600", *words]
    own = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=own, text=True, **streams)


def finish(process: subprocess.Popen[str], folder: Path) -> tuple[str, list[dict[str, Any]]]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, json.loads((folder / "run/scores.json").read_text())["folder"]


def evaluate(folder: Path, words: list[str], **environment: str) -> tuple[str, list[dict[str, Any]]]:
    return finish(start(folder, words, environment), folder)


def test_features_from_a_cluster_give_the_same_score(
    ray_cluster: RayCluster, tmp_path: Path, finished_run: Callable[..., Path]
) -> None:
    shutil.copytree(finished_run(1), tmp_path / "run")
    out, (alone,) = evaluate(tmp_path, ["--cs=1e-3,1e-2", "--cache=alone"])
    out, (spread,) = evaluate(
        tmp_path,
        ["--cs=1e-3,1e-2", "--cache=spread", "--cluster.workers=2"],
        **ray_cluster.environment,
        RAY_ADDRESS=ray_cluster.address,
    )
    assert "scores          run/scores.json" in out
    assert spread["metrics"] == alone["metrics"]
    entries = [
        {path.name: path.read_bytes() for path in next((tmp_path / cache / "features").iterdir()).iterdir()}
        for cache in ("alone", "spread")
    ]
    assert entries[0]["values"] == entries[1]["values"]


def test_trials_of_the_supervised_control_on_a_cluster_that_loses_a_worker_equal_those_of_one_process(
    ray_cluster: RayCluster, tmp_path: Path, finished_run: Callable[..., Path]
) -> None:
    shutil.copytree(finished_run(1), tmp_path / "run")
    # The features of the first command are then in the cache: the second command has only trials as tasks.
    words = ["--count=200", "--baselines=cnn", "--trials=3", "--epochs=10", "--cs=1e-2", "--cache=cache"]
    _, alone = evaluate(tmp_path, words)
    cluster = {**ray_cluster.environment, "RAY_ADDRESS": ray_cluster.address}
    process = start(tmp_path, [*words, "--cluster.workers=2"], cluster)
    worker = wait_for_task(ray_cluster)
    os.kill(worker, signal.SIGKILL)
    _, spread = finish(process, tmp_path)
    assert worker not in descendants(ray_cluster.process)
    ours, same = (next(entry for entry in entries if entry["method"] == "cnn") for entries in (alone, spread))
    assert same["metrics"] == ours["metrics"]
    assert (same["trial"], same["validation"]) == (ours["trial"], ours["validation"])
    assert len(ours["validation"]["class"]) == 3
