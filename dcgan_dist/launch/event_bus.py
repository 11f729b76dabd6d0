"""What the driver of a run and its workers tell each other: progress, outcomes, and the request to stop.

One small Ray actor on the driver's host. Workers write to it without waiting; the driver takes what has come in. Unlike
Ray's own forwarding of logs, no line is lost when the run ends, and none of Ray's own messages are among them.
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

Handle = Any  # of the actor; Ray gives actor handles no static type


@dataclass(frozen=True)
class Line:
    """A line that a worker printed, for the driver's stdout or stderr."""

    text: str
    to_stderr: bool = False


@dataclass(frozen=True)
class Started:
    """Ray Train's controller runs; its end is the end of all workers."""

    controller: Handle


@dataclass(frozen=True)
class Placed:
    """A group of workers has its CPUs and GPUs: Ray's placement group, whose removal frees them at once."""

    group: Handle


@dataclass(frozen=True)
class Joined:
    """A worker has begun."""

    rank: int
    host: str
    pid: int


@dataclass(frozen=True)
class Left:
    """A worker has returned."""

    rank: int


@dataclass(frozen=True)
class Metrics:
    """One log line of the run, as the leader reported it."""

    values: dict[str, float]
    checkpoint: str | None


@dataclass(frozen=True)
class Progress:
    """How far a trial of a sweep is."""

    trial: str
    step: int
    steps: int


@dataclass(frozen=True)
class Settled:
    """A worker ended the run in a way that no restart would change: diverged, stopped, or bad input."""

    rank: int
    error: type[DcganDistError]
    message: str


@dataclass(frozen=True)
class Broke:
    """A worker met an error of the program's own or lost its peers; it may be restarted."""

    rank: int
    message: str


@dataclass(frozen=True)
class Lost:
    """Ray found workers dead or failed: why, by rank."""

    reasons: dict[int, str] = field(default_factory=dict)


Event = Line | Started | Placed | Joined | Left | Metrics | Progress | Settled | Broke | Lost


class Switchboard:
    """The actor. It lives as long as its driver."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._delivered: defaultdict[str, int] = defaultdict(int)  # by sender
        self._held: defaultdict[str, dict[int, Event]] = defaultdict(dict)  # Ray may run calls out of their order
        self._arrival = asyncio.Event()
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self._end = asyncio.Event()  # never set

    async def post(self, sender: str, number: int, event: Event) -> None:
        """Leave a sender's event `number` (from 0) for the driver; return once all before it are there too."""
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
        """Return the events since the last call in their order, waiting a while for the first."""
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
        """Return once the workers are asked to stop."""
        return await self._stop.wait()

    async def ended(self) -> None:
        """Never return: with the end of this actor, which is that of the driver, the call fails."""
        await self._end.wait()

    async def settled(self, wait_s: float) -> bool:
        """Whether some worker has settled the run's outcome, or does so within `wait_s` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), wait_s)
        return self._settled.is_set()


class Sender:
    """One process's way to the switchboard; its events arrive in the order in which it posts them."""

    def __init__(self, board: Handle) -> None:
        self._board = board
        self._name = uuid.uuid4().hex
        self._count = 0
        self._lock = threading.Lock()

    def post(self, event: Event) -> Any:
        """Send an event without waiting; `ray.get` of what is returned waits until it has arrived."""
        with self._lock:
            number, self._count = self._count, self._count + 1
            return self._board.post.remote(self._name, number, event)


class PostedStream(io.TextIOBase):
    """A text stream whose lines go to the driver."""

    def __init__(self, sender: Sender, *, to_stderr: bool = False, prefix: str = "") -> None:
        self._sender = sender
        self._to_stderr = to_stderr
        self._prefix = prefix
        self._rest = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Post the lines that are complete, keep the rest; of a line overwritten by carriage returns the last state."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._post(line)
        return len(text)

    def finish(self) -> None:
        """Post what is left."""
        with self._lock:
            if self._rest:
                self._post(self._rest)
                self._rest = ""

    def _post(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        self._sender.post(Line(self._prefix + shown, self._to_stderr))


class WithoutRay(io.TextIOBase):
    """A text stream that lets through what this program writes, and not what Ray's own threads do.

    Ray tells the driver of every lost process and host in pages of text, whatever its log settings.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        """Whether it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Write on, or drop."""
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        self._stream.flush()


def show(line: Line) -> None:
    """Print a worker's line from the driver."""
    tell(line.text, to_stderr=line.to_stderr)
