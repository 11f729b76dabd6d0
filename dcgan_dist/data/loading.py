"""Processes that fill shared memory with batches.

Each process has a row of slots in memory that it shares with the one that started it, and fills them in turn; what is
small comes through a pipe. Nothing else is shared, neither locks nor names in the file system: a process that is
killed leaves nothing behind and holds up nobody, and when the one that started them is gone, they end by themselves.
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
    """Something that has happened or not, known to several processes without a lock; it travels to those started."""

    def __init__(self) -> None:
        self._value = multiprocessing.get_context("spawn").RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        """Say that it has happened."""
        self._value.value = True

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return bool(self._value.value)


class LoaderProcesses(Generic[Answer]):
    """Processes that answer numbers in turn, each answer with a slot of memory.

    Args:
        fill: called in the processes with a number and the slot to fill, gives the answer; all of it, and the answers,
            must be fit for pickling.
        count: number of processes.
        slots: slots of each process: how many numbers may wait for it.
        slot_size: bytes of a slot.
    """

    def __init__(self, fill: Callable[[int, memoryview], Answer], count: int, slots: int, slot_size: int) -> None:
        # A forked copy of a process with threads (CUDA, gloo, fsspec) may hang; a new one does not.
        context = multiprocessing.get_context("spawn")
        self.free = count * slots
        self._waiting: deque[tuple[_Process, memoryview]] = deque()
        self._processes: list[_Process] = []
        try:
            for _ in range(count):
                with starting_processes():
                    shared = context.RawArray(ctypes.c_uint8, slots * slot_size)
                    here, there = context.Pipe()
                    # A daemon: one that is left running ends with this process.
                    process = context.Process(target=_serve, args=(there, shared, slots, fill), daemon=True)
                    self._processes.append(_Process(process, here, _cut(shared, slots)))
                    process.start()
                there.close()
        except BaseException:
            self.close()
            raise
        self._turn = itertools.cycle(self._processes)
        # multiprocessing would end them at this process's exit by SIGTERM, which they leave to it.
        atexit.register(self.close)

    def ask(self, number: int) -> None:
        """Let the next process work on a number; a slot must be free.

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
        """Wait for the answer to the oldest number, None where there is none; the slot stays as it is until `ask`.

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
    """One of the processes, as the one that started it sees it."""

    def __init__(self, process: Any, pipe: Connection[Any, Any], slots: list[memoryview]) -> None:
        self._process = process
        self.pipe = pipe
        self.slots = itertools.cycle(slots)

    def failure(self) -> WorkerFailed:
        """Return the error that says how it ended."""
        self._process.join(_SECONDS_TO_END)
        code = self._process.exitcode
        how = f"was killed by signal {-code} (too little memory?)" if code and code < 0 else f"ended with status {code}"
        return WorkerFailed(f"a process that loads images {how}: run it again, or set data.workers to 0")

    def end(self) -> None:
        """Wait for its end, and bring it about if need be."""
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
    """Answer numbers until there is nobody to answer."""
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
