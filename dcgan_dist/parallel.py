"""Independent tasks in several processes: reading parts of a source, hashing shards, scoring images.

Callers pass a `TaskPool`: processes of this machine (`LocalPool`), or of a cluster, which `launch` provides. Results
come in the order of the tasks, so that they do not depend on the number of workers.
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

# Submitted tasks per worker: one to work on and one that waits, so that no worker is idle.
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
        """Number of tasks done at the same time."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """Yield the result of each task in order; tasks are taken from the iterable as needed.

        A caller that does not need the remaining results closes the generator, which ends the tasks in progress.

        Args:
            function: a top-level function of a module; what it raises is raised here.
            tasks: its arguments; they and the results must be picklable, and should be small.

        Raises:
            WorkerFailed: a worker died.
        """


@dataclass(frozen=True)
class LocalPool:
    """Processes of this machine; with one worker, tasks are done in this process."""

    workers: int

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """See `TaskPool`."""
        if self.workers == 1:
            yield from map(function, tasks)
            return
        _check_process_limit(self.workers)
        # Spawned, since forking a process that has threads can hang.
        context = multiprocessing.get_context("spawn")
        # Nothing is ever sent over the pipe: its other end closes when the workers should end, or this process dies.
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
            end_of_line.close()  # ends the workers: the results of tasks in progress are not needed any more
            pool.shutdown(cancel_futures=True)
            line.close()


def usable_cores(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the number of cores that this process may use: its affinity, or its container's quota if that is less.

    Args:
        groups: the folder of the control groups (cgroups), of version 1 or 2.
        own: the file that names the groups of this process.
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
    """Yield the limits set by the control groups of this process and by their parents.

    Args:
        controller: such as `memory`.
        second: returns the limit in the folder of a group of version 2.
        first: the same for version 1.
        groups: the folder of the control groups.
        own: the file that names the groups of this process.
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
        # In a container, the path may be the one outside, which does not exist here: then the root is its own group.
        for folder in [below, *below.parents]:
            with suppress(OSError, ValueError, ZeroDivisionError):  # no such group, or no limit ("max")
                yield read(root / folder)


def _check_process_limit(workers: int) -> None:
    # At the limit, a pool does not fail but waits forever.
    needed = 2 * workers + 5  # each worker and a thread of it, the fork server, the tracker, threads of the pool
    free = min(limits_of_groups("pids", _free_processes, _free_processes), default=math.inf)
    if free < needed:
        raise WorkerFailed(
            f"only {free:g} more processes and threads are allowed, but {workers} workers take {needed}: raise the "
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
    """Within the block, start processes that leave signals to this one; an error of the system becomes one line.

    They do not import the program's main module, which may be a script without ``if __name__ == "__main__"`` that would
    run again in each of them. Therefore they cannot run functions of the main module.

    Raises:
        WorkerFailed: a process could not be started.
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


_main_module_lock = threading.RLock()


@contextmanager
def _without_main_module() -> Iterator[None]:
    # multiprocessing sends a new process the file or spec of the main module to import; an empty module has neither.
    with _main_module_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def yield_idle_cores() -> None:
    """Make OpenMP's threads spin only briefly while they wait; call this before torch is imported.

    If other programs share the cores, spinning threads take time from the very thread that they wait for, and a
    training step becomes many times slower (docs/benchmarks.md). 1000 turns is libgomp's own value for a program that
    has more threads than there are cores. A value set by the user is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # OpenMP respects the affinity of a process, but not a container's CPU quota.
    if usable_cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    # DDP warns about `find_unused_parameters`, which `training/step.py` needs, from C++, where Python cannot filter it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class _WorkerState:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_working = self.pool_has_ended = False


_state = _WorkerState()


def _start_worker(line: Connection) -> None:
    """Make a worker end with its pool or its parent, even if the parent is killed."""
    keep_streams()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        line.poll(None)  # returns when the other end is closed
        # End at once only if a task is in progress: while a result is being sent, the pool would wait for its rest.
        with _state.lock:
            _state.pool_has_ended = True
            if _state.is_working:
                os._exit(1)
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _do(function: Callable[[Task], Result], task: Task) -> Result:
    with _state.lock:
        if _state.pool_has_ended:
            os._exit(1)
        _state.is_working = True
    try:
        return function(task)
    finally:
        with _state.lock:
            _state.is_working = False
