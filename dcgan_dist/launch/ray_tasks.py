"""Independent tasks on the hosts of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from dcgan_dist.errors import ClusterError, WorkerFailed
from dcgan_dist.launch.capacity import Capacity
from dcgan_dist.launch.connection import connected_cluster, last_line
from dcgan_dist.launch.event_bus import WithoutRay
from dcgan_dist.launch.locations import is_url
from dcgan_dist.parallel import AHEAD, Result, Task

RETRIES = 3  # retries of a task whose worker process or host died


@contextlib.contextmanager
def ray_pool(
    workers: int, needs: Sequence[str] = (), device: Literal["auto", "cpu", "cuda"] = "cpu"
) -> Iterator[RayPool]:
    """Yield a pool on the cluster of this process, or on one of this machine that ends with the block.

    Args:
        workers: number of tasks at the same time, each with a CPU.
        needs: absolute paths that every host must have; URLs are ignored.
        device: `cuda` for a GPU for each task as well; `auto` for the same if the cluster has GPUs.

    Raises:
        ClusterError: the cluster cannot be reached, or has fewer CPUs or GPUs.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise ray.init warns about a future change
    with contextlib.redirect_stdout(WithoutRay(sys.stdout)), connected_cluster():
        capacity = Capacity.of_cluster()
        uses_gpus = device == "cuda" or (device == "auto" and capacity.gpus >= 1)
        slots = capacity.slots(1, uses_gpus)
        if slots < workers:
            each = "1 CPU and 1 GPU" if uses_gpus else "1 CPU"
            raise ClusterError(
                f"cluster.workers is {workers}, {each} each, but {capacity}, room for {slots}: take fewer workers, or "
                "1 to use this machine alone"
            )
        yield RayPool(workers, tuple(path for path in needs if not is_url(path)), uses_gpus)


@dataclass(frozen=True)
class RayPool:
    """A pool of tasks on the cluster of this process; see `parallel.TaskPool`.

    A task whose worker process or host died is retried elsewhere.

    Attributes:
        workers: number of tasks at the same time.
        needs: paths that every host must have.
        uses_gpus: whether each task has a GPU.
    """

    workers: int
    needs: tuple[str, ...] = ()
    uses_gpus: bool = False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """Yield the result of each task in order; see `parallel.TaskPool`.

        Raises:
            ClusterError: a host does not see a path of `needs`.
            WorkerFailed: the workers of a task died on every attempt, or the cluster was lost.
        """
        remote: Any = ray.remote(do_task).options(num_cpus=1, num_gpus=int(self.uses_gpus), max_retries=RETRIES)
        rest = iter(tasks)
        waiting: deque[Any] = deque()  # in the order of the tasks
        running: list[Any] = []
        is_more = True
        try:
            while True:
                while is_more and len(running) < self.workers and len(waiting) < AHEAD * self.workers:
                    try:
                        task = next(rest)
                    except StopIteration:
                        is_more = False
                    else:
                        running.append(remote.remote(function, task, self.needs))
                        waiting.append(running[-1])
                if not waiting:
                    return
                if waiting[0] in running:
                    _, running = ray.wait(running, num_returns=1)
                else:
                    yield ray.get(waiting.popleft())
        except RayTaskError as error:
            raise error.cause from None  # the error of the task itself
        except RayError as error:
            raise WorkerFailed(
                f"a worker of the Ray cluster died in each of {RETRIES + 1} attempts at a task, or the cluster was "
                f"lost ({last_line(error)}): run it again"
            ) from error
        # Tasks that still run if the caller stops early end with the connection to the cluster. They are not cancelled
        # here, because Ray 2.60 then sometimes kills this process if a task was retried after its worker's death.


def do_task(function: Callable[[Task], Result], task: Task, needs: tuple[str, ...]) -> Result:
    """Run a task in a worker process of any host.

    Raises:
        ClusterError: the host does not see a path that is needed.
    """
    for path in needs:
        if not os.path.exists(path):
            raise ClusterError(
                f"host {socket.gethostname()} of the cluster does not see {path!r}: put it where every host has it "
                "under the same path"
            )
    return function(task)
