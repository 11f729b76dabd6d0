"""What the driver and its workers tell each other."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import pytest

from dcgan_dist.errors import Diverged
from dcgan_dist.launch.switchboard import Left, Line, PostedStream, Sender, Settled, Switchboard, WithoutRay


def test_events_arrive_in_the_order_of_each_sender_however_calls_are_run() -> None:
    async def scenario() -> list[object]:
        board = Switchboard()
        later = asyncio.create_task(board.post("a", 1, Line("second")))
        await asyncio.sleep(0.03)
        assert not later.done()  # it has not arrived before what was posted first
        assert await board.take(0.01) == []
        await board.post("b", 0, Left(1))
        await board.post("a", 0, Line("first"))
        await later
        return list(await board.take(0.01))

    assert asyncio.run(scenario()) == [Left(1), Line("first"), Line("second")]


def test_settled_outcome_is_known_to_those_who_ask_before_and_after() -> None:
    async def scenario() -> tuple[bool, bool, bool]:
        board = Switchboard()
        before = await board.settled(0)
        waiting = asyncio.create_task(board.settled(5))
        await board.post("a", 0, Settled(0, Diverged, "at step 3"))
        return before, await waiting, await board.settled(0)

    assert asyncio.run(scenario()) == (False, True, True)


class Collector(Sender):
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def post(self, event: Any) -> None:
        self.lines.append(event)


def test_stream_posts_whole_lines_and_the_last_state_of_overwritten_ones() -> None:
    sender = Collector()
    stream = PostedStream(sender, to_stderr=True, prefix="[rank 1] ")
    for piece in ("one\ntw", "o\n10%\r100%\r\n", "rest"):
        stream.write(piece)
    assert [line.text for line in sender.lines] == ["[rank 1] one", "[rank 1] two", "[rank 1] 100%"]
    stream.finish()
    assert sender.lines[-1] == Line("[rank 1] rest", to_stderr=True)


@pytest.mark.parametrize(("thread", "shown"), [("MainThread", "hello\n"), ("ray_listen_error_messages", "")])
def test_only_what_rays_threads_write_is_dropped(thread: str, shown: str) -> None:
    behind = io.StringIO()
    stream = WithoutRay(behind)
    writer = threading.Thread(target=lambda: print("hello", file=stream), name=thread)
    writer.start()
    writer.join()
    assert behind.getvalue() == shown
