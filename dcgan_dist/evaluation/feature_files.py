"""Features on disk: one file of rows for each extractor and data set, kept in the cache between commands.

An entry is a folder `features/KEY` of the cache, where KEY is a digest of everything that determines the values. It
holds `values` (rows of `dimension` numbers, in the order of the data set's records) and `done` (a byte for each chunk,
1 if it is written). `about.json` is written last and marks the entry as complete; an incomplete entry is continued by
the next command that needs it. Entries may be deleted at any time. When the cache would exceed its limit, the least
recently used entries are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels, fit
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import ConfigError
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.cache import one_at_a_time
from dcgan_dist.storage.files import sync_path, write_atomically, writing

# To be increased when a change of the code gives other values for the same key.
_REVISION = 1
_CHUNK = 256  # images of a task
_SYNC_SECONDS = 5.0  # between two commits: a killed command loses at most the work since the last one
_GIB = 1 << 30

Array = npt.NDArray[Any]
Report = Callable[[int, int], None]
"""Function that is called with the number of finished images and the number of all images."""


class Extractor(Protocol):
    """A fixed map from images to rows of numbers. It has to be small, because each task sends it to another process.

    Attributes:
        key: digest of everything that determines its values.
        image_size: side in pixels of the images that it takes.
        channels: channels of the images that it takes, 1 or 3.
        dimension: numbers in a row.
        dtype: NumPy's name of their type.
    """

    @property
    def key(self) -> str: ...  # noqa: D102

    @property
    def image_size(self) -> int: ...  # noqa: D102

    @property
    def channels(self) -> int: ...  # noqa: D102

    @property
    def dimension(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> str: ...  # noqa: D102

    def __call__(self, images: Pixels) -> Array:
        """Return the rows (n, dimension) of uint8 images (n, image_size, image_size, channels)."""


@dataclass(frozen=True)
class RawPixels:
    """The images themselves, as uint8 in the order rows, columns, channels."""

    image_size: int
    channels: int
    dtype: str = "uint8"

    @property
    def key(self) -> str:
        """See `Extractor`."""
        return f"pixels-{self.image_size}-{self.channels}"

    @property
    def dimension(self) -> int:
        """See `Extractor`."""
        return self.image_size * self.image_size * self.channels

    def __call__(self, images: Pixels) -> Array:
        """See `Extractor`."""
        return images.reshape(len(images), -1)


@dataclass(frozen=True)
class _Chunk:
    extractor: Extractor
    dataset: Dataset
    pieces: tuple[tuple[int, int, int], ...]  # shard, first record, last record + 1

    @property
    def count(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)


def fitted(images: Pixels, size: int, channels: int) -> Pixels:
    """Return images in the size and channels that an extractor takes, (n, size, size, channels)."""
    if images.shape[1] == size and images.shape[3] == channels:
        return images
    return np.stack([fit(image, size, channels) for image in images])


def _do(chunk: _Chunk) -> Array:
    images = np.concatenate([read_records(chunk.dataset, *piece)[0] for piece in chunk.pieces])
    rows = chunk.extractor(fitted(images, chunk.extractor.image_size, chunk.extractor.channels))
    assert rows.shape == (len(images), chunk.extractor.dimension)
    return np.ascontiguousarray(rows, dtype=chunk.extractor.dtype)


@dataclass
class FeatureFiles:
    """The entries of a cache.

    Attributes:
        cache: folder of the cache.
        limit_gib: size that all entries together may have, in GiB.
        made_images: images whose features this object computed, because they were not in the cache.
    """

    cache: Path
    limit_gib: float = 20.0
    made_images: int = 0
    _used: set[str] = field(default_factory=set)

    @cached_property
    def folder(self) -> Path:
        """Folder of the entries."""
        return self.cache / "features"

    def get(
        self,
        extractor: Extractor,
        dataset: Dataset,
        pool: TaskPool,
        report: Report | None = None,
        chosen: npt.NDArray[np.int64] | None = None,
    ) -> Array:
        """Return the features of a data set in the order of its records; compute what is not in the cache.

        Args:
            extractor: computes the features.
            dataset: the images.
            pool: the processes that compute; on other hosts they have to see the same cache folder.
            report: called with the progress.
            chosen: numbers of the images that are wanted, ascending; None for all.

        Returns:
            A read-only memory map, (count, dimension).

        Raises:
            ConfigError: the features are larger than the cache may be.
            DataError: an image is damaged.
            StorageError: the disk is full.
        """
        shape = (dataset.count if chosen is None else len(chosen), extractor.dimension)
        content = [_REVISION, extractor.key, dataset.digest, extractor.image_size, extractor.dtype]
        if chosen is not None:
            content.append(xxhash.xxh3_128_hexdigest(chosen.astype("<i8").tobytes()))
        key = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
        entry = self.folder / key
        self._used.add(key)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.cache, f"features-{key}"):
            if not (entry / "about.json").exists():
                self._evict(shape[0] * shape[1] * np.dtype(extractor.dtype).itemsize)
                chunks = list(_chunks(extractor, dataset) if chosen is None else _chosen(extractor, dataset, chosen))
                self._fill(entry, chunks, pool, report)
            with writing(entry):
                os.utime(entry)  # marks it as recently used
            return np.memmap(entry / "values", dtype=extractor.dtype, mode="r", shape=shape)

    def clear(self) -> None:
        """Remove the entries that this object made or used."""
        for key in self._used:
            shutil.rmtree(self.folder / key, ignore_errors=True)

    def _evict(self, size: int) -> None:
        """Remove the least recently used entries, until `size` more bytes fit into the limit."""
        limit = int(self.limit_gib * _GIB)
        if size > limit:
            raise ConfigError(
                f"cache_gib is {self.limit_gib:g}, but these features take {size / _GIB:.1f} GiB: "
                "raise it, take fewer images, or a smaller network"
            )
        entries = []
        for entry in self.folder.iterdir():
            try:
                used = sum(path.stat().st_blocks * 512 for path in entry.iterdir())
                entries.append((entry.stat().st_mtime, used, entry))
            except OSError:  # another command is removing this entry
                continue
        total = size + sum(used for _, used, _ in entries)
        for _, used, entry in sorted(entries):
            if total <= limit:
                return
            if entry.name not in self._used:
                shutil.rmtree(entry, ignore_errors=True)
                total -= used

    def _fill(self, entry: Path, chunks: list[tuple[int, _Chunk]], pool: TaskPool, report: Report | None) -> None:
        extractor, dataset = chunks[0][1].extractor, chunks[0][1].dataset
        count = sum(chunk.count for _, chunk in chunks)
        with writing(entry):
            entry.mkdir(exist_ok=True)
            done_path, values_path = entry / "done", entry / "values"
            done = bytearray(done_path.read_bytes() if done_path.exists() and values_path.exists() else b"")
        if len(done) != len(chunks):
            done = bytearray(len(chunks))
        todo = [number for number, is_done in enumerate(done) if not is_done]
        row_bytes = extractor.dimension * np.dtype(extractor.dtype).itemsize
        images = count - sum(chunks[number][1].count for number in todo)
        results = pool.run(_do, (chunks[number][1] for number in todo))
        last = time.monotonic()
        with writing(entry), values_path.open("r+b" if values_path.exists() else "w+b") as file:

            def commit() -> None:
                # Values before marks: after a power cut, no chunk may be marked that is not on the disk.
                file.flush()
                os.fsync(file.fileno())
                write_atomically(done_path, bytes(done), durable=False)

            try:
                for number, rows in zip(todo, results, strict=True):
                    file.seek(chunks[number][0] * row_bytes)
                    file.write(rows.data)
                    done[number] = 1
                    images += len(rows)
                    self.made_images += len(rows)
                    if report is not None:
                        report(images, count)
                    if time.monotonic() - last > _SYNC_SECONDS:
                        commit()
                        last = time.monotonic()
            finally:
                commit()
        about = {"revision": _REVISION, "extractor": extractor.key, "data": dataset.path, "shape": [count]}
        write_atomically(entry / "about.json", json.dumps(about).encode())
        sync_path(self.folder)


def _chunks(extractor: Extractor, dataset: Dataset) -> Iterator[tuple[int, _Chunk]]:
    """Yield the tasks, each with the number of its first row."""
    row = 0
    for shard, size in enumerate(dataset.sizes):
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            yield row + start, _Chunk(extractor, dataset, ((shard, start, stop),))
        row += size


def _chosen(extractor: Extractor, dataset: Dataset, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[int, _Chunk]]:
    """Yield the tasks for the chosen images, each with the number of its first row."""
    ends = np.cumsum(dataset.sizes)
    shards = np.searchsorted(ends, chosen, side="right")
    records = chosen - np.concatenate(([0], ends[:-1]))[shards]
    for first in range(0, len(chosen), _CHUNK):
        part = slice(first, first + _CHUNK)
        pieces = [(shard, at, at + 1) for shard, at in zip(shards[part].tolist(), records[part].tolist(), strict=True)]
        yield first, _Chunk(extractor, dataset, tuple(pieces))
