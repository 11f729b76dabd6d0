"""Independent tasks over several processes: reading parts of a source, hashing shards, scoring images.

What does the tasks is handed in as a `TaskPool`: the processes of this machine (`LocalPool`), or those of a cluster,
which the launcher provides. The results come in the order of the tasks, so that nothing depends on how many there are.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import ClassVar, Protocol, TypeVar

from dcgan_dist.config import Workers
from dcgan_dist.errors import WorkerFailed
from dcgan_dist.printing import keep_streams
from dcgan_dist.settings import FormerValues, Group
from dcgan_dist.stopping import shielding

Task = TypeVar("Task")
Result = TypeVar("Result")

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# Tasks handed out beyond those that are being worked on: enough that no worker waits for the next.
AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class TaskClusterConfig(Group, prefix="cluster."):
    """Where independent tasks are done."""

    workers: Workers = 1
    """Processes of a Ray cluster that share the work, a GPU each where there is use for them; 1 works without Ray, on
    this machine alone."""

    FORMER_VALUES: ClassVar[FormerValues] = {"workers": {"0": 1}}


class TaskPool(Protocol):
    """Workers that do independent tasks."""

    @property
    def workers(self) -> int:
        """How many tasks are done at the same time."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """Yield the result of each task in order; tasks are taken from the iterable as they are needed.

        Whoever stops before the last result closes the generator, which ends what is still being done.

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

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """See `TaskPool`."""
        if self.workers == 1:
            yield from map(function, tasks)
            return
        _check_room(self.workers)
        # Spawned: forking a process that has threads can hang.
        context = multiprocessing.get_context("spawn")
        # Nothing is ever sent: its other end closes when the workers are to end, or when this process dies.
        with starting_processes():
            line, end_of_line = context.Pipe(duplex=False)
            pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker, initargs=(line,))
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                with starting_processes():
                    waiting.append(pool.submit(_do, function, task))
                if len(waiting) >= AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerFailed("a worker process died (too little memory?): run it again") from error
        finally:
            end_of_line.close()  # tasks that are still being worked on are of no use any more
            pool.shutdown(cancel_futures=True)
            line.close()


def usable_cores(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the number of cores that this process may use: its affinity, or a container's quota where that is less.

    Args:
        groups: where the control groups are, of version 1 or 2.
        own: the file that names those of this process.
    """
    quotas = limits_of_groups("cpu", _quota_of_version_2, _quota_of_version_1, groups, own)
    limits = [math.ceil(quota) for quota in quotas if quota > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def limits_of_groups(
    controller: str,
    second: Callable[[Path], float],
    first: Callable[[Path], float],
    groups: Path = GROUPS,
    own: Path = OWN_GROUPS,
) -> Iterator[float]:
    """Yield the limits that the control groups of this process, and those above them, set.

    Args:
        controller: such as `memory`.
        second: reads the limit in the folder of a group of version 2.
        first: does so in version 1.
        groups: where the control groups are.
        own: the file that names those of this process.
    """
    lines = own.read_text(encoding="utf-8", errors="replace").splitlines() if own.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, read = groups, second
        elif controller in controllers.split(","):
            root, read = groups / controllers, first
            root = root if root.exists() else groups / controller
        else:
            continue
        below = PurePosixPath(path.lstrip("/"))
        # In a container the path may be that outside, of which nothing is seen here: then the root is its own group.
        for folder in [below, *below.parents]:
            with suppress(OSError, ValueError, ZeroDivisionError):  # no such group, or no limit there, which is "max"
                yield read(root / folder)


def _check_room(workers: int) -> None:
    """Check that a container's limit of processes and threads leaves room for a pool, which would wait forever.

    Raises:
        WorkerFailed: it does not.
    """
    needed = 2 * workers + 5  # each worker and a thread of it, the fork server, the tracker, threads of the pool
    free = min(limits_of_groups("pids", _free_processes, _free_processes), default=math.inf)
    if free < needed:
        raise WorkerFailed(
            f"there is room for {free:g} more processes and threads, and {workers} workers take {needed}: raise the "
            "container's limit (--pids-limit), or take --workers 1"
        )


def _free_processes(folder: Path) -> int:
    most, now = ((folder / f"pids.{name}").read_text(encoding="ascii") for name in ("max", "current"))
    return int(most) - int(now)


def _quota_of_version_2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return int(quota) / int(period)


def _quota_of_version_1(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period"))
    return quota / period  # a quota of -1 is none


@contextmanager
def starting_processes() -> Iterator[None]:
    """Start processes that leave signals to this one; an error of the system becomes one line.

    They do not import the program's main module, which is somebody's script: one without ``if __name__ == "__main__"``
    would start all over in each of them. What they do is thus none of its functions.

    Raises:
        WorkerFailed: it could not be started.
    """
    try:
        with shielding(), _without_main_module():
            yield
    except BrokenProcessPool:
        raise
    except (OSError, RuntimeError) as error:  # a thread that cannot be started is a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise WorkerFailed(
            f"worker processes cannot be started ({reason}): shared memory (/dev/shm), open files, processes or memory "
            "are used up"
        ) from error


_main_module_gate = threading.RLock()


@contextmanager
def _without_main_module() -> Iterator[None]:
    # multiprocessing looks up what a new process has to import first; an empty module has neither file nor spec.
    with _main_module_gate:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def yield_idle_cores() -> None:
    """Have OpenMP's threads spin only briefly while they wait; to be called before torch is imported.

    Where other programs share the cores, threads that spin take the time of the very thread they wait for: a training
    step then becomes many times slower (docs/benchmarks.md). 1000 turns is what libgomp itself takes where a program
    has more threads than there are cores. A value of the user's own is left as it is.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # OpenMP knows the cores that a process may use, but not a container's quota of their time.
    if usable_cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    # DDP warns of `find_unused_parameters`, which `training/step.py` needs, from C++, where no filter can reach it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class _Duty:
    """What a worker is at, and whether its pool has ended."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.is_working = self.is_over = False


_duty = _Duty()


def _start_worker(line: Connection) -> None:
    """Let a worker end with its pool or its parent, even a killed one."""
    keep_streams()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        line.poll(None)  # until its other end is closed
        # A worker that ended while it was sending a result would leave the pool waiting for the rest of it.
        with _duty.gate:
            _duty.is_over = True
            if _duty.is_working:
                os._exit(1)
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _do(function: Callable[[Task], Result], task: Task) -> Result:
    """Do a task in a worker."""
    with _duty.gate:
        if _duty.is_over:
            os._exit(1)
        _duty.is_working = True
    try:
        return function(task)
    finally:
        with _duty.gate:
            _duty.is_working = False
