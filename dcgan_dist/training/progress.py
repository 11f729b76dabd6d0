"""Following a run and stopping it: the launcher's ear, the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Reporter(Protocol):
    """What the loop tells whoever launched it, on every rank."""

    def report(self, metrics: dict[str, Any], checkpoint_dir: str | None) -> None:
        """Take the metrics of a log line, and the newest checkpoint where there is one: that of the same step, if any.

        A run that diverged tells of it in its last line, with the checkpoint of its last finite state.
        """

    def should_stop(self) -> bool:
        """Whether the run should end at this step with a last checkpoint.

        Asked every step or every few of them, after `report` of the same step.
        """


class Silent:
    """A reporter for runs that nobody follows from outside."""

    def report(self, metrics: dict[str, Any], checkpoint_dir: str | None) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


class Clock:
    """Seconds since the last log line, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    def lap(self) -> tuple[float, float]:
        """Return (seconds, seconds waited) since the last call, and start again."""
        now = time.monotonic()
        seconds, waited = now - self.started, self.waited
        self.started, self.waited = now, 0.0
        return seconds, waited


def readable_time(seconds: float) -> str:
    """Write a duration as a person would: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
