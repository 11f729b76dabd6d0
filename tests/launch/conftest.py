"""A private Ray cluster on this machine, with a token, on its own ports and in its own folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class RayCluster:
    """The address of the cluster, its first process, and the environment of its hosts and clients."""

    address: str
    dashboard: str
    process: int
    environment: dict[str, str]

    def workers(self) -> list[int]:
        """Return the process ids of its Ray Train workers."""
        return [pid for pid in descendants(self.process) if b"RayTrainWorker" in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def descendants(process: int) -> list[int]:
    """Return the process ids of all descendants of a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def wait_for_task(cluster: RayCluster) -> int:
    """Return the process id of a worker that runs a task."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in descendants(cluster.process):
            if b"ray::do_task" in command_line(pid):
                return pid
        time.sleep(0.01)
    raise AssertionError("no worker has begun a task")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster with two CPUs; its clients are separate processes, because a process keeps one token forever."""
    port, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="dr-", dir="/tmp")  # the names of its sockets must be short
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    words = [RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port)]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "2"]
    words += ["--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client)]
    words += ["--temp-dir", folder, "--object-store-memory", "200000000", "--disable-usage-stats"]
    process = subprocess.Popen(
        words, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for wanted in (port, dashboard):
            wait_for_port(wanted, process)
        yield RayCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", process.pid, own)
    finally:
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180  # a busy machine takes minutes
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Ray does not listen on port {port}: {process.poll()}")
