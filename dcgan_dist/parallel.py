"""Independent tasks over several processes: reading parts of a source, hashing shards, scoring images.

What does the tasks is handed in as a `TaskPool`: the processes of this machine (`LocalPool`), or those of a cluster,
which the launcher provides. The results come in the order of the tasks, so that nothing depends on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dcgan_dist.errors import WorkerFailed

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks handed out beyond those that are being worked on: enough that no worker waits for the next.
AHEAD = 2


class TaskPool(Protocol):
    """Workers that do independent tasks."""

    @property
    def workers(self) -> int:
        """How many tasks are done at the same time."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task in order; tasks are taken from the iterable as they are needed.

        Args:
            function: a function at the top of a module; what it raises comes up here.
            tasks: its arguments; they and the results must be fit for pickling, and should be small.

        Raises:
            WorkerFailed: a worker died.
        """


@dataclass(frozen=True)
class LocalPool:
    """Processes of this machine; with one worker the tasks are done in this process."""

    workers: int

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See `TaskPool`."""
        if self.workers == 1:
            yield from map(function, tasks)
            return
        # Spawned: forking a process that has threads can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker)
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerFailed("a worker process died (too little memory?): run it again") from error
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _start_worker() -> None:
    """Let a worker end with its parent, even a killed one, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
