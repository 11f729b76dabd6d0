"""Scalars for TensorBoard, in files `events.out.tfevents.*` that can be cut back to a step.

Records are written one by one, with no queue or thread in between, so that what was logged is in the file.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from dcgan_dist.storage.files import sync_path, temporary_for, undone_by_errors, writing

EVENT_FILES = "events.out.tfevents.*"


def _new_path(folder: Path) -> Path:
    """Return the name of a further file: TensorBoard reads the files in the order of their names."""
    taken = [int(path.name.split(".")[3]) for path in folder.glob(EVENT_FILES) if path.name.split(".")[3].isdigit()]
    number = max([int(time.time()), *(other + 1 for other in taken)])
    return folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _append(path: Path, events: list[bytes]) -> None:
    with writing(path), path.open("ab") as file:
        records = RecordWriter(file)
        for event in events:
            records.write(event)


def _head() -> list[bytes]:
    """First records of a file: its version, and that whatever a running TensorBoard has read is to be forgotten."""
    now = time.time()
    version = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
    start = event_pb2.Event(wall_time=now, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    return [version.SerializeToString(), start.SerializeToString()]


class EventLog:
    """Appends scalars to a file of its own in `folder`; the file is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write finite values as scalars at `step`.

        Raises:
            StorageError: the file cannot be written.
        """
        scalars = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if math.isfinite(value)
        ]
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=scalars))
        if self._path is None:
            self.rewind(None)
        assert self._path is not None
        _append(self._path, [event.SerializeToString()])

    def rewind(self, step: int | None) -> None:
        """Gather the events up to `step` (None: all of them) in one new file; the one before is left empty.

        A crash in between leaves events twice; they are the same bytes, and the next call drops the copies.

        Raises:
            StorageError: the file cannot be written.
        """
        before = sorted(self._folder.glob(EVENT_FILES))
        kept = dict.fromkeys(event for path in before for event in _events_with_values(path, step))
        new = _new_path(self._folder)
        temporary = temporary_for(new)
        temporary.unlink(missing_ok=True)
        with writing(new):
            with undone_by_errors(temporary):
                _append(temporary, [*_head(), *kept])
                sync_path(temporary)
                temporary.replace(new)
            # A TensorBoard that reads the last file would be stuck if it vanished; from an empty one it moves on.
            for path in before[-1:]:
                os.truncate(path, 0)
            for path in before[:-1]:
                path.unlink()
        self._path = new

    def damaged(self) -> list[Path]:
        """Return the files that cannot be read to their end: after damage, or where an append was cut short."""
        return [path for path in sorted(self._folder.glob(EVENT_FILES)) if _readable_bytes(path) < path.stat().st_size]

    def sync(self) -> None:
        """Wait until all that was appended is on the disk."""
        if self._path is not None:
            with writing(self._path):
                sync_path(self._path)


def _events_with_values(path: Path, step: int | None) -> Iterator[bytes]:
    """Yield the records of a file that carry values at steps up to `step`; a torn last record is left out."""
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)
        if event.HasField("summary") and (step is None or event.step <= step):
            yield record


def _readable_bytes(path: Path) -> int:
    # A record has 16 bytes beside its content: its length, and a checksum of each.
    return sum(len(record) + 16 for record in RawEventFileLoader(str(path)).Load())
