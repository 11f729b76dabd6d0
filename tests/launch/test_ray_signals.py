"""Signals to commands whose work runs on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.launch.conftest import RayCluster
from tests.processes import Moment
from tests.test_stopping import SETS, end_of

TASKS = "dcgan_dist.launch.ray_tasks"
COMMANDS: list[tuple[str, str, int, Sequence[str]]] = [
    (command, function, call, words)
    for command, words in [
        ("prepare", ("--source=rooms", "--count=2000", "--image-size=16", "--shard-size=100", "--output=OUT")),
        ("sample", ("--run=RUN", "--count=4000", "--output=OUT.npz")),
        ("evaluate", ("--run=RUN", "--task=folder", "--data=rooms:600", "--cs=1e-3", "--cache=OUT.cache")),
    ]
    for function, call in [
        ("dcgan_dist.launch.connection.ray.init", 1),
        (f"{TASKS}.Capacity.of_cluster", 1),
        (f"{TASKS}.ray.wait", 1),
        (f"{TASKS}.ray.get", 2),
    ]
]


@pytest.mark.parametrize(("number", "what"), enumerate(COMMANDS))
def test_commands_on_a_cluster_end_in_order_whenever_signals_come(
    number: int,
    what: tuple[str, str, int, Sequence[str]],
    ray_cluster: RayCluster,
    tmp_path: Path,
    finished_run: Callable[..., Path],
) -> None:
    command, function, call, words = what
    signals, run_dir = SETS[number % len(SETS)], finished_run(1)
    words = [word.replace("RUN", str(run_dir)).replace("OUT", str(tmp_path / "out")) for word in words]
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"}
    own = environment(**ray_cluster.environment, RAY_ADDRESS=ray_cluster.address)
    moment = Moment(function, signals, call=call)
    code, errors = end_of([*words, "--cluster.workers=2"], moment, command, own)
    lines = [line for line in errors.splitlines() if " images, " not in line]  # without the progress
    assert (code, len(lines)) == (128 + signals[0], 1), errors
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"out.cache", ".out.unfinished"}
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"} == before
