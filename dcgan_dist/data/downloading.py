"""Shards on their way to this host: whole ones ahead of their use, and single records until these have come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from io import FileIO

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.order import RUNS
from dcgan_dist.errors import DataError, DcganDistError
from dcgan_dist.storage.remote import Interrupted, interrupted_by, pause

_AT_A_TIME = 8
_PIECES_AT_A_TIME = 16
_LOOK_S = 0.1  # between looks at whether a whole shard has come before its piece
_WORTH_PIECES = 1 << 20  # bytes of a shard from which on its records are read by themselves at first
_AHEAD_BYTES = 1 << 30  # of shards that are not needed yet
_AHEAD_SHARE = 4  # of the cache's limit, if that is less


class Downloads:
    """Fetches the remote shards that a stream needs next, in the background, and keeps them in the cache for it.

    The shards of the 64 runs come first, in the order of their first use; then those that follow them, up to about
    half a shard for each run and 1 GiB (or a quarter of the cache) in all.

    Args:
        dataset: the shards.
        batch_size: images of a global batch.
        shards_ahead: gives the shards for a batch and for some after it, in the order of their use.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shards_ahead: Callable[[int], list[int]]) -> None:
        self.closed = threading.Event()
        self._dataset, self._shards_ahead = dataset, shards_ahead
        self._wanted: dict[int, Future[FileIO | None]] = {}
        self._every = max(1, RUNS * (max(dataset.sizes) // 16) // batch_size)
        self._next = -1
        any_remote = any(map(dataset.is_remote, range(len(dataset.tars))))
        self._pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="dcgan_dist-fetch") if any_remote else None

    def begin(self, batch: int) -> None:
        """See to it that the shards for `batch` and some after it are on this host or on their way."""
        if self._pool is None or batch < self._next:
            return
        self._next = batch + self._every
        window = self._window(batch)
        for shard in self._wanted.keys() - set(window):
            self._forget(shard)
        new = [shard for shard in window if shard not in self._wanted or _failed(self._wanted[shard])]
        # The indexes of all of them first: they are small, and with them single records can be read.
        for shard in new:
            self._pool.submit(self._fetch_index, shard)
        for shard in new:
            self._wanted[shard] = self._pool.submit(self._fetch, shard)

    def close(self) -> None:
        """Break off what is on its way, and let go of what has come."""
        self.closed.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for shard in list(self._wanted):
            self._forget(shard)

    def _window(self, batch: int) -> list[int]:
        limit, left = self._dataset.cache_gib, _AHEAD_BYTES
        if limit is not None:
            left = min(left, int(limit * 2**30) // _AHEAD_SHARE)
        window = []
        for number, shard in enumerate(self._shards_ahead(batch)):
            if number >= RUNS:
                left -= self._dataset.manifest.shards[shard].bytes
                if left < 0:
                    break
            window.append(shard)
        return window

    def _fetch_index(self, shard: int) -> None:
        try:
            with interrupted_by(self.closed):
                self._dataset.open_index(shard).close()
        except (DcganDistError, Interrupted):
            return  # it comes up again where the shard is read

    def _fetch(self, shard: int) -> FileIO | None:
        with interrupted_by(self.closed):
            return self._dataset.open_tar(shard) if self._dataset.is_remote(shard) else None

    def _forget(self, shard: int) -> None:
        future = self._wanted.pop(shard)
        future.cancel()
        future.add_done_callback(_close)


class PieceReaders:
    """Reads records of the first shards that a stream meets in one process, while these are on their way.

    Args:
        most_shards: how many shards are read like that at most: a stream that is faster than its downloads must wait
            for them, and not slow them down.

    Attributes:
        done: whether there is no need any more.
    """

    def __init__(self, most_shards: int) -> None:
        self.done = False
        self._left = most_shards
        self._pool = ThreadPoolExecutor(_PIECES_AT_A_TIME, thread_name_prefix="dcgan_dist-piece")

    def of(self, dataset: Dataset, shard: int) -> Pieces | None:
        """Return what reads pieces of a shard; None where it should be read as a whole."""
        self._left -= 1
        small = dataset.manifest.shards[shard].bytes < _WORTH_PIECES
        if self.done or self._left < 0 or small or dataset.is_on_host(shard):
            return None
        return Pieces(dataset, shard, self._pool)


class Pieces:
    """The records of one remote shard that are asked for by themselves, many at the same time."""

    def __init__(self, dataset: Dataset, shard: int, pool: ThreadPoolExecutor) -> None:
        self._dataset, self._shard, self._pool = dataset, shard, pool
        self._asked: dict[int, Future[bytes | None]] = {}

    def ask(self, start: int, size: int) -> bool:
        """Begin to read a piece, unless the whole shard has come; return whether it was begun."""
        if self._dataset.is_on_host(self._shard):
            return False
        # In the context of who asks, whose interruption ends it.
        read = copy_context().run
        self._asked[start] = self._pool.submit(read, self._dataset.read_remote, self._shard, start, size)
        return True

    def take(self, start: int, size: int) -> memoryview | None:
        """Return a piece that was asked for; None where the whole shard must be read, or has come sooner.

        Raises:
            Interrupted: the stream is closed.
        """
        piece = self._asked.pop(start, None)
        if piece is None:
            return None
        while not wait([piece], timeout=_LOOK_S).done:
            pause(0)
            if self._dataset.is_on_host(self._shard):
                piece.cancel()
                return None
        try:
            content = piece.result()
        except DataError:
            return None
        return None if content is None or len(content) != size else memoryview(content)


def _failed(future: Future[FileIO | None]) -> bool:
    return future.done() and future.exception() is not None


def _close(future: Future[FileIO | None]) -> None:
    if not future.cancelled() and future.exception() is None:
        file = future.result()
        if file is not None:
            file.close()
