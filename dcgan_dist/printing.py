"""Messages for people, and standard streams that survive the end of their reader.

A command is rarely run for what it prints: `train … | head` must continue training after `head` has ended.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended, or a terminal was closed

_listeners: list[Callable[[str], None]] = []


def tell(text: str, *, to_stderr: bool = False) -> None:
    """Print a line for people, or pass it to the innermost listener of `heard_by`."""
    if _listeners:
        _listeners[-1](text)
    else:
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def is_heard() -> bool:
    """Return whether there is a listener; then nothing should be drawn on the terminal."""
    return bool(_listeners)


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Within the block, pass the lines of `tell` to a function instead of printing them, in all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class _Stream(io.FileIO):
    """A standard stream that is redirected to /dev/null once it cannot be written any more."""

    failure: OSError | None = None  # the reason, unless it is that the reader has ended

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _GONE:
                self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # the descriptor itself, since child processes and libraries use it too
            os.close(null)
            return len(content)


def keep_streams() -> None:
    """Make stdout and stderr survive the end of their reader, a full disk, and characters that they cannot encode.

    A closed stream is opened as /dev/null: otherwise the next opened file would get its number, and be printed to.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
            os.set_inheritable(descriptor, True)
        stream = getattr(sys, name)
        if name == "stdin" or stream is not getattr(sys, f"__{name}__") or _raw(stream) is not None:
            continue  # somebody, such as a test, has replaced the stream on purpose
        kept = io.TextIOWrapper(
            io.BufferedWriter(_Stream(descriptor, "wb", closefd=False)),
            encoding="utf-8" if stream is None else stream.encoding,
            errors="replace" if name == "stdout" else "backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, kept)


def output_failure() -> str:
    """Return why standard output could not be written; "" if it could, or if only its reader has ended."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    return "" if raw is None or raw.failure is None else raw.failure.strerror or str(raw.failure)


def _raw(stream: object) -> _Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Stream) else None
