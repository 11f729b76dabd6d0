"""What a Ray cluster has, what a run wants of it, and whether that fits."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml
from ray._private.state import state

from dcgan_dist.config import ClusterConfig, Config
from dcgan_dist.errors import ClusterError
from dcgan_dist.printing import tell

RELEASE_PATIENCE_S = 10  # the CPUs of a run that has just ended are not free at once


@dataclass(frozen=True)
class Capacity:
    """The living hosts of a cluster: address, CPUs and GPUs of each; and the GPUs that it may grow to, where known."""

    nodes: tuple[tuple[str, float, float], ...]
    most_gpus: float = 0.0

    @classmethod
    def of_cluster(cls) -> Capacity:
        """Ask the cluster that this process is connected to."""
        living = [node for node in ray.nodes() if node["Alive"]]
        return cls(
            tuple(
                (node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in living
            ),
            _most_gpus(),
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

    def room(self, cpus_per_worker: float, gpus_per_worker: float) -> int:
        """How many workers fit; one cannot straddle two hosts, and a fraction of a GPU not two GPUs."""
        per_host = [
            min(math.floor(cpus / cpus_per_worker + 1e-9), _shares(gpus, gpus_per_worker))
            for _, cpus, gpus in self.nodes
        ]
        return sum(per_host)

    def check(self, config: Config, gpus_per_worker: float | None = None, *, quiet: bool = False) -> float:
        """Return how many GPUs each worker takes; where there is no room for them, say so and wait, or refuse.

        Args:
            config: `cluster` of it says how many workers there are and what each takes.
            gpus_per_worker: what each takes of GPUs. Left out, one where the cluster has any, or may grow by some while
                this waits, and they may be used.
            quiet: whether to wait without saying so.

        Raises:
            ClusterError: too few CPUs or GPUs, in all or free ones, and `cluster.wait` is off.
        """
        wanted, device = config.cluster, config.training.device
        if gpus_per_worker is None:
            gpus = max(self.gpus, self.most_gpus) if wanted.wait else self.gpus
            gpus_per_worker = float(device == "cuda" or (gpus >= 1 and device != "cpu"))
            if device == "cuda" and self.gpus < 1 and not wanted.wait:
                raise ClusterError(f"training.device is 'cuda', but {self}: take cpu, or --cluster.wait true")
            if device == "auto" and gpus < 1 and wanted.wait and not quiet:
                tell("no host of the cluster has a GPU now: training on CPUs; --training.device cuda waits for GPUs")
        room = self.room(wanted.cpus_per_worker, gpus_per_worker)
        if room < wanted.workers:
            shortage = f"{self}, room for {room}"
        elif not _are_free(resources_per_worker(wanted, gpus_per_worker), wanted.workers):
            shortage = f"{self}, and others are using them"
        else:
            return gpus_per_worker
        if not wanted.wait:
            raise ClusterError(
                f"cluster.workers is {wanted.workers}, {_each(wanted, gpus_per_worker)} each, but {shortage}: take "
                "fewer workers, change --cluster.cpus_per_worker or --training.device, or wait with --cluster.wait true"
            )
        if not quiet:
            tell(f"waiting for {self.wanted(wanted)}: {shortage}")
        return gpus_per_worker

    @staticmethod
    def wanted(cluster: ClusterConfig) -> str:
        """Say what a run asks for."""
        return f"{cluster.workers} workers"


def resources_per_worker(cluster: ClusterConfig, gpus: float) -> dict[str, float]:
    """Return what Ray sets aside for each worker, by Ray's names."""
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def _most_gpus() -> float:
    """Return how many GPUs the cluster may grow to, as its configuration says."""
    reported = state.get_max_resources_from_cluster_config()
    if reported is not None:
        return float(reported.get("GPU", 0))
    # By `ray up`, on the head, where the driver of a job runs.
    left = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))
    types = yaml.safe_load(left.read_bytes())["available_node_types"] if left.exists() else {}
    return float(sum(each["resources"].get("GPU", 0) * each.get("max_workers", 0) for each in types.values()))


def _shares(gpus: float, each: float) -> int:
    """How many workers a host's GPUs are enough for."""
    if not each:
        return 1 << 30
    return math.floor(gpus) * math.floor(1 / each + 1e-9) if each < 1 else math.floor(gpus / each + 1e-9)


def _are_free(each: dict[str, float], workers: int) -> bool:
    deadline = time.monotonic() + RELEASE_PATIENCE_S
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) + 1e-9 >= amount * workers for name, amount in each.items()):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def _each(cluster: ClusterConfig, gpus: float) -> str:
    return _count(cluster.cpus_per_worker, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}" + ("" if number == 1 else "s")
