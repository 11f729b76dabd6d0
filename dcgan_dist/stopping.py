"""Signals that end a command: SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under nohup.

::

    while a command is imported    nothing has begun yet: one line, and the process ends           `end_at_once`
    while it runs                  `Interrupted` is raised in the main thread, at any line         `raising`
    while it has state to save     the first is noted for the main loop; a second one is raised    `noting`
    when it has ended              ignored: its output and exit status stay as they are            `final`

Signals within one second count as one: terminals, shells and launchers often send two when one is meant, and the
second must not abort what the first has started (a last checkpoint, clearing up).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = 1.0

Handle = Callable[[int], None]


class Interrupted(KeyboardInterrupt):
    """A signal interrupted the main thread. It is a KeyboardInterrupt, which no library catches as an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"ended by a signal ({name})"


class _Newest:
    """The time of the newest signal that counted."""

    time = float("-inf")

    def counts(self) -> bool:
        now = time.monotonic()
        if now - self.time < SAME_S:
            return False
        self.time = now
        return True


_newest = _Newest()


class Noted:
    """The number of the first signal; 0 until one has come."""

    number = 0


class _Handler:
    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if _newest.counts():
            self.handle(number)


def set_handler(handle: Handle) -> dict[int, Any]:
    """Call `handle` with the number of each signal, but leave an ignored SIGHUP ignored; return the old handlers."""
    taken = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    return {number: signal.signal(number, _Handler(handle)) for number in taken}


@contextmanager
def on_signals(handle: Handle) -> Iterator[None]:
    """Set a handler within the block. Without effect outside the main thread, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = set_handler(handle)
    try:
        yield
    finally:
        restore(before)


def restore(handlers: Mapping[int, Any]) -> None:
    """Set the handlers that `set_handler` returned."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_at_once(number: int) -> None:
    """Print one line and end the process, without clearing up."""
    with suppress(OSError):
        os.write(2, f"dcgan-dist: {Interrupted(number)}\n".encode())
    os._exit(128 + number)


@contextmanager
def final() -> Iterator[None]:
    """After the block, ignore signals until the process ends, if the process is that of a command.

    Python restores the default handlers long before the last library is unloaded: a signal in between would replace the
    exit status.
    """
    try:
        yield
    finally:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if isinstance(handler, _Handler) and handler.handle is end_at_once:
                signal.signal(number, signal.SIG_IGN)


def _raise(number: int) -> None:
    raise Interrupted(number)


def raising() -> AbstractContextManager[None]:
    """Make signals raise `Interrupted` in the block."""
    return on_signals(_raise)


@contextmanager
def noting() -> Iterator[Noted]:
    """Note the first signal in the block; make a second one raise `Interrupted`."""
    noted = Noted()

    def note(number: int) -> None:
        if noted.number:
            raise Interrupted(number)
        noted.number = number

    with on_signals(note):
        yield noted


@contextmanager
def shielding() -> Iterator[None]:
    """Block the signals in processes that are started within the block: only this process acts on them.

    A new process inherits the blocked signals from its first instruction on; SIGKILL still ends it. Meanwhile, other
    threads of this process receive the signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # Otherwise it would start with the first process, and its start unblocks the signals here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
