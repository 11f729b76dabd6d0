"""Download of remote shards: whole shards ahead of their use, and range requests for records until these have come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from io import FileIO

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.order import SEGMENTS
from dcgan_dist.errors import DataError, DcganDistError
from dcgan_dist.storage.remote import Interrupted, interrupted_by, pause

_DOWNLOADS = 8  # at the same time
_RANGES = 16  # requested at the same time
_LOOK_S = 0.1  # seconds between two checks whether the whole shard has come before a range of it
_LEAST_BYTES = 1 << 20  # of a shard whose records are read by range requests; smaller ones come as fast as a whole
_AHEAD_BYTES = 1 << 30  # of shards that are not needed yet
_AHEAD_SHARE = 4  # a quarter of the cache's limit, if that is less


class Downloads:
    """Downloads the remote shards that a stream needs next, in the background, and keeps them in the cache.

    The shards of the 64 segments come first, in the order of their first use; then those that follow, up to about half
    a shard for each segment and 1 GiB (or a quarter of the cache) in total.

    Args:
        dataset: the shards.
        batch_size: images of a global batch.
        shards_ahead: returns the shards for a batch and for some batches after it, in the order of their use.
    """

    def __init__(self, dataset: Dataset, batch_size: int, shards_ahead: Callable[[int], list[int]]) -> None:
        self.closed = threading.Event()
        self._dataset, self._shards_ahead = dataset, shards_ahead
        self._wanted: dict[int, Future[FileIO | None]] = {}
        self._every = max(1, SEGMENTS * (max(dataset.sizes) // 16) // batch_size)
        self._next = -1
        any_remote = any(map(dataset.is_remote, range(len(dataset.tars))))
        self._pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="dcgan_dist-fetch") if any_remote else None

    def begin(self, batch: int) -> None:
        """Start the downloads of the shards for `batch` and for some batches after it."""
        if self._pool is None or batch < self._next:
            return
        self._next = batch + self._every
        window = self._window(batch)
        for shard in self._wanted.keys() - set(window):
            self._forget(shard)
        new = [shard for shard in window if shard not in self._wanted or _failed(self._wanted[shard])]
        # The indexes of all shards first: they are small, and range requests for records need them.
        for shard in new:
            self._pool.submit(self._fetch_index, shard)
        for shard in new:
            self._wanted[shard] = self._pool.submit(self._fetch, shard)

    def close(self) -> None:
        """Cancel the downloads, and close the downloaded shards."""
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
            if number >= SEGMENTS:
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
            return  # reading the shard raises it again

    def _fetch(self, shard: int) -> FileIO | None:
        with interrupted_by(self.closed):
            return self._dataset.open_tar(shard) if self._dataset.is_remote(shard) else None

    def _forget(self, shard: int) -> None:
        future = self._wanted.pop(shard)
        future.cancel()
        future.add_done_callback(_close)


class RangeReaders:
    """Range requests for records of the first shards that a stream reads in one process, during their download.

    Args:
        most_shards: maximum number of shards that are read like that: if a stream is faster than its downloads, more
            requests would only slow these down.

    Attributes:
        done: whether range requests are not needed any more.
    """

    def __init__(self, most_shards: int) -> None:
        self.done = False
        self._left = most_shards
        self._pool = ThreadPoolExecutor(_RANGES, thread_name_prefix="dcgan_dist-range")

    def of(self, dataset: Dataset, shard: int) -> RangeReader | None:
        """Return a reader for ranges of a shard; None if the shard should be downloaded first."""
        self._left -= 1
        small = dataset.manifest.shards[shard].bytes < _LEAST_BYTES
        if self.done or self._left < 0 or small or dataset.is_on_host(shard):
            return None
        return RangeReader(dataset, shard, self._pool)


class RangeReader:
    """Concurrent range requests for records of one remote shard."""

    def __init__(self, dataset: Dataset, shard: int, pool: ThreadPoolExecutor) -> None:
        self._dataset, self._shard, self._pool = dataset, shard, pool
        self._asked: dict[int, Future[bytes | None]] = {}

    def ask(self, start: int, size: int) -> bool:
        """Request a range, unless the shard is downloaded already; return whether it was requested."""
        if self._dataset.is_on_host(self._shard):
            return False
        # In the caller's context, so that `interrupted_by` of the caller interrupts the request.
        read = copy_context().run
        self._asked[start] = self._pool.submit(read, self._dataset.read_remote, self._shard, start, size)
        return True

    def take(self, start: int, size: int) -> memoryview | None:
        """Return a requested range; None if the request failed, or if the whole shard has been downloaded before.

        Raises:
            Interrupted: the stream is closed.
        """
        requested = self._asked.pop(start, None)
        if requested is None:
            return None
        while not wait([requested], timeout=_LOOK_S).done:
            pause(0)
            if self._dataset.is_on_host(self._shard):
                requested.cancel()
                return None
        try:
            content = requested.result()
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
