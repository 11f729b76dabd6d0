"""The lease: the right of one process to write a run directory, recorded with the run's status in status.json.

::

    take ─> is the writer in status.json alive?
              on its machine: ask the process table; elsewhere: compare the age of its heartbeat with STALE_SECONDS
              alive ─> refuse;  dead, or of this launch ─> replace it, atomically
    hold ─> a heartbeat every few seconds; `confirm` before each checkpoint
    release ─> locked: false

There is one writer at a time; status.json names its process and has its heartbeat. A writer that was wrongly considered
dead finds the name of the new writer in status.json, and stops writing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from dcgan_dist.errors import DcganDistError, RunDirectoryError, StorageError
from dcgan_dist.printing import tell
from dcgan_dist.runs.documents import Status, StatusRecord
from dcgan_dist.runs.names import STATUS_NAME
from dcgan_dist.storage.files import parse_json_object, to_json
from dcgan_dist.storage.folder import Folder, folder_at

HEARTBEAT_SECONDS = 5.0
"""Seconds between two heartbeats on a local or shared disk."""
REMOTE_HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats on object storage."""
STALE_SECONDS = 30.0
"""Age of the last heartbeat from which a writer on another machine is considered dead."""
SETTLE_SECONDS = 0.5
"""Seconds that a new writer on object storage, which has no locks, waits for another that came at the same time."""
_END_OF_TIME = 1e11  # in Unix time; a later heartbeat is damaged

_UNKNOWN_START = "unknown"


def process_start(pid: int) -> str | None:
    """Return the start time of a process in ticks since boot, which with the pid identifies it; None if dead.

    A zombie counts as dead. If the start time cannot be read (no /proc), `unknown` is returned for a living process.
    """
    try:
        # The second field is the program's name in parentheses, which may itself contain blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return _UNKNOWN_START
        return _UNKNOWN_START
    return None if fields[0] in "ZX" else fields[19]


def this_machine() -> str:
    """Return an identifier of this boot and pid namespace; processes see each other's pids only if theirs are equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_is_gone(status: StatusRecord) -> bool | None:
    """Return whether the process in status.json has ended; None if that cannot be seen from this machine."""
    if status.get("machine") != this_machine():
        return None
    start, recorded = process_start(int(status["pid"])), status.get("process_start")
    return start is None or (start != recorded and _UNKNOWN_START not in (start, recorded))


def is_alive(status: StatusRecord) -> bool:
    """Return whether the writer in status.json still holds the lease."""
    if not status.get("locked"):
        return False
    gone = process_is_gone(status)
    if gone is not None:
        return not gone
    return time.time() - float(status["heartbeat"]) < STALE_SECONDS


def parse_status(content: bytes | None) -> StatusRecord | None:
    """Return status.json as a dictionary; None if it does not exist or is damaged."""
    status = parse_json_object(content) or {}
    pid, heartbeat = status.get("pid"), status.get("heartbeat")
    if not isinstance(pid, int) or not 0 < pid < 2**31 or not isinstance(heartbeat, int | float):
        return None
    return cast(StatusRecord, status) if 0 <= heartbeat < _END_OF_TIME else None  # also refuses NaN


def read_status(folder: Folder) -> StatusRecord | None:
    """Return the status of a run, None if there is none; takes no lock.

    Raises:
        StorageError: it cannot be read.
    """
    return parse_status(folder.get(STATUS_NAME))


class Lease:
    """The right to write a run directory, held from `take` to `release`."""

    def __init__(self, folder: Folder, session: str, scratch: str = "") -> None:
        """Prepare a lease on `folder` for the launch `session`; `scratch` names the writer's local folder, if any."""
        self._folder = folder
        self._mutex = threading.RLock()
        self._session = session
        self._previous: StatusRecord | None = None
        self._changed = False
        self._record: dict[str, Any] = {
            "status": "running",
            "reason": "",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "machine": this_machine(),
            "session": session,
            "scratch": scratch,
            "writer": uuid.uuid4().hex,
            "locked": True,
            "heartbeat": time.time(),
        }
        self.reserved = frozenset(self._record)

    @property
    def heartbeat_seconds(self) -> float:
        """Seconds between two heartbeats."""
        return REMOTE_HEARTBEAT_SECONDS if self._folder.path is None else HEARTBEAT_SECONDS

    def take(self) -> StatusRecord | None:
        """Become the writer; return status.json as it was before.

        Raises:
            RunDirectoryError: another process is the writer.
            StorageError: status.json cannot be read or written.
        """
        silent = self._look_twice()

        def look(content: bytes | None) -> None:
            self._previous = parse_status(content)
            if self._previous is not None and self._previous["heartbeat"] != silent:
                self._refuse_if_held(self._previous)

        self._write(look)
        if self._folder.path is None:
            # Storage without conditional writes lets two processes both write: the later one is the writer.
            time.sleep(SETTLE_SECONDS)
            self.confirm()
        return self._previous

    def _look_twice(self) -> float | None:
        """If a writer on another machine seems dead, wait for a heartbeat: its clock, or this one, may have jumped.

        Returns:
            The last heartbeat of the dead writer; None if there was nothing to wait for.

        Raises:
            RunDirectoryError: another heartbeat came.
        """
        first = parse_status(self._folder.get(STATUS_NAME))
        if first is None or not first.get("locked") or self._is_of_this_launch(first):
            return None
        if process_is_gone(first) is not None or abs(time.time() - first["heartbeat"]) < STALE_SECONDS:
            return None  # the process table decides, or the heartbeat is recent
        seconds = 2 * self.heartbeat_seconds
        tell(
            f"{self._folder.location}: process {first['pid']} on host {first.get('host')} seems to be dead; waiting "
            f"{seconds:g} s for a heartbeat",
        )
        time.sleep(seconds)
        second = parse_status(self._folder.get(STATUS_NAME))
        if second is not None and second.get("locked") and second["heartbeat"] != first["heartbeat"]:
            self._refuse(second)
        return float(first["heartbeat"])

    def _is_of_this_launch(self, status: StatusRecord) -> bool:
        return bool(self._session) and status.get("session") == self._session

    def _refuse_if_held(self, status: StatusRecord) -> None:
        if is_alive(status) and not self._is_of_this_launch(status):
            self._refuse(status)

    def _refuse(self, status: StatusRecord) -> NoReturn:
        age = max(0.0, time.time() - float(status["heartbeat"]))
        elsewhere = status.get("machine") != this_machine()
        wait = f", or wait {STALE_SECONDS:.0f} s if that process is dead" if elsewhere else ""
        raise RunDirectoryError(
            f"{self._folder.location} is in use by process {status['pid']} on host {status.get('host')} (heartbeat"
            f" {age:.0f} s ago): stop it or take another run directory{wait}"
        )

    def _write(self, look: Callable[[bytes | None], None], durable: bool = True) -> None:
        """Write status.json, unless `look`, called with its content, raises."""

        def change(content: bytes | None) -> bytes:
            look(content)
            self._record["heartbeat"] = time.time()
            return (to_json(self._record) + "\n").encode()

        self._folder.update(STATUS_NAME, change, durable=durable, overwrites=True)

    def _confirm(self, content: bytes | None) -> None:
        if content is None:
            raise RunDirectoryError(f"{self._folder.location} was removed while this process was writing there")
        status = parse_status(content)
        # A damaged status.json names no other writer, and the next write repairs it.
        if status is not None and status.get("writer") != self._record["writer"]:
            raise RunDirectoryError(
                f"{self._folder.location} is in use by process {status['pid']} on host {status.get('host')}, which took"
                " it over from this process: let that one continue, or stop it and start again"
            )

    def confirm(self) -> None:
        """Check that this process is still the writer.

        Raises:
            RunDirectoryError: another process took over, or the folder is gone.
            StorageError: status.json cannot be read.
        """
        with self._mutex:
            self._confirm(self._folder.get(STATUS_NAME))

    def renew(self) -> None:
        """Write the next heartbeat, unless this process is no longer the writer.

        Raises:
            RunDirectoryError: another process took over, or the folder is gone.
            StorageError: status.json cannot be read or written.
        """
        with self._mutex:
            self._write(self._confirm, durable=False)

    def keep_alive(self, done: threading.Event) -> DcganDistError | None:
        """Write heartbeats until `done` is set; return the error that ended them earlier, or None."""
        last = time.monotonic()
        while not done.wait(self.heartbeat_seconds):
            try:
                self.renew()
                last = time.monotonic()
            except StorageError as error:
                # A short failure is no reason to stop. After this long, another process may have taken over.
                if time.monotonic() - last > STALE_SECONDS:
                    return error
            except DcganDistError as error:
                return error
        return None

    def change(self, status: Status, reason: str, facts: Mapping[str, object], *, write: bool = True) -> None:
        """Set the status; each of `facts` keeps its value until it is given again.

        Without `write`, the status is written with the next heartbeat.

        Raises:
            RunDirectoryError: another process took over, or the folder is gone.
            StorageError: status.json cannot be written.
            ValueError: a fact has the name of one of the file's own fields.
        """
        if clash := self.reserved & set(facts):
            raise ValueError(f"status.json has fields {sorted(clash)} of its own")
        with self._mutex:
            self._changed = True
            self._record |= {"status": status, "reason": reason, **facts}
            if write:
                # "running" is set often, and each heartbeat writes it again.
                self._write(self._confirm, durable=status != "running")

    def release(self) -> None:
        """Release the directory. If the status was never set, the previous one is restored.

        Raises:
            RunDirectoryError: another process took over, or the folder is gone.
            StorageError: status.json cannot be written.
        """
        with self._mutex:
            if not self._changed and self._previous is not None and self._previous.get("status") != "running":
                own = {"writer": self._record["writer"]}
                self._record = {**self._previous, **own}
            elif self._record["status"] == "running":
                self._record |= {"status": "stopped", "reason": "it was closed before the end of the run"}
            self._record["locked"] = False
            self._write(self._confirm)


def mark_run(location: str, status: Status, reason: str, *, session: str) -> bool:
    """Record the end of a run whose writer could not do that itself, for example because it was killed.

    The launcher calls it. Nothing happens unless the run is of this `session` and its status is `running` or already
    `status`; in the second case, the launcher's reason (a worker died) replaces the worker's (a connection was lost).

    Returns:
        Whether the status was changed.

    Raises:
        RunDirectoryError: a living writer of another session holds the directory.
        StorageError: status.json cannot be written.
    """
    found = read_status(folder_at(location))
    if found is None or found.get("status") not in ("running", status):
        return False
    if not session or found.get("session") != session:
        return False
    lease = Lease(folder_at(location), session)
    before: Mapping[str, object] = lease.take() or {}
    facts = {key: value for key, value in before.items() if key not in lease.reserved}
    lease.change(status, reason, facts)
    lease.release()
    return True


__all__ = [
    "Lease",
    "Status",
    "is_alive",
    "mark_run",
    "process_start",
    "read_status",
]
