"""The event bus between the driver of a run and its workers: progress, outcomes, and the request to stop.

It is a small Ray actor on the driver's host. Workers post events without waiting; the driver takes them. Unlike Ray's
forwarding of logs, no line is lost when the run ends, and Ray's own messages are not included.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, TextIO

from dcgan_dist.errors import DcganDistError
from dcgan_dist.printing import tell
from dcgan_dist.runs.documents import Row

Handle = Any  # handle of an actor; Ray has no static type for it


@dataclass(frozen=True)
class Line:
    """A line that a worker printed, for the driver's stdout or stderr."""

    text: str
    to_stderr: bool = False


@dataclass(frozen=True)
class Started:
    """Ray Train's controller is running; killing it ends all workers."""

    controller: Handle


@dataclass(frozen=True)
class Placed:
    """A group of workers has its CPUs and GPUs: the placement group, whose removal frees them at once."""

    group: Handle


@dataclass(frozen=True)
class Joined:
    """A worker has started."""

    rank: int
    host: str
    pid: int


@dataclass(frozen=True)
class Left:
    """A worker has returned."""

    rank: int


@dataclass(frozen=True)
class Metrics:
    """One log line of the run, reported by the leader."""

    values: Row
    checkpoint: str | None


@dataclass(frozen=True)
class Progress:
    """The progress of a trial of a sweep."""

    trial: str
    step: int
    steps: int


@dataclass(frozen=True)
class Settled:
    """A worker ended the run with an outcome that a restart would not change: diverged, stopped, or bad input."""

    rank: int
    error: type[DcganDistError]
    message: str


@dataclass(frozen=True)
class Failed:
    """A worker raised another error, or lost its peers; it may be restarted."""

    rank: int
    message: str


@dataclass(frozen=True)
class Lost:
    """Ray detected dead or failed workers: the reasons by rank."""

    reasons: dict[int, str] = field(default_factory=dict)


Event = Line | Started | Placed | Joined | Left | Metrics | Progress | Settled | Failed | Lost


class EventBus:
    """The actor. It ends with its driver."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._delivered: defaultdict[str, int] = defaultdict(int)  # by sender
        self._held: defaultdict[str, dict[int, Event]] = defaultdict(dict)  # Ray may run calls out of order
        self._arrival = asyncio.Event()
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self._end = asyncio.Event()  # never set

    async def post(self, sender: str, number: int, event: Event) -> None:
        """Add event `number` (from 0) of a sender; return when all its earlier events have arrived too."""
        held = self._held[sender]
        held[number] = event
        while self._delivered[sender] in held:
            self._deliver(held.pop(self._delivered[sender]))
            self._delivered[sender] += 1
        while self._delivered[sender] <= number:
            await asyncio.sleep(0.01)

    def _deliver(self, event: Event) -> None:
        self._events.append(event)
        self._arrival.set()
        if isinstance(event, Settled):
            self._settled.set()

    async def take(self, wait_s: float) -> list[Event]:
        """Return the events since the last call, in order; wait up to `wait_s` seconds for the first."""
        try:
            await asyncio.wait_for(self._arrival.wait(), wait_s)
        except TimeoutError:
            return []
        events, self._events = self._events, []
        self._arrival.clear()
        return events

    async def stop(self) -> None:
        """Ask all workers to stop."""
        self._stop.set()

    async def stopped(self) -> bool:
        """Return True as soon as the workers are asked to stop."""
        return await self._stop.wait()

    async def ended(self) -> None:
        """Never return: the call fails when this actor ends, which is when its driver ends."""
        await self._end.wait()

    async def settled(self, wait_s: float) -> bool:
        """Return whether a worker has settled the outcome of the run, or does so within `wait_s` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), wait_s)
        return self._settled.is_set()


class Sender:
    """The sender of one process; its events arrive in the order in which it posts them."""

    def __init__(self, bus: Handle) -> None:
        self._bus = bus
        self._name = uuid.uuid4().hex
        self._count = 0
        self._lock = threading.Lock()

    def post(self, event: Event) -> Any:
        """Post an event without waiting; `ray.get` of the returned reference waits until it has arrived."""
        with self._lock:
            number, self._count = self._count, self._count + 1
            return self._bus.post.remote(self._name, number, event)


class PostedStream(io.TextIOBase):
    """A text stream that posts its lines to the driver."""

    def __init__(self, sender: Sender, *, to_stderr: bool = False, prefix: str = "") -> None:
        self._sender = sender
        self._to_stderr = to_stderr
        self._prefix = prefix
        self._rest = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Post complete lines and keep the rest; for a line that carriage returns overwrite, post its last state."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._post(line)
        return len(text)

    def finish(self) -> None:
        """Post the last, incomplete line."""
        with self._lock:
            if self._rest:
                self._post(self._rest)
                self._rest = ""

    def _post(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        self._sender.post(Line(self._prefix + shown, self._to_stderr))


class WithoutRay(io.TextIOBase):
    """A text stream that passes on the output of this program, and discards that of Ray's own threads.

    Ray prints pages of text about every lost process and host in the driver, whatever its log settings are.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Pass the text on, or discard it if the current thread is Ray's."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def flush(self) -> None:
        """Flush the underlying stream."""
        self._stream.flush()


def show(line: Line) -> None:
    """Print a worker's line in the driver."""
    tell(line.text, to_stderr=line.to_stderr)
