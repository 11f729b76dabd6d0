"""What frees the CPUs and GPUs of a run whose driver was killed, in a cluster that lives on.

Ray keeps the place of workers (their placement group) until the whole job has ended. Ray Train's own remedy, a process
of its own for each run, never ends where the run was cut short, and holds memory for as long as the cluster lives.
"""

from __future__ import annotations

import asyncio
import contextlib

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from dcgan_dist.launch.switchboard import Handle

HEAD = {"node:__internal_head__": 0.001}  # the one host that lives as long as the cluster
LATE_S = 5  # for news of a place that was found while the driver was being killed


class Guard:
    """The actor. It outlives the run's driver, and ends soon after it."""

    def __init__(self) -> None:
        self._group: PlacementGroup | None = None

    async def hold(self, group: PlacementGroup) -> None:
        """Take note of the place of the present workers."""
        self._group = group

    async def watch(self, board: Handle) -> None:
        """Wait for the end of a run's switchboard, which is that of its driver; free what the workers held, and end."""
        with contextlib.suppress(RayError):  # that is what is waited for
            await board.ended.remote()
        if self._group is None:
            await asyncio.sleep(LATE_S)
        if self._group is not None:
            remove_placement_group(self._group)  # nothing happens where it is gone
        ray.actor.exit_actor()


def start_guard(board: Handle) -> Handle:
    """Start a guard of the run that has this switchboard; return its handle."""
    outside = {"scheduling_strategy": "DEFAULT"}  # not in the place of an actor that starts a run
    guard: Handle = ray.remote(Guard).options(num_cpus=0, lifetime="detached", resources=HEAD, **outside).remote()
    guard.watch.remote(board)
    return guard
