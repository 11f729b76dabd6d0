"""The process group of a Ray Train worker group, on the network interface that has the host's address in the cluster.

By default, gloo and NCCL resolve the host's own name, which often gives 127.0.0.1, and then no other host can connect.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray.util
from ray.train.torch import TorchConfig

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

# Ray's health check detects a lost worker within seconds and replaces the group. So this only limits how long workers
# wait for one that is alive but busy, such as the leader while it writes to slow storage.
COLLECTIVE_TIMEOUT_S = 600


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an IPv4 address, None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def name_interface() -> None:
    """Set the interface of gloo and NCCL to the one with this host's address, unless the user has set it."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)


class _NamedInterfaceBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's PyTorch backend; the interface is set before the process group is created."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Do nothing: workers leave the group themselves when they end, and a hung one would delay the restart."""


@dataclass
class NamedInterfaceConfig(TorchConfig):
    """`TorchConfig` for hosts that have several interfaces, or whose name does not resolve to their address."""

    timeout_s: int = COLLECTIVE_TIMEOUT_S

    @property
    def backend_cls(self) -> type:
        """The class that sets up the process group."""
        return _NamedInterfaceBackend
