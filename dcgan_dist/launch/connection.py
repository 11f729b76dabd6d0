"""Connecting to a Ray cluster, or starting one of this machine's own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.exceptions import RayError

from dcgan_dist.errors import ClusterError
from dcgan_dist.machine import open_files

STARTS = 3  # attempts to start a cluster of this machine


@contextlib.contextmanager
def connected_cluster() -> Iterator[None]:
    """Connect to a cluster, or start one for this machine that ends with the block.

    Inside a Ray job, or where RAY_ADDRESS or `ray start` names a cluster, that one is used.

    Raises:
        ClusterError: it cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    _check_limits()
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    _connect()
    try:
        yield
    finally:
        _disconnect()


def _connect() -> None:
    """Call ray.init, again where the processes of a new cluster did not start in time."""
    for left in reversed(range(STARTS)):
        before = _children()
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (RayError, ConnectionError, RuntimeError) as error:
            address = os.environ.get("RAY_ADDRESS", "of this machine")
            raise ClusterError(
                f"cannot use the Ray cluster {address}: {last_line(error)}; one with token authentication takes "
                "RAY_AUTH_MODE=token and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from error
        except Exception as error:
            # A bare Exception is what Ray raises where its processes took longer than the 30 s that it gives them.
            if "timed out during startup" not in str(error):
                raise
            for process in _children() - before:  # Ray forgets those that it has started until then
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            if not left:
                raise ClusterError(
                    f"a Ray cluster of this machine did not start in {STARTS} attempts of 30 s: the machine is too "
                    "busy, so try again when it is less so"
                ) from error
        else:
            return


def _children() -> set[int]:
    """Return the ids of the processes that this one has started; none where the system does not tell."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found |= {int(word) for word in path.read_text(encoding="ascii").split()}
    return found


def _disconnect() -> None:
    # Ray prints here what it has held back of its news of lost processes.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ray.shutdown()


def _check_address(address: str) -> None:
    """Look whether RAY_ADDRESS, where it is set, leads to a cluster; Ray itself would try for minutes.

    Raises:
        ClusterError: it does not.
    """
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}, which is for submitting jobs: ray job submit --working-dir . -- python -m "
            "dcgan_dist.train ...; or set it to HOST:PORT of the cluster's head"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise ClusterError(
                f"RAY_ADDRESS is {address!r}, where no Ray cluster answers ({error.strerror or error}): correct it, or "
                "unset it to use a cluster of this machine"
            ) from error


def _check_limits() -> None:
    """Look whether Ray may open as many files as it needs; without them it would wait for minutes.

    Raises:
        ClusterError: it may not.
    """
    finding = open_files()
    if finding.status == "fail":
        raise ClusterError(f"{finding.found}: {finding.way_out}")


def last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray's, whose texts can run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
