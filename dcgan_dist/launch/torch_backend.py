"""How the workers of a Ray Train group meet: PyTorch's process group, over the interface that carries the host's IP.

Left alone, gloo and NCCL look the host's own name up, which often leads to 127.0.0.1, and no other host can connect.
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

# A lost worker is noticed by Ray's health check within seconds and the group replaced, so this bounds only how long
# workers may wait for one of them that is alive but busy, such as the leader writing to slow storage.
COLLECTIVE_TIMEOUT_S = 600


def interface_of(address: str) -> str | None:
    """Return the name of the network interface whose IPv4 address this is, None where there is none."""
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
    """Tell gloo and NCCL which interface carries this host's address, unless the user has."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)


class _NamedInterfaceBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's PyTorch backend, with the interface named before the process group is made."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Do nothing: workers that ended left the group themselves, and a hung one would hold up the restart."""


@dataclass
class NamedInterfaceConfig(TorchConfig):
    """`TorchConfig` for hosts that have several interfaces, or whose name does not lead to their address."""

    timeout_s: int = COLLECTIVE_TIMEOUT_S

    @property
    def backend_cls(self) -> type:
        """The class that sets the process group up."""
        return _NamedInterfaceBackend
