"""The network interface of the workers."""

from __future__ import annotations

from dcgan_dist.launch.torch_backend import interface_of


def test_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None  # an address that is reserved for documentation
