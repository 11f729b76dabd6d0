"""Loader processes that write batches into shared memory.

Each process shares a ring of slots in memory with its parent and fills them in turn; small data comes through a pipe.
Nothing else is shared, neither locks nor names in the file system: a killed process leaves nothing behind and blocks no
other, and if the parent dies, the processes end by themselves.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from dcgan_dist.errors import WorkerFailed
from dcgan_dist.parallel import starting_processes
from dcgan_dist.printing import keep_streams

Answer = TypeVar("Answer")

_SECONDS_TO_END = 2.0  # after that a process is killed


class SharedFlag:
    """A flag shared by several processes without a lock; it can be passed to a process when that is started."""

    def __init__(self) -> None:
        self._value = multiprocessing.get_context("spawn").RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        """Set the flag."""
        self._value.value = True

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return bool(self._value.value)


class LoaderProcesses(Generic[Answer]):
    """Processes that answer numbers in turn, each answer with a slot of shared memory.

    Args:
        fill: called in the processes with a number and the slot to fill, returns the answer; it and the answers must be
            picklable.
        count: number of processes.
        slots: slots of each process, which is also the number of requests that may wait for it.
        slot_size: bytes of a slot.
    """

    def __init__(self, fill: Callable[[int, memoryview], Answer], count: int, slots: int, slot_size: int) -> None:
        # Spawned: a forked copy of a process with threads (CUDA, gloo, fsspec) can hang.
        context = multiprocessing.get_context("spawn")
        self.free = count * slots
        self._waiting: deque[tuple[_Process, memoryview]] = deque()
        self._processes: list[_Process] = []
        try:
            for _ in range(count):
                with starting_processes():
                    shared = context.RawArray(ctypes.c_uint8, slots * slot_size)
                    here, there = context.Pipe()
                    # A daemon, so that it ends with this process.
                    process = context.Process(target=_serve, args=(there, shared, slots, fill), daemon=True)
                    self._processes.append(_Process(process, here, _cut(shared, slots)))
                    process.start()
                there.close()
        except BaseException:
            self.close()
            raise
        self._turn = itertools.cycle(self._processes)
        # At exit, multiprocessing would send them SIGTERM, which they block (see `shielding`), and then wait forever.
        atexit.register(self.close)

    def ask(self, number: int) -> None:
        """Send a number to the next process; a slot must be free.

        Raises:
            WorkerFailed: that process has died.
        """
        assert self.free
        self.free -= 1
        process = next(self._turn)
        slot = next(process.slots)
        try:
            process.pipe.send(number)
        except OSError as error:
            raise process.failure() from error
        self._waiting.append((process, slot))

    def answer(self) -> tuple[Answer, memoryview] | None:
        """Wait for the answer to the oldest number; None if there is none. The slot is not changed before `ask`.

        Raises:
            WorkerFailed: its process has died.
        """
        if not self._waiting:
            return None
        process, slot = self._waiting.popleft()
        try:
            answer: Answer = process.pipe.recv()
        except (EOFError, OSError) as error:
            raise process.failure() from error
        self.free += 1
        return answer, slot

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        self._waiting.clear()
        for process in self._processes:
            process.pipe.close()
        for process in self._processes:
            process.end()
        self._processes.clear()


class _Process:
    """One of the processes, seen from its parent."""

    def __init__(self, process: Any, pipe: Connection[Any, Any], slots: list[memoryview]) -> None:
        self._process = process
        self.pipe = pipe
        self.slots = itertools.cycle(slots)

    def failure(self) -> WorkerFailed:
        """Return the error that describes how it ended."""
        self._process.join(_SECONDS_TO_END)
        code = self._process.exitcode
        how = f"was killed by signal {-code} (too little memory?)" if code and code < 0 else f"ended with status {code}"
        return WorkerFailed(f"a process that loads images {how}: run it again, or set data.workers to 0")

    def end(self) -> None:
        """Wait for its end; kill it if it does not end."""
        if self._process.pid is None:  # it was never started
            return
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _cut(shared: Any, slots: int) -> list[memoryview]:
    memory = memoryview(shared).cast("B")
    size = len(memory) // slots
    return [memory[number * size : (number + 1) * size] for number in range(slots)]


def _serve(pipe: Connection[Any, Any], shared: Any, slots: int, fill: Callable[[int, memoryview], Any]) -> None:
    """Answer numbers until the parent closes the pipe or dies."""
    keep_streams()
    for slot in itertools.cycle(_cut(shared, slots)):
        try:
            number = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        answer = fill(number, slot)
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


__all__ = ["LoaderProcesses", "SharedFlag"]
