"""What is said to people, and standard streams that outlive their readers: a command is seldom for what it prints."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # a pipe's reader, a terminal


_listeners: list[Callable[[str], None]] = []


def tell(text: str, *, to_stderr: bool = False) -> None:
    """Print a line for people, or give it to the innermost listener of `heard_by`."""
    if _listeners:
        _listeners[-1](text)
    else:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def is_heard() -> bool:
    """Whether there is a listener: nothing is to be drawn on a terminal then."""
    return bool(_listeners)


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Give what this process would print for people to a function instead, in all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class _Stream(io.FileIO):
    """A standard stream that becomes /dev/null once it cannot be written any more."""

    failure: OSError | None = None  # why, where it is not that the reader is gone

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _GONE:
                self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for other processes and libraries, too
            os.close(null)
            return len(content)


def keep_streams() -> None:
    """Make standard output and error fit for readers that leave, full disks, and characters that they cannot encode.

    A closed one becomes /dev/null, lest the next file that is opened takes its place.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
        stream = getattr(sys, name)
        if name == "stdin" or stream is not getattr(sys, f"__{name}__") or _raw(stream) is not None:
            continue  # whoever put another stream there, such as a test, means it
        kept = io.TextIOWrapper(
            io.BufferedWriter(_Stream(descriptor, "wb", closefd=False)),
            encoding="utf-8" if stream is None else stream.encoding,
            errors="replace" if name == "stdout" else "backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, kept)


def output_failure() -> str:
    """Return why standard output could not be written, other than that its reader is gone; empty where it could."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    return "" if raw is None or raw.failure is None else raw.failure.strerror or str(raw.failure)


def _raw(stream: object) -> _Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Stream) else None
