"""Signals that end a command: SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under nohup.

::

    while a command is imported    nothing has begun yet: one line, and the process ends           `end_at_once`
    while it runs                  `Interrupted` is raised in the main thread, wherever that is    `raising`
    while it has state to save     the first is noted for the main loop; a second one is raised    `noting`
    when it has ended              ignored: what it said and its exit status stand                 `final`

A signal within a second of another counts as one with it: terminals, shells and launchers often send two for one wish,
and what the first one has begun (a last checkpoint, clearing up) is not to be undone by the second.
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
    """A signal ended what the main thread was doing; no library takes a KeyboardInterrupt for an error to deal with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"ended by a signal ({name})"


class _Newest:
    """When the newest signal came that counted."""

    time = float("-inf")

    def counts(self) -> bool:
        """Whether a signal that has just come is another one."""
        now = time.monotonic()
        if now - self.time < SAME_S:
            return False
        self.time = now
        return True


_newest = _Newest()


class Noted:
    """The number of the first signal that came, 0 before."""

    number = 0


class _Handler:
    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if _newest.counts():
            self.handle(number)


def set_handler(handle: Handle) -> dict[int, Any]:
    """Have `handle` called with the number of each signal but a SIGHUP that is ignored; return the handlers before."""
    taken = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    return {number: signal.signal(number, _Handler(handle)) for number in taken}


@contextmanager
def on_signals(handle: Handle) -> Iterator[None]:
    """Do so within the block, in the main thread: Python lets no other one handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = set_handler(handle)
    try:
        yield
    finally:
        restore(before)


def restore(handlers: Mapping[int, Any]) -> None:
    """Set handlers as they were."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_at_once(number: int) -> None:
    """End the process with one line: there is nothing to clear up yet, or no more."""
    with suppress(OSError):
        os.write(2, f"dcgan-dist: {Interrupted(number)}\n".encode())
    os._exit(128 + number)


@contextmanager
def final() -> Iterator[None]:
    """After the block, ignore signals until the process has ended, where it is one of a command.

    Python sets the default handlers long before the last library is unloaded: a second signal would take the place of
    the exit status.
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
    """Have a signal raise `Interrupted` in the block."""
    return on_signals(_raise)


@contextmanager
def noting() -> Iterator[Noted]:
    """Note the first signal that comes in the block, and have a second one raise `Interrupted`."""
    noted = Noted()

    def note(number: int) -> None:
        if noted.number:
            raise Interrupted(number)
        noted.number = number

    with on_signals(note):
        yield noted


@contextmanager
def shielding() -> Iterator[None]:
    """Have the processes that are started in the block never see the signals, which are this one's to act on.

    They inherit that these are blocked, from their first instruction on; SIGKILL still ends them. Another thread of
    this process receives meanwhile what comes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # it comes with the first process, and its start unblocks signals here
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
