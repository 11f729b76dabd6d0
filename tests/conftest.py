"""What tests of whole commands share: tiny runs as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcgan_dist.command_line import yield_idle_cores

yield_idle_cores()  # before any test imports torch

# 16x16 rooms and a tiny network: a step takes milliseconds.
TINY = {
    "data.path": "rooms:256",
    "model.image_size": 16,
    "model.z_dim": 8,
    "model.ngf": 4,
    "model.ndf": 4,
    "training.batch_size": 8,
    "training.steps": 24,
    "training.log_every": 5,
    "training.sample_every": 10,
    "training.sample_count": 9,
    "training.checkpoint_every": 4,
    "training.device": "cpu",
}


def options(settings: dict[str, object]) -> list[str]:
    """Settings as words of a command line."""
    return [f"--{key}={value}" for key, value in settings.items()]


def command(workers: int = 1) -> list[str]:
    """The train command, alone or under torchrun."""
    if workers == 1:
        return [sys.executable, "-m", "dcgan_dist.train"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [*launcher, "-m", "dcgan_dist.train"]


def environment(**more: str) -> dict[str, str]:
    """Environment of a tiny run: one thread, so that its arithmetic has one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def train(settings: dict[str, object], workers: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a tiny training run to its end."""
    words = [*command(workers), *options({**TINY, **settings})]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def train_and_signal(settings: dict[str, object], number: signal.Signals, line: str, workers: int = 1) -> int:
    """Start a run, send it (and all its processes) a signal when a line of its output begins so; its exit status."""
    words = [*command(workers), *options({**TINY, **settings})]
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seen = []
    for printed in process.stdout:
        seen.append(printed)
        if printed.startswith(line):
            break
    else:
        raise AssertionError(f"no line began with {line!r}: {''.join(seen)}")
    os.killpg(process.pid, number)
    process.stdout.read()
    return process.wait(timeout=60)


def metrics(run: Path) -> list[dict[str, object]]:
    """Lines of a run's metrics, without those that depend on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait", "time_s")} for row in rows]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of generated shards that no other program uses."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("DCGAN_DIST_CACHE")
    os.environ["DCGAN_DIST_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["DCGAN_DIST_CACHE"]
    else:
        os.environ["DCGAN_DIST_CACHE"] = before


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Uninterrupted tiny runs by number of workers and log interval, made once."""
    made: dict[tuple[int, int], Path] = {}

    def get(workers: int, log_every: int = 5) -> Path:
        if (workers, log_every) not in made:
            folder = tmp_path_factory.mktemp("finished") / f"run-{workers}-{log_every}"
            done = train({"run_dir": folder, "training.log_every": log_every}, workers)
            assert done.returncode == 0, done.stderr
            made[workers, log_every] = folder
        return made[workers, log_every]

    return get
