"""The resources of a Ray cluster, and whether they are enough for a run."""

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

RELEASE_PATIENCE_S = 10  # the CPUs of a run that has just ended become free with a delay


@dataclass(frozen=True)
class Capacity:
    """The resources of a cluster.

    Attributes:
        nodes: address, CPUs and GPUs of each living host.
        most_gpus: GPUs that the cluster can have after it has grown, as far as known.
    """

    nodes: tuple[tuple[str, float, float], ...]
    most_gpus: float = 0.0

    @classmethod
    def of_cluster(cls) -> Capacity:
        """Return the resources of the cluster to which this process is connected."""
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
        """Number of hosts."""
        return len(self.nodes)

    @property
    def addresses(self) -> set[str]:
        """Addresses of the hosts."""
        return {address for address, _, _ in self.nodes}

    @property
    def gpus(self) -> float:
        """GPUs of all hosts together."""
        return sum(gpus for _, _, gpus in self.nodes)

    def __str__(self) -> str:
        cpus = sum(cpus for _, cpus, _ in self.nodes)
        return f"the cluster has {_count(cpus, 'CPU')} and {_count(self.gpus, 'GPU')} on {_count(self.hosts, 'host')}"

    def slots(self, cpus_per_worker: float, gpus_per_worker: float) -> int:
        """Return the number of workers that fit; a worker needs one host, and a fraction of a GPU needs one GPU."""
        per_host = [
            min(math.floor(cpus / cpus_per_worker + 1e-9), _shares(gpus, gpus_per_worker))
            for _, cpus, gpus in self.nodes
        ]
        return sum(per_host)

    def check(self, config: Config, gpus_per_worker: float | None = None, *, quiet: bool = False) -> float:
        """Return the GPUs of each worker, after checking that the workers fit.

        If they do not fit, print a line and return with `cluster.wait` (Ray then waits for the resources), otherwise
        refuse.

        Args:
            config: the settings; `cluster` has the number of workers and their resources.
            gpus_per_worker: GPUs of each worker. If None, one if GPUs may be used and the cluster has any, or may get
                some while it waits.
            quiet: whether to print nothing.

        Raises:
            ClusterError: there are too few CPUs or GPUs, in all or free ones, and `cluster.wait` is off.
        """
        wanted, device = config.cluster, config.training.device
        if gpus_per_worker is None:
            gpus = max(self.gpus, self.most_gpus) if wanted.wait else self.gpus
            gpus_per_worker = float(device == "cuda" or (gpus >= 1 and device != "cpu"))
            if device == "cuda" and self.gpus < 1 and not wanted.wait:
                raise ClusterError(f"training.device is 'cuda', but {self}: take cpu, or --cluster.wait true")
            if device == "auto" and gpus < 1 and wanted.wait and not quiet:
                tell("no host of the cluster has a GPU now: training on CPUs; --training.device cuda waits for GPUs")
        slots = self.slots(wanted.cpus_per_worker, gpus_per_worker)
        if slots < wanted.workers:
            shortage = f"{self}, room for {slots}"
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
        """Return the request of a run as text."""
        return f"{cluster.workers} workers"


def resources_per_worker(cluster: ClusterConfig, gpus: float) -> dict[str, float]:
    """Return the resources of each worker, by Ray's names."""
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def _most_gpus() -> float:
    """Return the GPUs that the cluster can have after it has grown, by its configuration."""
    reported = state.get_max_resources_from_cluster_config()
    if reported is not None:
        return float(reported.get("GPU", 0))
    # `ray up` writes this file on the head, where the driver of a job runs.
    bootstrap = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))
    types = yaml.safe_load(bootstrap.read_bytes())["available_node_types"] if bootstrap.exists() else {}
    return float(sum(each["resources"].get("GPU", 0) * each.get("max_workers", 0) for each in types.values()))


def _shares(gpus: float, each: float) -> int:
    """Return the number of workers for which a host's GPUs are enough."""
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
