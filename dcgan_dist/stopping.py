"""What a command does when it is told to stop, or when nobody reads what it prints any more."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from dcgan_dist.errors import Stopped, StorageError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Terminals and supervisors send several signals at once, which mean one: an impatient person's come later.
AS_ONE_S = 1.0
_taken_at = -AS_ONE_S  # when the last signal was taken in this process
_blocks = 0  # of `on_signals`, one in the other


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(number)` on SIGTERM, SIGINT and SIGHUP within the block; those that come at once count as one.

    A signal that is ignored stays so, such as SIGHUP under nohup. Python lets only the main thread handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _taken_at, _blocks  # noqa: PLW0603 - a process has one set of handlers
    if not _blocks:
        _taken_at = -AS_ONE_S
    _blocks += 1

    def handler(number: int, _frame: FrameType | None) -> None:
        global _taken_at  # noqa: PLW0603
        if time.monotonic() - _taken_at >= AS_ONE_S:
            _taken_at = time.monotonic()
            handle(number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handler) for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        _blocks -= 1


@contextmanager
def ended_by_signals(way_out: str) -> Iterator[None]:
    """Have a signal end the block as an error does, so that all that was started ends in good order.

    Args:
        way_out: what the message says after that.
    """

    def stop(number: int) -> None:
        raise Stopped(number, f"ended by a signal; {way_out}" if way_out else "ended by a signal")

    with on_signals(stop):
        yield


class _Lasting:
    """A stream that goes on without its reader: what is printed then is lost, and the work is not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        with self._without_reader():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._without_reader():
            self._stream.flush()

    @contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that was closed
                raise StorageError(f"cannot write to {self._stream.name}: {error.strerror}") from error
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # for what the stream still holds, too


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let the block print whatever happens to its readers, and whatever characters they take."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:  # it was closed when this process began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))
    try:
        yield
        sys.stdout.flush()
    finally:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if stream is not None:
                setattr(sys, name, stream)
