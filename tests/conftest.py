"""What tests of whole commands share: tiny runs as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dcgan_dist.command_line import yield_idle_cores

yield_idle_cores()  # before any test imports torch
settings.register_profile("dcgan_dist", deadline=None)  # machines are shared: a slow example is no failure
settings.load_profile("dcgan_dist")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and send it

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


# What takes longest begins first, so that no process is left alone with it at the end.
# Each of these is one piece, on one Ray cluster where it needs one; `tests/launch` alone would outlast all the rest.
LONGEST = {
    "sweeps and launches": ("tests/launch/",),
    "hosts": ("tests/cluster/test_local_hosts.py",),
    "scores on Ray": tuple(f"tests/launch/test_{name}.py" for name in ("sweep_of_families", "ray_evaluate")),
}

# Fixtures that start a Ray cluster or network namespaces: tests that take one are slow.
CLUSTERS = {"ray_cluster", "hosts"}


def place_of(nodeid: str) -> str:
    """What of the tests runs in one process, one after the other: a file, or all that share a Ray cluster."""
    places = [place for place, begins in LONGEST.items() if nodeid.startswith(begins)]
    return places[-1] if places else nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share files out to processes, the longest first."""
    from xdist.scheduler import LoadFileScheduling

    class LongestFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return place_of(nodeid)

    config.option.loadscopereorder = False  # it would begin with the files of the most tests
    return LongestFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster or several hosts as slow; put what takes longest first."""
    for item in items:
        if CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    order = {place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(place_of(item.nodeid), len(order)))


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
    """Run a tiny training run to its end, in a process or in several that are told what torchrun tells."""
    from tests.processes import train_together  # it imports torch, which not all processes of the tests need

    return train_together(options({**TINY, **settings}), environment(), workers)


def train_by_command(settings: dict[str, object], workers: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a tiny training run to its end as a user does, alone or under torchrun."""
    words = [*command(workers), *options({**TINY, **settings})]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def train_and_signal(settings: dict[str, object], number: signal.Signals, line: str) -> int:
    """Start a run, send it a signal when a line of its output begins so; its exit status."""
    from tests.processes import start_training

    words = options({**TINY, **settings})
    with start_training(words, environment(), streams=1, is_to_be_killed=True) as running:
        wait_for_line(running.streams[0], line)
        os.killpg(running.process.pid or 0, number)
        return running.finish(60)[0]


def signal_torchrun(settings: dict[str, object], number: signal.Signals, line: str, workers: int) -> int:
    """Do so to torchrun and all its processes."""
    words = [*command(workers), *options({**TINY, **settings})]
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    wait_for_line(process.stdout, line)
    os.killpg(process.pid, number)
    process.stdout.read()
    return process.wait(timeout=60)


def kill_and_resume(settings: dict[str, object], step: int, workers: int) -> None:
    """Kill a run after a step, all its processes, and start it again to its end."""
    if workers == 1:
        assert train_and_signal(settings, signal.SIGKILL, f"step {step}/") != 0
        again = train(settings)
    else:
        assert signal_torchrun(settings, signal.SIGKILL, f"step {step}/", workers) != 0
        again = train_by_command(settings, workers)
    assert again.returncode == 0, again.stderr


def wait_for_line(output: Iterable[str], start: str) -> None:
    """Read on to a line that begins so."""
    seen = []
    for printed in output:
        seen.append(printed)
        if printed.startswith(start):
            return
    raise AssertionError(f"no line began with {start!r}: {''.join(seen)}")


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
    """Uninterrupted tiny runs by number of workers and log interval, made once; one worker's as a user makes them."""
    made: dict[tuple[int, int], Path] = {}

    def get(workers: int, log_every: int = 5) -> Path:
        if (workers, log_every) not in made:
            folder = tmp_path_factory.mktemp("finished") / f"run-{workers}-{log_every}"
            run = train_by_command if workers == 1 else train
            done = run({"run_dir": folder, "training.log_every": log_every}, workers)
            assert done.returncode == 0, done.stderr
            made[workers, log_every] = folder
        return made[workers, log_every]

    return get


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk takes the right to mount one")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte."""
    with (disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
