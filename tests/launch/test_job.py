"""Training as a Ray job, on a cluster with a token."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.conftest import TINY, options
from tests.launch.conftest import RAY, RayCluster

PROJECT = Path(__file__).parents[2]
LONG = 100_000


def ray_job(cluster: RayCluster, *words: str, token: bool = True) -> subprocess.Popen[str]:
    environment = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.dashboard}
    if not token:
        environment |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    return subprocess.Popen(
        [RAY, "job", *words], env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_job_shows_progress_and_stops_with_a_checkpoint_for_those_with_the_token(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {**TINY, "cluster.workers": 2, "run_dir": run, "training.steps": LONG, "training.checkpoint_every": LONG}
    submit = ["submit", "--submission-id", "dcgan", "--working-dir", "."]
    entry = ["--", "python", "-m", "dcgan_dist.train", *options(settings)]

    stranger = ray_job(ray_cluster, *submit, *entry, token=False)
    refusal, _ = stranger.communicate(timeout=60)
    assert stranger.returncode != 0
    assert "Unauthorized" in refusal, refusal

    job = ray_job(ray_cluster, *submit, *entry)
    assert job.stdout is not None
    lines = []
    for line in job.stdout:
        lines.append(line)
        if line.startswith("step 10/"):
            break
    else:
        raise AssertionError("".join(lines))

    stop = ray_job(ray_cluster, "stop", "dcgan")
    lines += job.communicate(timeout=60)[0].splitlines(keepends=True)
    assert "was stopped" in stop.communicate(timeout=60)[0]
    assert any(line.startswith("starting: ") and "on 2 x cpu" in line for line in lines)
    assert any("stopped at step" in line and "with a checkpoint" in line for line in lines), "".join(lines)
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "stopped"
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{status['step']:08d}"
