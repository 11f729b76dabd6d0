"""The progress line of a long task: rewritten on a terminal, otherwise a new line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from dcgan_dist.printing import is_heard

TERMINAL_PERIOD_S = 0.2
PLAIN_PERIOD_S = 5.0


class ProgressLine:
    """Prints the rate, the share done and the time left. It may be called often: it prints only every few seconds."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._start = self._printed = time.monotonic()
        self._width = 0

    def __call__(self, done: int, share: float, bad: int, found: int = 0) -> None:
        """Print the progress, if it is time for it.

        Args:
            done: number of images done.
            share: share of the whole that is done, in [0, 1].
            bad: number of unreadable inputs.
            found: number of the images that a previous run had done.
        """
        if self._is_due():
            self._write(describe(self._what, done, share, bad, self._printed - self._start, found))

    def state(self, words: str) -> None:
        """Print the state of a task of unknown length, and the time since its start, if it is time for it."""
        if self._is_due():
            self._write(f"{self._what}: {words}, {_clock(self._printed - self._start)}")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if is_heard() or now - self._printed < (TERMINAL_PERIOD_S if self._is_terminal else PLAIN_PERIOD_S):
            return False
        self._printed = now
        return True

    def _write(self, line: str) -> None:
        if self._is_terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line on a terminal."""
        if self._is_terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()


def describe(what: str, done: int, share: float, bad: int, elapsed: float, found: int = 0) -> str:
    """Return the line, such as ``rooms: 4,200 images, 21%, 2,310/s, 0:07 left``; times are in seconds."""
    rate = (done - found) / elapsed if elapsed > 0 else 0.0
    line = f"{what}: {done:,} images, {share:.0%}, {rate:,.0f}/s"
    if rate and 0 < share <= 1:
        line += f", {_clock(done * (1 - share) / share / rate)} left"
    return line + (f", {bad:,} unreadable" if bad else "")


def _clock(elapsed: float) -> str:
    minutes, seconds = divmod(round(elapsed), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d}"
