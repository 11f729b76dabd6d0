"""Scalars for TensorBoard, in files `events.out.tfevents.*` that can be truncated to a step.

Records are written one by one, without a queue or thread in between, so that every logged value is in the file.
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
    """Return the name of a new file, after all others: TensorBoard reads the files in the order of their names."""
    taken = [int(path.name.split(".")[3]) for path in folder.glob(EVENT_FILES) if path.name.split(".")[3].isdigit()]
    number = max([int(time.time()), *(other + 1 for other in taken)])
    return folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _append(path: Path, events: list[bytes]) -> None:
    with writing(path), path.open("ab") as file:
        records = RecordWriter(file)
        for event in events:
            records.write(event)


def _head() -> list[bytes]:
    """Return the first records of a file: its version, and SessionLog.START, on which TensorBoard discards its data."""
    now = time.time()
    version = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
    start = event_pb2.Event(wall_time=now, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    return [version.SerializeToString(), start.SerializeToString()]


class EventLog:
    """Appends scalars to its own file in `folder`; the first `append` creates the file."""

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
        """Copy the events up to `step` (None: all) from all files into one new file; empty the last of the old ones.

        A crash in between leaves events twice. The copies have the same bytes, and the next call discards them.

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
            # A TensorBoard that is reading the last file would hang if it vanished; from an empty file it moves on.
            for path in before[-1:]:
                os.truncate(path, 0)
            for path in before[:-1]:
                path.unlink()
        self._path = new

    def damaged(self) -> list[Path]:
        """Return the files that cannot be read to their end: damaged, or with an incomplete last record."""
        return [path for path in sorted(self._folder.glob(EVENT_FILES)) if _readable_bytes(path) < path.stat().st_size]

    def sync(self) -> None:
        """Wait until all appended records are on the disk."""
        if self._path is not None:
            with writing(self._path):
                sync_path(self._path)


def _events_with_values(path: Path, step: int | None) -> Iterator[bytes]:
    """Yield the records of a file with values at steps up to `step`; an incomplete last record is left out."""
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)
        if event.HasField("summary") and (step is None or event.step <= step):
            yield record


def _readable_bytes(path: Path) -> int:
    # A record is its content and 16 bytes: the length (8), and a checksum of each (4 + 4).
    return sum(len(record) + 16 for record in RawEventFileLoader(str(path)).Load())
