"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import services, utils
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.gcs_utils import create_gcs_channel
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.gcs_service_pb2 import CheckAliveReply  # type: ignore[attr-defined]  # made at import
from ray.exceptions import RayError

from dcgan_dist.errors import ClusterError
from dcgan_dist.machine import open_files
from dcgan_dist.parallel import usable_cores
from dcgan_dist.printing import tell

STARTS = 3  # attempts to start a cluster on this machine
ANSWER_S = 8  # time for the answer of a cluster's head, with the connection
# The name of a socket may have 107 bytes, of which Ray's own part takes up to 66:
# /session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store
LONGEST_FOLDER = 40
FREE_BYTES = 50_000_000  # needed for the logs of a cluster
_HOST_AND_PORT = re.compile(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)  # Ray inserts the folder's name into command lines without quotes


@contextlib.contextmanager
def connected_cluster() -> Iterator[None]:
    """Connect to a cluster; if there is none, start one on this machine, and end it with the block.

    Inside a Ray job, its cluster is used; otherwise the cluster that RAY_ADDRESS or `ray start` names.

    Raises:
        ClusterError: the cluster cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    _check_limits()
    _connect(_of_this_machine() if find_cluster(os.environ.get("RAY_ADDRESS", "")) is None else {})
    try:
        yield
    finally:
        _disconnect()


def find_cluster(asked: str) -> str | None:
    """Return the address of the cluster to which ray.init would connect; None if it has to start one.

    Args:
        asked: address as in RAY_ADDRESS; empty for the cluster of `ray start`, if there is one.

    Raises:
        ClusterError: the address is that of a cluster that cannot be used.
    """
    if asked.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS is {asked!r}, for Ray's client, which cannot train: run the command on a host of the "
            "cluster, submit it as a job, or set it to HOST:PORT of the cluster's head"
        )
    if "://" in asked:
        raise ClusterError(
            f"RAY_ADDRESS is {asked!r}, which is for submitting jobs: ray job submit --working-dir . -- python -m "
            "dcgan_dist.train ...; or set it to HOST:PORT of the cluster's head"
        )
    if asked in ("", "auto"):
        use_token()
    elif asked != "local" and not _HOST_AND_PORT.fullmatch(asked):
        raise ClusterError(f"RAY_ADDRESS is {asked!r}, which is not of the form HOST:PORT: correct it, or unset it")
    address = None
    try:
        address = canonicalize_bootstrap_address(asked or None)  # type: ignore[arg-type]  # None is allowed
        reason = "" if address is None else _why_unusable(address)
    except (OSError, ValueError) as error:  # no cluster for "auto", or the file of `ray start` cannot be read
        reason = str(error)
    if not reason:
        return address
    if asked:
        raise ClusterError(
            f"RAY_ADDRESS is {asked!r}, where no Ray cluster can be used ({reason}): correct it, or unset it to use a "
            "cluster of this machine"
        )
    tell(
        f"the Ray cluster {address or 'of `ray start`'} that {_folder() / 'ray_current_cluster'} names cannot be used "
        f"({reason}): starting one for this run; `ray stop` removes that file",
        to_stderr=True,
    )
    return None


def use_token() -> None:
    """Use the user's token if there is one, as ray.init does for a cluster that it finds by itself."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # the level that ray.init will set
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _why_unusable(address: str) -> str:
    """Return why no cluster can be used at an address, within 10 seconds; "" if one can.

    Ray itself would try for minutes, and its C++ library would print a warning each second.
    """
    with create_gcs_channel(address) as channel:
        ask = channel.unary_unary(
            "/ray.rpc.NodeInfoGcsService/CheckAlive", response_deserializer=CheckAliveReply.FromString
        )
        try:
            version = ask(b"", timeout=ANSWER_S).ray_version
        except grpc.RpcError as error:
            details = str(error.details())
            match error.code():
                case grpc.StatusCode.UNAUTHENTICATED:
                    return (
                        "it needs its token: set RAY_AUTH_MODE=token, and put the token into ~/.ray/auth_token or "
                        "RAY_AUTH_TOKEN"
                    )
                case grpc.StatusCode.DEADLINE_EXCEEDED:
                    return f"no answer within {ANSWER_S} s"
                case grpc.StatusCode.UNAVAILABLE if "HTTP/2" not in details:
                    return details.rpartition(": ")[2].strip("]")  # such as: Connection refused
                case _:
                    return "another program answers there"
    return "" if version == ray.__version__ else f"it runs Ray {version}, but this is {ray.__version__}"


def _of_this_machine() -> dict[str, Any]:
    """Return the arguments of ray.init to start a cluster here, in a folder that can hold its sockets and logs.

    Raises:
        ClusterError: RAY_TMPDIR names an unsuitable folder.
    """
    arguments: dict[str, Any] = {"address": "local", "num_cpus": usable_cores()}
    if _is_suitable(_folder()):
        return arguments
    if os.environ.get("RAY_TMPDIR"):
        raise ClusterError(
            f"RAY_TMPDIR is {os.environ['RAY_TMPDIR']!r}, where Ray cannot keep its sockets and logs: name a folder "
            f"that can be written, of at most {LONGEST_FOLDER - len('/ray')} plain characters, with "
            f"{FREE_BYTES // 1_000_000} MB left on its disk, or unset it"
        )
    # TMPDIR has to change too: Ray's dashboard keeps sockets there, whatever folder Ray is given.
    os.environ["TMPDIR"] = folder = _private_folder()
    return {**arguments, "_temp_dir": folder}


def _folder() -> Path:
    """Return the folder that Ray uses by default."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _is_suitable(folder: Path) -> bool:
    """Return whether Ray can keep the sockets and logs of a cluster in a folder."""
    if len(os.fsencode(folder)) > LONGEST_FOLDER or not _PLAIN.fullmatch(str(folder)):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError:
        return False
    return free >= FREE_BYTES and os.access(folder, os.W_OK | os.X_OK)


def _private_folder() -> str:
    """Return a folder with a short name that only this user can write."""
    folder = Path(f"/tmp/ray-{os.getuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def _connect(arguments: dict[str, Any]) -> None:
    """Call ray.init, again if the processes of a new cluster did not start in time."""
    for left in reversed(range(STARTS)):
        before = _children()
        try:
            with _keeping_signal_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
        except (RayError, OSError) as error:
            raise _cannot_use(last_line(error)) from error
        except (RuntimeError, ValueError) as error:  # such as another version of Python; the text has several lines
            raise _cannot_use(" ".join(str(error).split())[:300]) from error
        except Exception as error:
            # Ray raises a bare Exception if its processes take longer than 30 s to start.
            if "timed out during startup" not in str(error):
                raise
            for process in _children() - before:  # Ray does not end the processes that it has already started
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            if not left:
                raise ClusterError(
                    f"a Ray cluster of this machine did not start in {STARTS} attempts of 30 s: the machine is too "
                    "busy, so try again when it is less so"
                ) from error
        else:
            return


def _cannot_use(reason: str) -> ClusterError:
    return ClusterError(f"cannot use the Ray cluster {os.environ.get('RAY_ADDRESS') or 'of this machine'}: {reason}")


@contextlib.contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Keep Ray from handling SIGTERM, and start its processes in another process group.

    Terminals and `timeout` send signals to a whole group; the cluster must survive these, for a last checkpoint.
    """
    raylets: Any = services
    in_main_thread = threading.current_thread() is threading.main_thread()
    set_handler, start = utils.set_sigterm_handler, services.ConsolePopen
    utils.set_sigterm_handler = lambda _handler: None
    raylets.ConsolePopen = partial(start, process_group=0)
    try:
        yield
    finally:
        utils.set_sigterm_handler, raylets.ConsolePopen = set_handler, start
        if in_main_thread:  # Ray's C++ library has installed its own handler, which prints a trace, before Python's
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _children() -> set[int]:
    """Return the ids of the child processes; empty if the system does not list them."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            found |= {int(word) for word in path.read_text(encoding="ascii").split()}
    return found


def _disconnect() -> None:
    # At shutdown Ray prints held-back messages about lost processes, and its C++ library about unfinished tasks.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _without_stderr():
        ray.shutdown()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what is written to the file descriptor of standard error in the block, also by C++ code."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _check_limits() -> None:
    """Check that Ray may open as many files as it needs; otherwise it would wait for minutes.

    Raises:
        ClusterError: the limit is too low.
    """
    finding = open_files()
    if finding.status == "fail":
        raise ClusterError(f"{finding.found}: {finding.way_out}")


def last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray, whose text can have pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
