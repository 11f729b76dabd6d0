"""`doctor` on a Ray cluster: every host examines itself, all at the same time."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dcgan_dist.config import Config
from dcgan_dist.launch.connection import connected_cluster, find_cluster, last_line, use_token
from dcgan_dist.launch.event_bus import WithoutRay
from dcgan_dist.machine import Finding, checks_of_machine, examine

START_S = 6  # time for a host to start a process


def examine_hosts(address: str, config: Config, location: str, seconds: float) -> dict[str, list[Finding]]:
    """Let every living host of a cluster examine itself, and return the findings by host.

    Args:
        address: address of the cluster, as in RAY_ADDRESS.
        config: settings of the run that is to be trained there.
        location: folder or URL for its results.
        seconds: time limit for the checks of a host.

    Raises:
        ClusterError: the cluster does not answer.
    """
    if not os.environ.get("RAY_ADDRESS"):  # then the cluster is that of `ray start`
        use_token()
    find_cluster(address)
    os.environ["RAY_ADDRESS"] = address
    with contextlib.redirect_stdout(WithoutRay(sys.stdout)), connected_cluster():
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task: Any = ray.remote(_examine_host).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                asked[task.remote(config, location, seconds, node["Resources"].get("CPU", 0.0))] = name
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds + START_S)
        return {name: _answer(task if task in answered else None) for task, name in asked.items()}


def _examine_host(config: Config, location: str, seconds: float, cpus: float) -> list[Finding]:
    # Ray hides the GPUs from a task that requests none.
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return examine(checks_of_machine(config, location, cpus), seconds)


def _answer(task: Any | None) -> list[Finding]:
    if task is None:
        return [Finding("host", "fail", "does not answer", "look at its load, and at `ray status`")]
    try:
        found: list[Finding] = ray.get(task)
    except RayError as error:
        way_out = "install the same Python and packages on every host"
        return [Finding("host", "fail", f"cannot run this package ({last_line(error)})", way_out)]
    return found
