"""Searches over a real cluster, as Tune sweeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.launch.conftest import RayCluster
from tests.launch.test_ray_tasks import environment

SEARCH = """
import os, signal, sys
from pathlib import Path
from ray import tune
from dcgan_dist.errors import DataError
from dcgan_dist.launch.ray_tasks import ray_pool

folder = Path(sys.argv[1])

def value(number):
    (folder / f"trial {number}").write_text(tune.get_context().get_experiment_name())
    if number == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number / 4

def damaged(number):
    with (folder / "tries").open("a") as tries:
        tries.write(f"{number} ")
    if number == 1:
        raise DataError("one is damaged")
    return 0.0

with ray_pool(2) as pool:
    assert pool.search(value, [3, 2, 1, 0]) == [0.75, 0.5, 0.25, 0.0]
    assert (folder / "died").exists()
    assert [path.read_text() for path in folder.glob("trial *")] == ["search"] * 4
    print("values", flush=True)
    try:
        pool.search(damaged, [0, 1])
    except DataError as error:
        assert str(error) == "one is damaged" and sorted((folder / "tries").read_text().split()) == ["0", "1"]
        print("error", flush=True)
"""


def test_values_come_back_in_order_after_a_crash_and_with_their_own_errors(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(SEARCH)
    words = [sys.executable, tmp_path / "program.py", tmp_path]
    env = {**environment(ray_cluster), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["values", "error"], done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr
