"""Connecting to a Ray cluster, or starting one of this machine's own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from dcgan_dist.errors import ClusterError
from dcgan_dist.machine import open_files
from dcgan_dist.parallel import usable_cores

STARTS = 3  # attempts to start a cluster of this machine
CONNECT_S = 4  # for a connection, and again for the first answer
HTTP2_SETTINGS = b"\x04"  # the type of a frame
HTTP2_BEGINNING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
# Of the 107 bytes that a socket's name may have, Ray's own part takes up to 66:
# /session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store
LONGEST_FOLDER = 40
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)  # Ray puts the folder's name into command lines


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
    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    if address:
        _connect()
    else:
        _connect(**_of_this_machine())
    try:
        yield
    finally:
        _disconnect()


def _of_this_machine() -> dict[str, Any]:
    """Return what ray.init is given to use the cluster that `ray start` made here, or to start one where none lives."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")  # Ray's own rule
    note = folder / "ray_current_cluster"  # what `ray start` leaves and `ray stop` removes
    with contextlib.suppress(OSError):
        recorded = note.read_text(encoding="utf-8").strip()
        reason = _why_unusable(recorded)
        if not reason:
            return {"address": recorded}
        print(
            f"the Ray cluster {recorded} that {note} names is dead ({reason}): starting one of this machine's own; "
            "`ray stop` removes that file",
            file=sys.stderr,
        )
    if _is_fit(folder):
        return {"address": "local", "num_cpus": usable_cores()}
    if os.environ.get("RAY_TMPDIR"):
        raise ClusterError(
            f"RAY_TMPDIR is {os.environ['RAY_TMPDIR']!r}, where Ray cannot keep its sockets: name a folder that can be "
            f"written, of at most {LONGEST_FOLDER - len('/ray')} plain characters, or unset it"
        )
    # Ray's dashboard keeps sockets in TMPDIR itself, whatever folder Ray is given.
    os.environ["TMPDIR"] = folder_of_our_own = _folder_of_our_own()
    return {"address": "local", "num_cpus": usable_cores(), "_temp_dir": folder_of_our_own}


def _is_fit(folder: Path) -> bool:
    """Whether Ray can keep the sockets of a cluster there."""
    if len(os.fsencode(folder)) > LONGEST_FOLDER or not _PLAIN.fullmatch(str(folder)):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _folder_of_our_own() -> str:
    """Return a short folder that is this user's alone."""
    folder = Path(f"/tmp/ray-{os.getuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def _connect(**where: Any) -> None:
    """Call ray.init, again where the processes of a new cluster did not start in time."""
    for left in reversed(range(STARTS)):
        before = _children()
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS") or where.get("address", "local").replace("local", "of this machine")
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
    if address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}, of Ray's client, which cannot train: run the command on a host of the "
            "cluster, submit it as a job, or set it to HOST:PORT of the cluster's head"
        )
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}, which is for submitting jobs: ray job submit --working-dir . -- python -m "
            "dcgan_dist.train ...; or set it to HOST:PORT of the cluster's head"
        )
    if address in ("", "auto", "local"):
        return
    reason = _why_unusable(address)
    if reason:
        raise ClusterError(
            f"RAY_ADDRESS is {address!r}, where no Ray cluster answers ({reason}): correct it, or unset it to use a "
            "cluster of this machine"
        )


def _why_unusable(address: str) -> str:
    """Say why no Ray cluster answers at an address, within 10 seconds; empty where one does.

    A cluster's head speaks HTTP/2, whose server begins with a frame of settings: another program that has taken over
    the port, or one that is stopped, does not.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        return "it is not of the form HOST:PORT"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as line:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            line.sendall(HTTP2_BEGINNING)
            reply = line.recv(9)
    except TimeoutError:
        return f"no answer within {CONNECT_S} s"
    except OSError as error:
        return error.strerror or str(error)
    return "" if reply[3:4] == HTTP2_SETTINGS else "another program answers there"


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
