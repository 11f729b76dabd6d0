"""The watchdog, an actor that frees the CPUs and GPUs of a run whose driver was killed while its cluster keeps running.

Ray keeps the placement group of the workers until the whole job has ended. Ray Train's own solution, a process for each
run, never ends if the run is killed, and holds memory as long as the cluster runs.
"""

from __future__ import annotations

import asyncio
import contextlib

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from dcgan_dist.launch.event_bus import Handle

HEAD = {"node:__internal_head__": 0.001}  # the head is the only host that runs as long as the cluster
LATE_S = 5  # time for a placement group that was reported while the driver was being killed


class Watchdog:
    """The actor. It outlives the driver of the run, and ends soon after it."""

    def __init__(self) -> None:
        self._group: PlacementGroup | None = None

    async def set_group(self, group: PlacementGroup) -> None:
        """Remember the placement group of the present workers."""
        self._group = group

    async def watch(self, bus: Handle) -> None:
        """Wait for the end of the run's event bus, which ends with its driver; then free the group, and exit."""
        with contextlib.suppress(RayError):  # the error is the awaited end
            await bus.ended.remote()
        if self._group is None:
            await asyncio.sleep(LATE_S)
        if self._group is not None:
            remove_placement_group(self._group)  # does nothing if it was already removed
        ray.actor.exit_actor()


def start_watchdog(bus: Handle) -> Handle:
    """Start the watchdog of the run that has this event bus, and return its handle."""
    outside = {"scheduling_strategy": "DEFAULT"}  # not in the placement group of an actor that starts a run
    watchdog: Handle = ray.remote(Watchdog).options(num_cpus=0, lifetime="detached", resources=HEAD, **outside).remote()
    watchdog.watch.remote(bus)
    return watchdog
