"""From shards to batches of images, in the order of `order`, read ahead of the step that uses them."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import simplejpeg
import torch
import torch.utils.data
import xxhash

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.downloading import Downloads
from dcgan_dist.data.images import Pixels, decode, decode_stored, fit
from dcgan_dist.data.order import RUNS, EpochOrder, Integers, batches_per_epoch, rank_positions
from dcgan_dist.data.remote import Flag, interrupted_by
from dcgan_dist.errors import DataError, DcganDistError, Unreachable

_OPEN_SHARDS = 256  # each holds a file descriptor; a batch meets 64 to 128 shards
_OPEN_COPIES = 96  # of remote shards: what is open cannot make room for others
_POSITIONS_AT_ONCE = 2048  # whose order is worked out together


@dataclass(frozen=True)
class Damage:
    """A record that could not be delivered: which one, where in the global batch it is missing, and why."""

    shard: str
    record: int
    offset: int
    slot: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: uint8, shape (n, size, size, channels).
        labels: int64, shape (n,); -1 for unlabelled images.
        slots: int64, shape (n,): places in the global batch, from 0, each with slot mod world_size = rank (where the
            batch size is a multiple of the world size).
        damage: records that are missing among these, in the order of their slots.
    """

    images: torch.Tensor
    labels: torch.Tensor
    slots: torch.Tensor
    damage: tuple[Damage, ...] = ()


class ImageStream:
    """The images of a dataset as an endless row of batches, numbered on over the epochs.

    Batch b is batch ``b % batches_per_epoch`` of epoch ``b // batches_per_epoch``. What is in it depends on the seed
    and the global batch size alone, so that any number of ranks and workers sees the same row, from any start.

    Args:
        dataset: what to read.
        seed: seed of the order.
        batch_size: images of a global batch, over all ranks.
        rank: which part of each batch this process reads.
        world_size: number of parts.
        workers: processes that decode for `iterate`; 0 for a background thread.
        prefetch: batches kept ready (by each worker).
        on_damage: `skip` leaves the place of a damaged record empty, `fail` raises.

    Raises:
        DataError: the dataset has fewer images than one global batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 4,
        on_damage: Literal["skip", "fail"] = "skip",
    ) -> None:
        assert 0 <= rank < world_size
        self.dataset = dataset
        self.batch_size = batch_size
        self.workers = workers
        self.prefetch = prefetch
        self.batches_per_epoch = batches_per_epoch(dataset.count, batch_size)
        if not self.batches_per_epoch:
            raise DataError(
                f"{dataset.path!r} has {dataset.count} images, fewer than one global batch: "
                f"set training.batch_size ({batch_size}) to at most that"
            )
        self._seed, self._rank, self._world_size, self._on_damage = seed, rank, world_size, on_damage
        self._batches_at_once = max(1, _POSITIONS_AT_ONCE * world_size // batch_size)
        # Made anew in each process, and safe to use from several threads.
        any_remote = any(map(dataset.is_remote, range(len(dataset.tars))))
        self._shard = lru_cache(maxsize=_OPEN_COPIES if any_remote else _OPEN_SHARDS)(self._open_shard)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._located = lru_cache(maxsize=4)(self._locate)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_stream, (
            self.dataset,
            {
                "seed": self._seed,
                "batch_size": self.batch_size,
                "rank": self._rank,
                "world_size": self._world_size,
                "workers": self.workers,
                "prefetch": self.prefetch,
                "on_damage": self._on_damage,
            },
        )

    def read(self, batch: int) -> Batch:
        """Read this rank's part of global batch number `batch`, here and now.

        Raises:
            DataError: a record is damaged and `on_damage` is `fail`; or remote shards cannot be had.
        """
        epoch, number = divmod(batch, self.batches_per_epoch)
        group, member = divmod(number, self._batches_at_once)
        slots, shards, records = self._located(epoch, group)[member]
        dataset = self.dataset
        images = np.empty((len(slots), dataset.image_size, dataset.image_size, dataset.channels), dtype=np.uint8)
        labels = np.empty(len(slots), dtype=np.int64)
        damage: list[Damage] = []
        filled = 0
        for slot, shard, record in zip(slots.tolist(), shards.tolist(), records.tolist(), strict=True):
            opened = self._shard(shard)
            try:
                labels[filled] = opened.read(record, images[filled])
            except DataError as error:
                found = Damage(opened.name, record, opened.offset(record), slot, str(error))
                if self._on_damage == "fail":
                    raise DataError(
                        f"shard {found.shard!r} is damaged at byte {found.offset} (record {record}): {error}; "
                        f"restore it, or set data.on_damage to skip"
                    ) from error
                damage.append(found)
            else:
                filled += 1
        if damage:
            empty = {found.slot for found in damage}
            slots = np.array([slot for slot in slots.tolist() if slot not in empty], dtype=np.int64)
        return Batch(
            torch.from_numpy(images[:filled]),
            torch.from_numpy(labels[:filled]),
            torch.from_numpy(slots),
            tuple(damage),
        )

    def iterate(self, start: int = 0, stop: int | None = None) -> BatchIterator:
        """Read batches `start`, `start` + 1, … ahead of their use, up to `stop` (left out, without end).

        An error comes up at the batch that it concerns. Close the iterator, or use it in a `with` block, to end its
        thread or processes before the last batch.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        if self.workers:
            return _ProcessBatches(self, numbers)
        return _ThreadBatches(self, numbers)

    def shards_ahead(self, batch: int) -> list[int]:
        """Return the shards that this rank needs for `batch` and for about half a shard per run after it, in order."""
        sizes = self.dataset.sizes
        ahead = max(self.batch_size, RUNS * (max(sizes) // 2))
        epoch, number = divmod(batch, self.batches_per_epoch)
        start, length = number * self.batch_size, self.batches_per_epoch * self.batch_size
        parts = [(epoch, start, min(start + ahead, length)), (epoch + 1, 0, min(start + ahead - length, length))]
        found: dict[int, None] = {}
        for of_epoch, first, last in parts:
            if first < last:
                named = self._order(of_epoch).shards_between(first, last, self._rank, self._world_size)
                found |= dict.fromkeys(named.tolist())
        return list(found)

    def _make_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.dataset.sizes, self._seed, epoch)

    def _locate(self, epoch: int, group: int) -> list[tuple[Integers, Integers, Integers]]:
        """Return slots, shards and records of each batch of a group of successive ones."""
        first = group * self._batches_at_once
        numbers = range(first, min(first + self._batches_at_once, self.batches_per_epoch))
        positions = [rank_positions(number, self.batch_size, self._rank, self._world_size) for number in numbers]
        shards, records = self._order(epoch).locate(np.concatenate(positions))
        cuts = np.cumsum([len(part) for part in positions])[:-1]
        slots = [part - number * self.batch_size for part, number in zip(positions, numbers, strict=True)]
        return list(zip(slots, np.split(shards, cuts), np.split(records, cuts), strict=True))

    def _open_shard(self, shard: int) -> _OpenShard:
        return _OpenShard(self.dataset, shard)


def _make_stream(dataset: Dataset, settings: dict[str, Any]) -> ImageStream:
    return ImageStream(dataset, **settings)


class _OpenShard:
    """A shard in memory: its index, and its bytes as a map of the file."""

    def __init__(self, dataset: Dataset, shard: int) -> None:
        about = dataset.manifest.shards[shard]
        self.name = about.file
        self._size, self._channels = dataset.image_size, dataset.channels
        self._encoding, self._fitted = dataset.manifest.encoding, dataset.fitted
        self._missing: str | None = None
        self._offsets = self._sizes = self._labels = self._digests = np.empty(0, dtype=np.int64)
        try:
            records = dataset.records(shard)
            # An array of its own for each field: the fastest to take single values from.
            self._offsets, self._sizes = records["offset"].astype(np.int64), records["size"].astype(np.int64)
            self._labels, self._digests = records["label"].astype(np.int64), records["digest"].copy()
            self._content = dataset.content(shard)
        except Unreachable:
            raise
        except DataError as error:
            self._missing = str(error)

    def offset(self, record: int) -> int:
        """Return where a record's image is in the tar, 0 where that is not known."""
        return self._offsets.item(record) if record < len(self._offsets) else 0

    def read(self, record: int, out: Pixels) -> int:
        """Decode a record's image into `out` (size, size, channels), and return its label.

        Raises:
            DataError: the record is damaged.
        """
        if self._missing is not None:
            raise DataError(self._missing)
        start, size = self._offsets.item(record), self._sizes.item(record)
        content = self._content[start : start + size]
        if len(content) < size:
            raise DataError(f"the file ends at byte {len(self._content)}")
        if xxhash.xxh3_64_intdigest(content) != self._digests.item(record):
            raise DataError("its bytes are not those that were written")
        self._decode(content, out)
        label: int = self._labels.item(record)
        return label

    def _decode(self, content: memoryview, out: Pixels) -> None:
        if self._encoding == "raw" and len(content) == out.nbytes:
            out[:] = np.frombuffer(content, dtype=np.uint8).reshape(out.shape)
        elif self._fitted:
            out[:] = fit(decode(bytes(content), self._channels), self._size, self._channels)
        elif self._encoding != "jpg" or not _decode_jpeg(content, out):
            out[:] = decode_stored(bytes(content), self._encoding, self._size, self._channels)


def _decode_jpeg(content: memoryview, out: Pixels) -> bool:
    """Decode a JPEG right into its place; return False where it is not the plain one that `prepare` writes."""
    try:
        kind = "GRAY" if out.shape[2] == 1 else "RGB"
        shape = simplejpeg.decode_jpeg(content, colorspace=kind, buffer=out, strict=True).shape
    except ValueError:
        return False
    return bool(shape == out.shape)


class BatchIterator(Iterator[Batch]):
    """Batches that are read ahead in the background; see `ImageStream.iterate`."""

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if need be."""

    @abstractmethod
    def close(self) -> None:
        """End the thread or processes that read ahead."""


class _ThreadBatches(BatchIterator):
    """Batches read by one background thread."""

    def __init__(self, stream: ImageStream, numbers: Iterable[int]) -> None:
        self._stream = stream
        self._numbers = iter(numbers)
        self._downloads = Downloads(stream.dataset, stream.batch_size, stream.shards_ahead)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dcgan_dist-read")
        self._ahead: deque[Future[Batch]] = deque()
        for _ in range(stream.prefetch):
            self._read_one_more()

    def __next__(self) -> Batch:
        if not self._ahead:
            raise StopIteration
        batch = self._ahead.popleft().result()
        self._read_one_more()
        return batch

    def close(self) -> None:
        self._ahead.clear()
        self._numbers = iter(())
        self._downloads.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_one_more(self) -> None:
        for number in itertools.islice(self._numbers, 1):
            self._downloads.begin(number)
            self._ahead.append(self._pool.submit(self._read, number))

    def _read(self, number: int) -> Batch:
        with interrupted_by(self._downloads.closed):
            return self._stream.read(number)


class _ProcessBatches(BatchIterator):
    """Batches read by worker processes, in the order of their numbers."""

    def __init__(self, stream: ImageStream, numbers: Iterable[int]) -> None:
        self._downloads = Downloads(stream.dataset, stream.batch_size, stream.shards_ahead)
        # Shared with the workers, so that none of them goes on waiting for a shard.
        self._closed = multiprocessing.get_context("spawn").Event()
        loader = torch.utils.data.DataLoader(
            _ByNumber(stream, self._closed),
            batch_size=None,
            sampler=_Numbers(numbers, self._downloads.begin),
            collate_fn=_as_it_is,
            num_workers=stream.workers,
            prefetch_factor=stream.prefetch,
            # A forked copy of a process with threads (CUDA, gloo, fsspec) may hang; a new one does not.
            multiprocessing_context="spawn",
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
        self._batches: Iterator[Batch | DcganDistError] | None = iter(loader)

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        batch = next(self._batches)
        if isinstance(batch, DcganDistError):
            raise batch
        return batch

    def close(self) -> None:
        self._closed.set()
        self._downloads.close()
        self._batches = None  # the loader ends its workers with its iterator


class _ByNumber(torch.utils.data.Dataset[Batch | DcganDistError]):
    """A stream as what a DataLoader reads: item b is batch b."""

    def __init__(self, stream: ImageStream, closed: Flag) -> None:
        self._stream, self._closed = stream, closed

    def __getitem__(self, number: int) -> Batch | DcganDistError:
        try:
            with interrupted_by(self._closed):
                return self._stream.read(number)
        except DcganDistError as error:
            # Handed over as a value: the loader would wrap what is raised into a page of traceback.
            return error


class _Numbers(torch.utils.data.Sampler[int]):
    """Numbers of batches, telling of each as it is handed out."""

    def __init__(self, numbers: Iterable[int], begin: Callable[[int], None]) -> None:
        self._numbers, self._begin = numbers, begin

    def __iter__(self) -> Iterator[int]:
        for number in self._numbers:
            self._begin(number)
            yield number


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


__all__ = ["Batch", "BatchIterator", "Damage", "ImageStream"]
