import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcgan_dist.data.loading import LoaderProcesses, SharedFlag
from dcgan_dist.errors import WorkerFailed


def write_number(number: int, slot: memoryview) -> tuple[int, int]:
    slot[:4] = number.to_bytes(4, "little")
    return number, os.getpid()


def ask_and_wait(loaders: LoaderProcesses) -> None:
    loaders.ask(1)
    loaders.answer()


def gone(processes: list[int]) -> bool:
    by = time.monotonic() + 10
    while any(Path("/proc", str(process)).exists() for process in processes):
        if time.monotonic() > by:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("count", "slots"), [(1, 1), (2, 3)])
def test_answers_come_in_the_order_of_the_numbers_each_with_its_own_slot(count, slots):
    loaders = LoaderProcesses(write_number, count, slots, 64)
    numbers, found, processes = iter(range(50)), [], set()
    while loaders.free:
        loaders.ask(next(numbers))
    while (answered := loaders.answer()) is not None:
        (number, process), slot = answered
        found.append((number, int.from_bytes(slot[:4], "little")))
        processes.add(process)
        for following in numbers:
            loaders.ask(following)
            break
    assert found == [(number, number) for number in range(50)]
    assert len(processes) == count
    loaders.close()
    assert gone(list(processes))


def test_a_killed_process_is_one_line_and_blocks_no_other():
    loaders = LoaderProcesses(write_number, 1, 2, 64)
    loaders.ask(0)
    answered = loaders.answer()
    assert answered is not None
    os.kill(answered[0][1], signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"^a process that loads images was killed by signal 9") as error:
        ask_and_wait(loaders)
    assert "\n" not in str(error.value)
    began = time.monotonic()
    loaders.close()
    assert time.monotonic() - began < 2


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    before = set(os.listdir("/dev/shm"))
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal\n"
        "from dcgan_dist.data.loading import LoaderProcesses\n"
        "from tests.data.test_loading import write_number\n"
        "if __name__ == '__main__':\n"
        "    loaders = LoaderProcesses(write_number, 2, 2, 1 << 20)\n"
        "    for number in range(2):\n"
        "        loaders.ask(number)\n"
        "    print(*(loaders.answer()[0][1] for _ in range(2)), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    processes = [int(word) for word in ended.stdout.split()]
    assert len(processes) == 2
    assert gone(processes)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("pym-")}


def flag_seen(pipe, flag: SharedFlag) -> None:
    while not flag.is_set():
        time.sleep(0.01)
    pipe.send("seen")


def test_a_shared_flag_is_seen_in_other_processes():
    context = multiprocessing.get_context("spawn")
    flag = SharedFlag()
    here, there = context.Pipe()
    process = context.Process(target=flag_seen, args=(there, flag), daemon=True)
    process.start()
    assert not flag.is_set()
    assert not here.poll(0.2)
    flag.set()
    assert here.poll(30)
    process.join()
