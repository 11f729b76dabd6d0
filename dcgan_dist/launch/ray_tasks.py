"""Independent tasks over the hosts of a Ray cluster."""

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
from dcgan_dist.launch.locations import is_url
from dcgan_dist.launch.switchboard import WithoutRay
from dcgan_dist.parallel import AHEAD, Result, Task

RETRIES = 3  # of a task whose worker process or host died


@contextlib.contextmanager
def ray_pool(
    workers: int, needs: Sequence[str] = (), device: Literal["auto", "cpu", "cuda"] = "cpu"
) -> Iterator[RayPool]:
    """Give a pool over the cluster that this process is in, or over one of this machine that ends with the block.

    Args:
        workers: how many tasks are done at the same time, with a CPU each.
        needs: absolute paths that every host must have; URLs among them are passed over.
        device: `cuda` for a GPU each as well; `auto` for one each where the cluster has any.

    Raises:
        ClusterError: the cluster cannot be reached, or has fewer CPUs or GPUs.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else ray.init warns about its own future
    with contextlib.redirect_stdout(WithoutRay(sys.stdout)), connected_cluster():
        capacity = Capacity.of_cluster()
        uses_gpus = device == "cuda" or (device == "auto" and capacity.gpus >= 1)
        room = capacity.room(1, uses_gpus)
        if room < workers:
            each = "1 CPU and 1 GPU" if uses_gpus else "1 CPU"
            raise ClusterError(
                f"cluster.workers is {workers}, {each} each, but {capacity}, room for {room}: take fewer workers, or 1 "
                "to use this machine alone"
            )
        yield RayPool(workers, tuple(path for path in needs if not is_url(path)), uses_gpus)


@dataclass(frozen=True)
class RayPool:
    """Tasks of the cluster that this process is connected to; see `parallel.TaskPool`.

    A task whose worker process or host died is done again elsewhere.

    Attributes:
        workers: how many tasks are done at the same time.
        needs: paths that every host must have.
        uses_gpus: whether each task has a GPU.
    """

    workers: int
    needs: tuple[str, ...] = ()
    uses_gpus: bool = False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result]:
        """Yield the result of each task in order; see `parallel.TaskPool`.

        Raises:
            ClusterError: a host does not see what `needs` names.
            WorkerFailed: the workers of a task died again and again, or the cluster was lost.
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
            raise error.cause from None  # what the task itself raised
        except RayError as error:
            raise WorkerFailed(
                f"a worker of the Ray cluster died {RETRIES + 1} times over one task, or the cluster was lost "
                f"({last_line(error)}): run it again"
            ) from error
        # What still runs when this ends early is ended with the connection to the cluster. To cancel it here would make
        # Ray 2.60 end this process now and then, where a task is one that was tried again after its worker's death.


def do_task(function: Callable[[Task], Result], task: Task, needs: tuple[str, ...]) -> Result:
    """Do a task, in a worker process of any host.

    Raises:
        ClusterError: the host does not see what is needed.
    """
    for path in needs:
        if not os.path.exists(path):
            raise ClusterError(
                f"host {socket.gethostname()} of the cluster does not see {path!r}: put it where every host has it "
                "under the same path"
            )
    return function(task)
