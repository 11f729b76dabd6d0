"""Remote tars without a manifest, given by their URLs: downloaded and indexed once, then downloaded as needed."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import xxhash

from dcgan_dist.data.foreign import Tar, index_tars
from dcgan_dist.data.manifest import Manifest, Shard
from dcgan_dist.errors import Unreachable
from dcgan_dist.storage.cache import COPIES, map_copy, one_at_a_time, open_copy
from dcgan_dist.storage.remote import interrupted_by, remote_state, shown

_AT_A_TIME = 4  # downloads

_log = logging.getLogger(__name__)


def copy_name(shard: Shard) -> str:
    """Return the name of a shard's copy in the cache."""
    return f"{shard.digest}-{shard.bytes}.tar"


def index_remote(
    urls: Sequence[str], cache: Path, cache_gib: float | None, image_member: str | None = None
) -> tuple[Manifest, tuple[Path, ...]]:
    """Return manifest and indexes of remote tars that have none.

    Each tar is downloaded once for that. Afterwards its copy in the cache may be removed and downloaded again, like any
    other.

    Args:
        urls: the tars.
        cache: this host's cache.
        cache_gib: maximum GiB of copies in it; None leaves a tenth of the disk free.
        image_member: see `index_tars`.

    Raises:
        DataError: a tar does not exist, or there are no images in the tars.
        StorageError: the cache's disk is full.
        Unreachable: the storage was not reached, and the tars are not indexed yet.
    """
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        states = list(pool.map(lambda url: _remote_state(url, cache), urls))
    limit = None if cache_gib is None else int(cache_gib * 2**30)
    firsts = [
        cache / COPIES / f"{xxhash.xxh3_128_hexdigest(json.dumps([url, *state]).encode())}.tar"
        for url, state in zip(urls, states, strict=True)
    ]

    def open_first(number: int) -> FileIO:
        return open_copy(urls[number], firsts[number], cache, size=states[number][0], limit=limit)

    with _OpenedAhead(open_first, len(urls)) as opened:
        tars = [
            Tar(
                location=shown(url),
                name=_file_name(url),
                state=(xxhash.xxh3_128_hexdigest(url.encode()), *state),
                content=partial(_mapped, opened, number),
            )
            for number, (url, state) in enumerate(zip(urls, states, strict=True))
        ]
        manifest, indexes = index_tars(tars, cache, image_member)
    for shard, first in zip(manifest.shards, firsts, strict=True):
        with suppress(FileNotFoundError):
            first.rename(cache / COPIES / copy_name(shard))
    return manifest, indexes


class _OpenedAhead:
    """Files that are opened in order, some ahead of their use; a file that is needed again is opened again."""

    def __init__(self, open_one: Callable[[int], FileIO], count: int) -> None:
        self._open_one, self._count, self._next = open_one, count, 0
        self._closed = threading.Event()
        self._ahead: dict[int, Future[FileIO]] = {}
        self._pool = ThreadPoolExecutor(_AT_A_TIME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)
        for future in self._ahead.values():
            if not future.cancelled() and future.exception() is None:
                future.result().close()

    def take(self, number: int) -> FileIO:
        """Return a file, opened."""
        while self._next < min(number + _AT_A_TIME, self._count):
            self._ahead[self._next] = self._pool.submit(self._open, self._next)
            self._next += 1
        return self._ahead.pop(number).result() if number in self._ahead else self._open_one(number)

    def _open(self, number: int) -> FileIO:
        with interrupted_by(self._closed):
            return self._open_one(number)


def _mapped(opened: _OpenedAhead, number: int) -> memoryview:
    file = opened.take(number)
    if os.fstat(file.fileno()).st_size:
        return map_copy(file)
    file.close()
    return memoryview(b"")


def _file_name(url: str) -> str:
    """Return the name of a URL's file without characters that manifests do not allow."""
    return re.sub(r"[\\:\0]", "_", urlsplit(url).path.rpartition("/")[2])


def _remote_state(url: str, cache: Path) -> tuple[int | None, str]:
    """Return the current size and version of a remote tar; the last known ones if its storage is unreachable."""
    known = cache / "foreign" / f"{xxhash.xxh3_128_hexdigest(url.encode())}.json"
    try:
        state = remote_state(url)
    except Unreachable as error:
        if not known.exists():
            raise
        _log.warning("%s; using the cache", error)
        size, version = json.loads(known.read_text())
        return size, version
    with one_at_a_time(cache, known.stem):
        known.parent.mkdir(exist_ok=True)
        part = known.with_suffix(".part")
        part.write_text(json.dumps(state))
        part.replace(known)
    return state
