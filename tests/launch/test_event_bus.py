"""The event bus between the driver and its workers."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import pytest

from dcgan_dist.errors import Diverged
from dcgan_dist.launch.event_bus import EventBus, Left, Line, PostedStream, Sender, Settled, WithoutRay


def test_events_of_a_sender_arrive_in_order_even_if_calls_run_out_of_order() -> None:
    async def scenario() -> list[object]:
        bus = EventBus()
        later = asyncio.create_task(bus.post("a", 1, Line("second")))
        await asyncio.sleep(0.03)
        assert not later.done()  # it does not arrive before the earlier event
        assert await bus.take(0.01) == []
        await bus.post("b", 0, Left(1))
        await bus.post("a", 0, Line("first"))
        await later
        return list(await bus.take(0.01))

    assert asyncio.run(scenario()) == [Left(1), Line("first"), Line("second")]


def test_a_settled_outcome_is_known_to_callers_before_and_after() -> None:
    async def scenario() -> tuple[bool, bool, bool]:
        bus = EventBus()
        before = await bus.settled(0)
        waiting = asyncio.create_task(bus.settled(5))
        await bus.post("a", 0, Settled(0, Diverged, "at step 3"))
        return before, await waiting, await bus.settled(0)

    assert asyncio.run(scenario()) == (False, True, True)


class Collector(Sender):
    """A sender that keeps its events."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def post(self, event: Any) -> None:
        self.lines.append(event)


def test_the_stream_posts_complete_lines_and_the_last_state_of_overwritten_ones() -> None:
    sender = Collector()
    stream = PostedStream(sender, to_stderr=True, prefix="[rank 1] ")
    for piece in ("one\ntw", "o\n10%\r100%\r\n", "rest"):
        stream.write(piece)
    assert [line.text for line in sender.lines] == ["[rank 1] one", "[rank 1] two", "[rank 1] 100%"]
    stream.finish()
    assert sender.lines[-1] == Line("[rank 1] rest", to_stderr=True)


@pytest.mark.parametrize(("thread", "shown"), [("MainThread", "hello\n"), ("ray_listen_error_messages", "")])
def test_only_the_output_of_rays_threads_is_discarded(thread: str, shown: str) -> None:
    behind = io.StringIO()
    stream = WithoutRay(behind)
    writer = threading.Thread(target=lambda: print("hello", file=stream), name=thread)
    writer.start()
    writer.join()
    assert behind.getvalue() == shown
