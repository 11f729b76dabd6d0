"""Independent tasks on a real cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import room_source
from tests.launch.conftest import RayCluster, wait_for_task

TASKS = """
import contextlib, os, signal, sys, time
from pathlib import Path
from dcgan_dist.errors import ClusterError, DataError, WorkerFailed
from dcgan_dist.launch.ray_tasks import ray_pool

folder = Path(sys.argv[1])

def square(number):
    time.sleep(0.05 * (number % 3 == 0))
    return number * number, os.getpid()

def fail_at_five(number):
    if number == 5:
        raise DataError("five is damaged")
    return number

def die_once_at_five(number):
    if number == 5 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def always_die(number):
    os.kill(os.getpid(), signal.SIGKILL)

def tasks(taken):
    for number in range(40):
        taken.append(number)
        yield number

with ray_pool(2) as pool:
    results = list(pool.run(square, range(20)))
    assert [result for result, _ in results] == [number * number for number in range(20)]
    assert os.getpid() not in {pid for _, pid in results}
    print("order", flush=True)

    with contextlib.closing(pool.run(fail_at_five, range(100))) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        try:
            next(results)
        except DataError as error:
            assert type(error) is DataError and str(error) == "five is damaged"
            print("error", flush=True)

    taken = []
    with contextlib.closing(pool.run(square, tasks(taken))) as results:
        next(results)
        assert len(taken) <= 6, taken
        print("bounded", flush=True)

    assert list(pool.run(die_once_at_five, range(10))) == list(range(10)) and (folder / "died").exists()
    print("retried", flush=True)

    try:
        list(pool.run(always_die, range(3)))
    except WorkerFailed as error:
        print("failed", flush=True)

with ray_pool(1, ["s3://bucket/images", "/nowhere/images"]) as pool:
    try:
        list(pool.run(square, range(3)))
    except ClusterError as error:
        assert "does not see '/nowhere/images'" in str(error), error
        print("needs", flush=True)
"""


def environment(cluster: RayCluster) -> dict[str, str]:
    return {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address}


def test_results_are_in_order_after_a_crash_and_errors_are_those_of_the_tasks(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(TASKS))
    words = [sys.executable, tmp_path / "program.py", tmp_path]
    env = {**environment(ray_cluster), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["order", "error", "bounded", "retried", "failed", "needs"], done.stderr


def prepare(cluster: RayCluster, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dcgan_dist.prepare", "--source=rooms", "--image-size=16", "--shard-size=100"]
    return subprocess.Popen(
        [*command, *words],
        env={**environment(cluster), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_prepare_on_a_cluster_loses_a_worker_is_stopped_continues_and_ends_with_the_same_bytes(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    words = ("--count=4000", "--output=out", "--cluster.workers=2")
    process = prepare(ray_cluster, tmp_path, *words)
    work = tmp_path / ".out.unfinished"

    def wait_for(records: int) -> None:
        deadline = time.monotonic() + 200
        while len(list(work.glob("rooms-*.json"))) < records:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    wait_for(3)
    os.kill(wait_for_task(ray_cluster), signal.SIGKILL)
    wait_for(15)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.endswith(
        "dcgan-dist prepare: ended by a signal (SIGTERM); run again, it continues from the finished shards\n"
    )
    assert not (tmp_path / "out").exists()
    process = prepare(ray_cluster, tmp_path, *words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"{tmp_path}/out: 4,000 colour images" in out
    write_shards(room_source(4000), Recipe(image_size=16, shard_size=100, name="rooms"), tmp_path / "whole")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_more_tasks_at_once_than_cpus_are_refused_with_the_number_of_cpus(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    process = prepare(ray_cluster, tmp_path, "--count=10", "--output=out", "--cluster.workers=5")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert "cluster.workers is 5, 1 CPU each, but the cluster has 2 CPUs and 0 GPUs on 1 host, room for 2" in err
    assert not list(tmp_path.iterdir())
