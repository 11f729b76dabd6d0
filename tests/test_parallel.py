"""Tasks over processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcgan_dist.errors import DataError, WorkerFailed
from dcgan_dist.parallel import LocalPool, usable_cores


def sleepy_square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3 == 0))
    return number * number, os.getpid()


def fail_at_five(number: int) -> int:
    if number == 5:
        raise DataError("five is damaged")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os._exit(9)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    results = list(LocalPool(workers).run(sleepy_square, range(20)))
    assert [square for square, _ in results] == [number * number for number in range(20)]
    assert (os.getpid() in {process for _, process in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_comes_up_where_its_result_would(workers: int) -> None:
    results = LocalPool(workers).run(fail_at_five, range(100))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="five is damaged"):
        next(results)


def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    with pytest.raises(WorkerFailed, match="died"):
        list(LocalPool(2).run(die_at_five, range(100)))


def test_tasks_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = LocalPool(2).run(sleepy_square, tasks())
    next(results)
    assert len(taken) <= 5
    results.close()


def work_long(seconds: float) -> bytes:
    time.sleep(seconds)
    return bytes(1 << 20)


def test_who_stops_early_waits_for_no_task() -> None:
    for long in (0.001, 100.0):
        results = LocalPool(2).run(work_long, [0.0, *([long] * 20)])
        next(results)
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 5


PREPARE = "-m dcgan_dist.prepare --source rooms --count 50 --image-size 16 --workers 2 --output"
FULL_SHM = "mount -t tmpfs -o size=4k tmpfs /dev/shm && echo > /dev/shm/full"


@pytest.mark.parametrize(
    ("shell", "shortage", "reason"),
    [
        (["sh"], "ulimit -n 12", "Too many open files"),
        (["unshare", "--mount", "sh"], FULL_SHM, "No space left on device"),
    ],
)
def test_a_machine_that_cannot_start_workers_is_one_line(
    tmp_path: Path, shell: list[str], shortage: str, reason: str
) -> None:
    if subprocess.run([*shell, "-c", shortage], capture_output=True, check=False).returncode:
        pytest.skip("not allowed here")
    words = [*shell, "-c", f'{shortage}; exec "$0" {PREPARE} "$1"', sys.executable, str(tmp_path / "shards")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"dcgan-dist prepare: worker processes cannot be started ({reason}): shared memory")
    assert done.stderr.endswith("; `python -m dcgan_dist doctor` says more\n")
    assert done.stderr.count("\n") == 1


KILLED = """
import sys, time
from dcgan_dist.parallel import LocalPool
from tests.test_parallel import work_long
if __name__ == "__main__":
    results = LocalPool(2).run(work_long, [0.0] + [100.0] * 5)
    next(results)
    print("going", flush=True)
    next(results)
"""


def test_workers_end_with_a_killed_parent() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"going\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom dcgan_dist.parallel import LocalPool\n"
        "print('begins', list(LocalPool(2).run(abs, [-1, 2, -3])), sys.modules['__main__'].__file__)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"begins [1, 2, 3] {script}\n", "")


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/not/seen/here\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/\n", {}, 2),
        ("0::/\n", {"cpu.max": "garbage"}, 2),
        (
            "4:cpu,cpuacct:/job\n0::/\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("9:memory:/\n", {"cpu.cfs_quota_us": "1", "cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_a_containers_quota_of_cpus_counts(
    own: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1})
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert usable_cores(tmp_path / "groups", tmp_path / "own") == cores


@pytest.mark.parametrize("most", [4, 6, 8, 10, 30])
def test_a_container_whose_limit_is_too_low_for_a_pool_is_one_line_and_no_wait(most: int, tmp_path: Path) -> None:
    group = Path(f"/sys/fs/cgroup/pids/dcgan-dist-{os.getpid()}")
    try:
        group.mkdir()
        (group / "pids.max").write_text(f"{most}\n")
    except OSError:
        pytest.skip("a limit of processes takes the right to make a control group of version 1")
    try:
        words = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m dcgan_dist.prepare --source rooms --count 60"
        words += f" --image-size 16 --shard-size 20 --workers 2 --output {tmp_path}/out"
        done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60, check=False)
        if most == 30:
            assert done.returncode == 0, done.stderr
        else:
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
            assert (
                "more processes and threads are allowed, but 2 workers take 9: raise the container's limit"
                in done.stderr
            )
            assert list(tmp_path.iterdir()) == []
    finally:
        while (group / "cgroup.procs").read_text():
            time.sleep(0.05)
        group.rmdir()
