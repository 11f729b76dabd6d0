"""What a Ray cluster has, what a run wants of it, and whether that fits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import ray

from dcgan_dist.config import ClusterConfig, Config
from dcgan_dist.errors import ClusterError

RELEASE_PATIENCE_S = 10  # the CPUs of a run that has just ended are not free at once


@dataclass(frozen=True)
class Capacity:
    """The living hosts of a cluster: address, CPUs and GPUs of each."""

    nodes: tuple[tuple[str, float, float], ...]

    @classmethod
    def of_cluster(cls) -> Capacity:
        """Ask the cluster that this process is connected to."""
        living = [node for node in ray.nodes() if node["Alive"]]
        return cls(
            tuple(
                (node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in living
            )
        )

    @property
    def hosts(self) -> int:
        """How many hosts there are."""
        return len(self.nodes)

    @property
    def addresses(self) -> set[str]:
        """The hosts' addresses."""
        return {address for address, _, _ in self.nodes}

    @property
    def gpus(self) -> float:
        """GPUs of all hosts together."""
        return sum(gpus for _, _, gpus in self.nodes)

    def __str__(self) -> str:
        cpus = sum(cpus for _, cpus, _ in self.nodes)
        return f"the cluster has {_count(cpus, 'CPU')} and {_count(self.gpus, 'GPU')} on {_count(self.hosts, 'host')}"

    def room(self, cpus_per_worker: float, uses_gpus: bool) -> int:
        """How many workers fit; one cannot straddle two hosts."""
        per_host = [
            min(math.floor(cpus / cpus_per_worker + 1e-9), math.floor(gpus) if uses_gpus else 1 << 30)
            for _, cpus, gpus in self.nodes
        ]
        return sum(per_host)

    def check(self, config: Config) -> bool:
        """Return whether the workers take a GPU each; where there is no room for them, say so and wait, or refuse.

        Raises:
            ClusterError: too few CPUs or GPUs, in all or free ones, and `cluster.wait` is off.
        """
        wanted, device = config.cluster, config.training.device
        uses_gpus = self.gpus >= 1 and device != "cpu"
        if device == "cuda" and not uses_gpus and not wanted.wait:
            raise ClusterError(f"training.device is 'cuda', but {self}: take cpu, or --cluster.wait true")
        uses_gpus = uses_gpus or device == "cuda"
        room = self.room(wanted.cpus_per_worker, uses_gpus)
        if room < wanted.workers:
            shortage = f"{self}, room for {room}"
        elif not _are_free(resources_per_worker(wanted, uses_gpus), wanted.workers):
            shortage = f"{self}, and others are using them"
        else:
            return uses_gpus
        if not wanted.wait:
            raise ClusterError(
                f"cluster.workers is {wanted.workers}, {_each(wanted, uses_gpus)} each, but {shortage}: take fewer "
                "workers, change --cluster.cpus_per_worker or --training.device, or wait with --cluster.wait true"
            )
        print(f"waiting for {self.wanted(wanted)}: {shortage}", flush=True)
        return uses_gpus

    @staticmethod
    def wanted(cluster: ClusterConfig) -> str:
        """Say what a run asks for."""
        return f"{cluster.workers} workers"


def resources_per_worker(cluster: ClusterConfig, uses_gpus: bool) -> dict[str, float]:
    """Return what Ray sets aside for each worker, by Ray's names."""
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if uses_gpus else {})


def _are_free(each: dict[str, float], workers: int) -> bool:
    deadline = time.monotonic() + RELEASE_PATIENCE_S
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) + 1e-9 >= amount * workers for name, amount in each.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def _each(cluster: ClusterConfig, uses_gpus: bool) -> str:
    return _count(cluster.cpus_per_worker, "CPU") + (" and a GPU" if uses_gpus else "")


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}" + ("" if number == 1 else "s")
