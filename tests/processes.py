"""Real processes that start as fast as a fork: a server has already imported their modules."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import multiprocessing
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dcgan_dist.distributed import World, leave_world
from dcgan_dist.stopping import end_at_once, set_handler

# The server only imports: it has no threads that a fork would lose. An optimizer's first step would import dynamo.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "torch._dynamo", "dcgan_dist.train", "dcgan_dist.training.trainer", __name__])


@dataclass(frozen=True)
class Running:
    """A train command in its own process, which leads a session, and the streams of its output."""

    process: BaseProcess
    streams: Sequence[io.TextIOBase]

    def finish(self, seconds: float = 200) -> tuple[int, list[str]]:
        """Wait for the end; return the exit status and what was printed to each stream and not read yet."""
        with ThreadPoolExecutor(len(self.streams)) as pool:
            printed = list(pool.map(lambda stream: stream.read(), self.streams))
        self.process.join(seconds)
        assert self.process.exitcode is not None, printed
        return self.process.exitcode, printed


@dataclass(frozen=True)
class Moment:
    """Signals that a command gets when it calls one of its functions for the nth time.

    Attributes:
        function: such as `dcgan_dist.training.trainer.Trainer._save`, as its caller finds it.
        signals: sent one after the other.
        pause: seconds after each.
        call: n.
    """

    function: str
    signals: Sequence[int]
    pause: float = 0.01
    call: int = 1

    def arm(self) -> None:
        """Make the function send the signals before it does its work."""
        where, _, name = self.function.rpartition(".")
        holder = pkgutil.resolve_name(where)
        original, calls = getattr(holder, name), itertools.count(1)

        def send() -> None:
            for number in self.signals:
                os.kill(os.getpid(), number)
                time.sleep(self.pause)

        @functools.wraps(original)
        def hooked(*arguments: Any, **named: Any) -> Any:
            if next(calls) == self.call:
                sender = threading.Thread(target=send)
                sender.start()
                sender.join()  # the main thread handles the signals in the meantime
            return original(*arguments, **named)

        setattr(holder, name, hooked)


@contextlib.contextmanager
def start_training(
    words: Sequence[str],
    environment: Mapping[str, str],
    streams: int = 2,
    is_to_be_killed: bool = False,
    *,
    command: str = "train",
    moment: Moment | None = None,
) -> Iterator[Running]:
    """Run the train command, or another one; with one stream, its errors go where the rest goes.

    One that is to be killed stays when it has finished: however late the signal, it ends by that.
    """
    pipes = [_FORKS.Pipe(duplex=False) for _ in range(streams)]
    told = (command, words, environment, [writer for _, writer in pipes], is_to_be_killed, moment)
    process = _FORKS.Process(target=_run, args=told)
    process.start()
    with contextlib.ExitStack() as stack:
        stack.callback(process.join)
        stack.callback(process.kill)
        for reader, writer in pipes:
            writer.close()
            stack.enter_context(reader)
        yield Running(process, [stack.enter_context(open(os.dup(reader.fileno()))) for reader, _ in pipes])


def _run(
    command: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    writers: Sequence[Connection],
    is_to_be_killed: bool,
    moment: Moment | None,
) -> None:
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    os.environ.clear()
    os.environ.update(environment)
    for writer, descriptor in ((writers[0], 1), (writers[-1], 2)):
        os.dup2(writer.fileno(), descriptor)
    for writer in writers:
        writer.close()
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    module = importlib.import_module(f"dcgan_dist.{command}")
    if moment is not None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        set_handler(end_at_once)  # as `python -m` does
        moment.arm()
    code = module.main(words)
    if is_to_be_killed and code == 0:
        signal.pause()
    sys.exit(code)


def train_together(words: Sequence[str], environment: Mapping[str, str], size: int) -> subprocess.CompletedProcess[str]:
    """Run the train command to its end, alone or in several processes with the environment of torchrun.

    Unlike under torchrun, none is ended when another one fails: all must end, with the same exit status.
    """
    told: list[dict[str, str]] = [{}]
    if size > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        group |= {"WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "none"}
        told = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(start_training(words, {**environment, **own})) for own in told]
        ends = [rank.finish() for rank in ranks]
    out, err = ("".join(texts) for texts in zip(*(printed for _, printed in ends), strict=True))
    (code,) = {code for code, _ in ends}
    return subprocess.CompletedProcess(words, code, out, err)


def in_processes(function: Callable[..., None], folder: Path, *arguments: Any, size: int = 2) -> None:
    """Call `function(world, *arguments)` on every rank of a gloo group; an exception of any rank is raised here."""
    everything = (size, str(folder / "store"), function, arguments)
    mp.start_processes(_enter, args=everything, nprocs=size, start_method="forkserver")


def _enter(rank: int, size: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        function(World(rank, size, torch.device("cpu")), *arguments)
    finally:
        leave_world()
