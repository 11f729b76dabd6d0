"""From shards to batches of images, in the order of `order.py`, prefetched.

::

    ImageStream.read(b)     batch b: order ─> (shard, record) of each slot ─> _OpenShard.read: seek, digest, decode
                            a damaged record leaves its slot empty, and moves no other image
    ImageStream.iterate     the same, prefetched by a thread, or by processes that write into shared memory
    remote shards           downloads (downloading.py) bring whole shards into the cache, in the order of their use;
                            until the first ones are complete, single records are read by range requests
    after a shard's last record of an epoch, all its bytes are compared with the manifest
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
import xxhash

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import is_whole
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.downloading import Downloads, RangeReader, RangeReaders
from dcgan_dist.data.images import Pixels, decode, decode_stored, fit
from dcgan_dist.data.loading import LoaderProcesses, SharedFlag
from dcgan_dist.data.manifest import RECORD
from dcgan_dist.data.order import SEGMENTS, EpochOrder, Integers, batches_per_epoch, rank_positions
from dcgan_dist.data.tar_index import BLOCK, Fault, Member, damaged_headers, digest_of, sample_at, scan
from dcgan_dist.errors import DataError, DcganDistError, Unreachable
from dcgan_dist.storage.remote import Interrupted, interrupted_by, shown

_OPEN_SHARDS = 256  # each holds a file descriptor; a batch reads from 64 to 128 shards
_OPEN_COPIES = 96  # of remote shards: an open copy cannot be removed from the cache
_MOST_FLAWS = 8  # reported for a shard, each time that all its bytes are compared
_CUT_OFF = "the file ends before it does"
_OTHER_BYTES = "its bytes are not those that were written"
_POSITIONS_AT_ONCE = 2048  # located together


@dataclass(frozen=True)
class Damage:
    """A record that could not be read: its shard, number and offset, its slot in the global batch, and the reason."""

    shard: str
    record: int
    offset: int
    slot: int
    reason: str


@dataclass(frozen=True)
class Flaw:
    """Damage to a shard that costs this reader no image, but may cost other readers some; with its offset."""

    shard: str
    offset: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: uint8, shape (n, size, size, channels).
        labels: int64, shape (n,); -1 for unlabelled images.
        slots: int64, shape (n,): positions in the global batch, from 0; slot mod world_size = rank if the batch size is
            a multiple of the world size.
        damage: the damaged records of this part, which are missing here, in the order of their slots.
        flaws: other damage, usually reported once each time that a process opens a shard.
    """

    images: torch.Tensor
    labels: torch.Tensor
    slots: torch.Tensor
    damage: tuple[Damage, ...] = ()
    flaws: tuple[Flaw, ...] = ()


@dataclass(frozen=True)
class Samples:
    """One rank's part of a global batch as samples of WebDataset.

    Attributes:
        samples: for each image, all members of its sample by extension, and `__key__` and `__url__`; None if damaged.
        damage: the damaged ones, in order.
        flaws: other damage; see `Batch`.
    """

    samples: tuple[dict[str, Any] | None, ...]
    damage: tuple[Damage, ...]
    flaws: tuple[Flaw, ...]


class ImageStream:
    """The images of a dataset as an endless sequence of batches, numbered across epochs.

    Batch b is batch ``b % batches_per_epoch`` of epoch ``b // batches_per_epoch``. Its content depends only on the seed
    and the global batch size, so that any number of ranks and workers sees the same batches, from any start.

    Args:
        dataset: to read.
        seed: of the order.
        batch_size: images of a global batch, over all ranks.
        rank: which part of each batch this process reads.
        world_size: number of parts.
        workers: processes that decode for `iterate`; 0 for a background thread.
        prefetch: batches read ahead (by each worker).
        on_damage: `skip` leaves the slot of a damaged record empty, `fail` raises.

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
        # These caches are created again in each process (see `__reduce__`), and are safe to use from several threads.
        any_remote = any(map(dataset.is_remote, range(len(dataset.tars))))
        # Until the shards of the first batches are downloaded, single records are read remotely.
        self._ranges = RangeReaders(2 * SEGMENTS) if any_remote else None
        self._shard = lru_cache(maxsize=_OPEN_COPIES if any_remote else _OPEN_SHARDS)(self._open_shard)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._located = lru_cache(maxsize=4)(self._locate)
        self._left = lru_cache(maxsize=2)(self._find_left)
        self._inspected: Inspected = {}

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

    def read(self, batch: int, out: Pixels | None = None) -> Batch:
        """Read this rank's part of global batch number `batch`, in this thread.

        Args:
            batch: its number.
            out: memory for its images, shape (`most_images` or more, size, size, channels); None allocates it.

        Raises:
            DataError: a shard is damaged and `on_damage` is `fail`, or a remote shard is unreachable.
        """
        epoch, number = divmod(batch, self.batches_per_epoch)
        group, member = divmod(number, self._batches_at_once)
        slots, shards, records = self._located(epoch, group)[member]
        images = self._allocate(len(slots)) if out is None else out
        labels = np.empty(len(slots), dtype=np.int64)
        damage: list[Damage] = []
        headers = np.empty((len(slots), BLOCK), dtype=np.uint8)
        # Slicing plain memory takes a third of the time of array views.
        image_memory, header_memory = images.reshape(-1).data, headers.reshape(-1).data
        length = self.dataset.image_size**2 * self.dataset.channels
        of_headers: list[int] = []  # the shard of each header
        flawed: dict[int, _OpenShard] = {}
        if self._ranges is not None and not self._ranges.done:
            self._ask_for(shards, records)
        filled = 0
        for slot, shard, record in zip(slots.tolist(), shards.tolist(), records.tolist(), strict=True):
            opened = self._shard(shard)
            if opened.flaws:
                flawed[shard] = opened
            try:
                labels[filled] = opened.read(
                    record,
                    image_memory[filled * length : (filled + 1) * length],
                    header_memory[filled * BLOCK : (filled + 1) * BLOCK],
                )
            except Unreachable:
                raise
            except DataError as error:
                damage.append(self._lost(opened, record, slot, error))
            else:
                filled += 1
                of_headers.append(shard)
        suspects = [of_headers[row] for row in damaged_headers(headers[:filled])]
        flaws = self._find_flaws(epoch, number, flawed, suspects)
        if damage:
            empty = {found.slot for found in damage}
            slots = np.array([slot for slot in slots.tolist() if slot not in empty], dtype=np.int64)
        return Batch(
            torch.from_numpy(images[:filled]),
            torch.from_numpy(labels[:filled]),
            torch.from_numpy(slots),
            tuple(damage),
            flaws,
        )

    def read_samples(self, batch: int, first: int = 0, *, decoded: bool = False) -> Samples:
        """Read the samples of this rank's part of global batch number `batch`, in this thread.

        Args:
            batch: its number.
            first: number of samples at the beginning of the part to leave out.
            decoded: whether images are decoded as by `read`, and labels and attributes parsed; else all are bytes.

        Raises:
            DataError: a shard is damaged and `on_damage` is `fail`, or a remote shard is unreachable.
        """
        epoch, number = divmod(batch, self.batches_per_epoch)
        group, member = divmod(number, self._batches_at_once)
        slots, shards, records = (part[first:] for part in self._located(epoch, group)[member])
        if self._ranges is not None and not self._ranges.done:
            self._ask_for(shards, records, whole_samples=True)
        samples: list[dict[str, Any] | None] = []
        damage: list[Damage] = []
        flawed: dict[int, _OpenShard] = {}
        for slot, shard, record in zip(slots.tolist(), shards.tolist(), records.tolist(), strict=True):
            opened = self._shard(shard)
            if opened.flaws:
                flawed[shard] = opened
            try:
                samples.append(opened.sample(record, decoded))
            except Unreachable:
                raise
            except DataError as error:
                damage.append(self._lost(opened, record, slot, error))
                samples.append(None)
        return Samples(tuple(samples), tuple(damage), self._find_flaws(epoch, number, flawed))

    @property
    def most_images(self) -> int:
        """Maximum number of images in this rank's part of a batch."""
        return -(-self.batch_size // self._world_size)

    def _allocate(self, count: int) -> Pixels:
        size, channels = self.dataset.image_size, self.dataset.channels
        return np.empty((count, size, size, channels), dtype=np.uint8)

    def _lost(self, opened: _OpenShard, record: int, slot: int, error: DataError) -> Damage:
        """Return the description of a damaged record; raise it if `on_damage` is `fail`."""
        found = Damage(opened.name, record, opened.offset(record), slot, str(error))
        if self._on_damage == "fail":
            raise self._damaged(found.shard, found.offset, f"record {record}: {error}") from error
        return found

    def _find_flaws(
        self, epoch: int, number: int, flawed: dict[int, _OpenShard], suspects: Sequence[int] = ()
    ) -> tuple[Flaw, ...]:
        """Inspect suspect shards, and those whose last record of the epoch is in this batch; return all new flaws.

        Args:
            epoch: number of the epoch.
            number: of the batch in it.
            flawed: shards with flaws that were found while reading.
            suspects: shards with a damaged header in this batch.
        """
        to_inspect = dict.fromkeys(self._left(epoch).get(number, ()), False) | dict.fromkeys(suspects, True)
        for shard, is_suspect in to_inspect.items():
            flawed[shard] = opened = self._shard(shard)
            opened.inspect(is_suspect)
        flaws = tuple(flaw for opened in flawed.values() for flaw in opened.take_flaws())
        if flaws and self._on_damage == "fail":
            raise self._damaged(flaws[0].shard, flaws[0].offset, flaws[0].reason)
        return flaws

    def _damaged(self, shard: str, offset: int, reason: str) -> DataError:
        return DataError(
            f"shard {shard!r} is damaged at byte {offset} ({reason}): restore it, or set data.on_damage to skip"
        )

    def iterate(self, start: int = 0, stop: int | None = None) -> BatchIterator:
        """Return an iterator over batches `start`, `start` + 1, … before `stop` (None: endless), read ahead.

        An error is raised at the batch that it concerns. Close the iterator, or use it in a `with` block, to end its
        thread or processes before the last batch.
        """
        numbers = itertools.count(start) if stop is None else range(start, stop)
        if self.workers:
            return _ProcessBatches(self, numbers)
        return _ThreadBatches(self, numbers)

    def shards_ahead(self, batch: int) -> list[int]:
        """Return the shards that this rank needs for `batch` and about half a shard per segment after it, in order."""
        sizes = self.dataset.sizes
        ahead = max(self.batch_size, SEGMENTS * (max(sizes) // 2))
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
        """Return slots, shards and records of each batch in a group of consecutive ones."""
        first = group * self._batches_at_once
        numbers = range(first, min(first + self._batches_at_once, self.batches_per_epoch))
        positions = [rank_positions(number, self.batch_size, self._rank, self._world_size) for number in numbers]
        shards, records = self._order(epoch).locate(np.concatenate(positions))
        cuts = np.cumsum([len(part) for part in positions])[:-1]
        slots = [part - number * self.batch_size for part, number in zip(positions, numbers, strict=True)]
        return list(zip(slots, np.split(shards, cuts), np.split(records, cuts), strict=True))

    def _ask_for(self, shards: Integers, records: Integers, whole_samples: bool = False) -> None:
        """Request the records of a batch from remote shards that are not on this host yet."""
        assert self._ranges is not None
        asked = [
            self._shard(shard).ask(record, whole_samples)
            for shard, record in zip(shards.tolist(), records.tolist(), strict=True)
        ]
        self._ranges.done = not any(asked)

    def _find_left(self, epoch: int) -> dict[int, list[int]]:
        """Return, by batch, the shards whose last record in an epoch is read by this rank."""
        last = self._order(epoch).last_positions(self.batches_per_epoch * self.batch_size)
        found: dict[int, list[int]] = {}
        for shard in np.flatnonzero((last >= 0) & (last % self._world_size == self._rank)).tolist():
            found.setdefault(int(last[shard]) // self.batch_size, []).append(shard)
        return found

    def _open_shard(self, shard: int) -> _OpenShard:
        ranges = None if self._ranges is None else self._ranges.of(self.dataset, shard)
        return _OpenShard(self.dataset, shard, self._inspected, ranges)


def _make_stream(dataset: Dataset, settings: dict[str, Any]) -> ImageStream:
    return ImageStream(dataset, **settings)


Inspected = dict[int, tuple[tuple[int, int, int], bool]]
"""The shards whose bytes have all been compared: the file's (inode, size, time of last change), and whether flaws were
found."""


class _OpenShard:
    """An open shard: its index and its file.

    The file is read, not mapped: if the disk fails or the file is truncated, only its images are lost, while access to
    a map would kill the process. Three checks: the size when the file is opened; each record and its header whenever
    they are read; and all bytes after the last record of an epoch, in the first epoch and after any change of the file.
    """

    def __init__(self, dataset: Dataset, shard: int, inspected: Inspected, ranges: RangeReader | None = None) -> None:
        about = self._about = dataset.manifest.shards[shard]
        self.name = about.file
        self._number, self._known = shard, inspected
        self.flaws: list[Flaw] = []
        self._size, self._channels = dataset.image_size, dataset.channels
        self._encoding, self._fitted = dataset.manifest.encoding, dataset.fitted
        self._classes = dataset.classes
        self._url, self._find_extents = shown(dataset.tars[shard]), partial(dataset.extents, shard)
        self._open_tar, self._ranges = partial(dataset.open_tar, shard), ranges
        self._file: int | None = None
        self._length = 0
        self._missing: str | None = None
        self._records: npt.NDArray[np.void] = np.empty(0, dtype=RECORD)
        try:
            self._records = dataset.records(shard)
            if ranges is None:
                self._opened()
        except Unreachable:
            raise
        except DataError as error:
            self._missing = str(error)

    def offset(self, record: int) -> int:
        """Return the offset of a record's image in the tar; 0 if unknown."""
        return int(self._records["offset"][record]) if record < len(self._records) else 0

    def ask(self, record: int, whole_sample: bool = False) -> bool:
        """Request a record from remote storage while the shard is still being downloaded; return whether requested."""
        if self._ranges is None or self._missing is not None:
            return False
        if whole_sample:
            first, end = self._extents[record].tolist()
            return self._ranges.ask(first, end - first)
        start, size, *_ = self._records.item(record)
        return self._ranges.ask(start - BLOCK, BLOCK + size)

    def read(self, record: int, out: memoryview, header: memoryview) -> int:
        """Decode a record's image; return its label.

        Args:
            record: its index among the shard's records that are used.
            out: memory for the image, size * size * channels bytes.
            header: memory for the tar header before it, 512 bytes.

        Raises:
            DataError: the record is damaged.
        """
        if self._missing is not None:
            raise DataError(self._missing)
        # One call for all fields is the fastest way to get single values from an array.
        start, size, label, digest, _, _ = self._records.item(record)
        if self._encoding == "raw" and self._file is not None and size == out.nbytes:
            self._read_into(start - BLOCK, header, out)
            if xxhash.xxh3_64_intdigest(out) != digest:
                raise DataError(_OTHER_BYTES)
            return int(label)
        both = self._fetch(start - BLOCK, BLOCK + size, slice(BLOCK, None), digest)
        content = memoryview(both)[BLOCK:]
        if len(content) < size:
            raise DataError(_CUT_OFF)
        if xxhash.xxh3_64_intdigest(content) != digest:
            raise DataError(_OTHER_BYTES)
        header[:] = both[:BLOCK]
        self._decode(content, np.frombuffer(out, dtype=np.uint8).reshape(self._size, self._size, self._channels))
        return int(label)

    def sample(self, record: int, decoded: bool) -> dict[str, Any]:
        """Return all members of the sample of a record; see `ImageStream.read_samples`.

        Raises:
            DataError: the sample is damaged, or may have lost a member because of damage next to it.
        """
        if self._missing is not None:
            raise DataError(self._missing)
        image_at, size, label, digest, _, _ = self._records.item(record)
        start, stop = self._extents[record].tolist()
        image = slice(image_at - start, image_at - start + size)
        content = memoryview(self._fetch(start, stop - start, image, digest))
        if len(content) < stop - start:
            raise DataError(_CUT_OFF)
        if xxhash.xxh3_64_intdigest(content[image]) != digest:
            raise DataError(_OTHER_BYTES)
        key, members = sample_at(content, image.start, start)
        found: dict[str, Any] = {"__key__": key, "__url__": self._url}
        found |= {
            extension: bytes(content[member.offset : member.offset + member.size])
            for extension, member in members.items()
        }
        if label >= 0 and "cls" in found and not self._is_label(found["cls"], label):
            raise DataError("its label is not the one that was written")
        if not decoded:
            return found
        extension = next(extension for extension, member in members.items() if member.offset == image.start)
        pixels = np.empty((self._size, self._size, self._channels), dtype=np.uint8)
        self._decode(content[image], pixels)
        found[extension] = pixels
        if label >= 0 and "cls" in found:
            found["cls"] = label
        if "json" in found:
            try:
                found["json"] = json.loads(found["json"])
            except (ValueError, RecursionError) as error:
                raise DataError(f"its JSON cannot be read ({type(error).__name__})") from error
        return found

    @cached_property
    def _extents(self) -> Integers:
        return self._find_extents()

    def _is_label(self, content: bytes, label: int) -> bool:
        """Return whether the content of a ``.cls`` is the number or the name of a label."""
        text = content.decode("utf-8", "replace").strip()
        names = {str(label), *self._classes[label : label + 1]}
        return text in names or (is_whole(text) and str(int(text)) in names)

    def _read_into(self, start: int, header: memoryview, out: memoryview) -> None:
        """Read a header and the raw values after it directly into their memory.

        Raises:
            DataError: they cannot be read completely.
        """
        assert self._file is not None
        try:
            got = os.preadv(self._file, (header, out), start)
        except OSError as error:
            raise DataError(f"it cannot be read ({error.strerror})") from error
        if got < BLOCK + out.nbytes:
            raise DataError(_CUT_OFF)

    def _fetch(self, start: int, size: int, image: slice, digest: int) -> bytes:
        """Return bytes of the shard, among them an image, from a range request if that image has the right digest.

        Otherwise from the downloaded shard, which decides whether the image is damaged.

        Raises:
            DataError: they cannot be read.
        """
        if self._ranges is not None:
            content = self._ranges.take(start, size)
            if content is not None and xxhash.xxh3_64_intdigest(content[image]) == digest:
                return bytes(content)
        return self._bytes(start, size)

    def _bytes(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on; fewer if the file ends before.

        Raises:
            DataError: they cannot be read.
        """
        try:
            return os.pread(self._file if self._file is not None else self._opened(), size, start)
        except OSError as error:
            raise DataError(f"it cannot be read ({error.strerror})") from error

    def _opened(self) -> int:
        """Open the file, check its size, and return its descriptor.

        Raises:
            DataError: it is missing, or remote and unreachable.
        """
        self._ranges = None
        try:
            file = self._open_tar()
        except Unreachable:
            raise
        except DataError as error:
            self._missing = str(error)
            raise
        weakref.finalize(self, file.close)
        number = self._file = file.fileno()
        has, had = os.fstat(number).st_size, self._about.bytes
        if has != had:
            what = "it is cut off" if has < had else "it continues after its end"
            self.flaws.append(Flaw(self.name, min(has, had), f"{what}: it has {has} bytes, not {had}"))
        self._length = has
        return number

    def inspect(self, is_suspect: bool) -> None:
        """Compare all bytes with the manifest's digest, and note differences outside the images that are used.

        A file is compared once, unless it changes.

        Args:
            is_suspect: whether a damaged header was seen: then even a file that was intact before is compared again.
        """
        if self._missing is not None:
            return
        try:
            file = self._file if self._file is not None else self._opened()
            status = os.fstat(file)
            state = (status.st_ino, status.st_size, status.st_mtime_ns)
            known, was_flawed = self._known.get(self._number, (None, False))
            if known == state and (was_flawed or not is_suspect):
                return
            flaws = [] if digest_of(file) == self._about.digest else self._flaws_within(file)
            self._known[self._number] = state, bool(flaws)
        except OSError as error:
            flaws = [Flaw(self.name, 0, f"it cannot be read ({error.strerror})")]
        self.flaws += flaws

    def take_flaws(self) -> list[Flaw]:
        """Return the flaws noted since the last call."""
        found, self.flaws = self.flaws, []
        return found

    def _flaws_within(self, file: int) -> list[Flaw]:
        """Find why the digest differs: headers, labels, other bytes. Damaged images are reported when they are read."""
        if not self._length:
            return []
        # All bytes have just been read without an error, so a map is safe; and a shard made elsewhere may be huge.
        archive = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
        intact = [
            xxhash.xxh3_64_intdigest(archive[start : start + size]) == digest
            for start, size, _, digest, *_ in self._records.tolist()
        ]
        if intact and not any(intact):
            return []  # the file is another shard: all images are reported as damaged, and that is enough
        found: list[Flaw] = []
        record_of = {offset: record for record, offset in enumerate(self._records["offset"].tolist())}
        labels: dict[str, set[str]] = {}
        texts: dict[str, Member] = {}
        for part in scan(archive):
            if isinstance(part, Fault):
                found.append(Flaw(self.name, part.offset, f"it {part.reason}, where other readers may stop"))
                continue
            key = part.name.partition(".")[0]
            if part.offset in record_of:
                label = int(self._records["label"][record_of[part.offset]])
                labels[key] = {str(label), *self._classes[label : label + 1]} if label >= 0 else set()
            elif part.name.endswith(".cls"):
                texts[key] = part
        for key in texts.keys() & labels.keys():
            start, stop = texts[key].offset, texts[key].offset + texts[key].size
            if bytes(archive[start:stop]).decode("utf-8", "replace").strip() not in labels[key]:
                found.append(Flaw(self.name, start, f"{texts[key].name!r} is not the label that was written"))
        found.sort(key=lambda flaw: flaw.offset)
        if all(intact) and not found and self._length == self._about.bytes:
            found.append(Flaw(self.name, 0, "bytes outside its images are not those that were written"))
        more = len(found) - _MOST_FLAWS
        if more > 0:
            found[_MOST_FLAWS:] = [Flaw(self.name, found[_MOST_FLAWS].offset, f"{more} more like these")]
        return found

    def _decode(self, content: memoryview, out: Pixels) -> None:
        if self._encoding == "raw" and len(content) == out.nbytes:
            out[:] = np.frombuffer(content, dtype=np.uint8).reshape(out.shape)
        elif self._fitted:
            out[:] = fit(decode(bytes(content), self._channels), self._size, self._channels)
        elif self._encoding != "jpg" or not _decode_jpeg(content, out):
            out[:] = decode_stored(bytes(content), self._encoding, self._size, self._channels)


def _decode_jpeg(content: memoryview, out: Pixels) -> bool:
    """Decode a JPEG into `out`; return False if it is not a plain one as `prepare` writes it."""
    try:
        kind = "GRAY" if out.shape[2] == 1 else "RGB"
        shape = simplejpeg.decode_jpeg(content, colorspace=kind, buffer=out, strict=True).shape
    except ValueError:
        return False
    return bool(shape == out.shape)


class BatchIterator(Iterator[Batch]):
    """An iterator over batches that are read ahead in the background; see `ImageStream.iterate`."""

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
        """Return the next batch; wait until it is read."""

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
        self._numbers = iter(numbers)
        dataset = stream.dataset
        self._shape = stream.most_images, dataset.image_size, dataset.image_size, dataset.channels
        # Shared with the workers, so that `close` also ends those that wait for a shard.
        self._closed = SharedFlag()
        self._loaders = LoaderProcesses(
            _ReadInto(stream, self._shape, self._closed), stream.workers, stream.prefetch, math.prod(self._shape)
        )
        self._downloads = Downloads(dataset, stream.batch_size, stream.shards_ahead)
        for _ in range(self._loaders.free):
            self._read_one_more()

    def __next__(self) -> Batch:
        answered = self._loaders.answer()
        if answered is None:
            raise StopIteration
        found, slot = answered
        if isinstance(found, DcganDistError):
            self._read_one_more()
            raise found
        # A copy, since the memory is used again for another batch.
        images = np.frombuffer(slot, dtype=np.uint8).reshape(self._shape)[: len(found.labels)].copy()
        self._read_one_more()
        labels, slots = torch.from_numpy(found.labels), torch.from_numpy(found.slots)
        return Batch(torch.from_numpy(images), labels, slots, found.damage, found.flaws)

    def close(self) -> None:
        self._numbers = iter(())
        self._closed.set()
        self._downloads.close()
        self._loaders.close()

    def _read_one_more(self) -> None:
        for number in itertools.islice(self._numbers, 1):
            self._downloads.begin(number)
            self._loaders.ask(number)


@dataclass(frozen=True)
class _WithoutImages:
    """A batch without its images, which are in shared memory; see `Batch`."""

    labels: Integers
    slots: Integers
    damage: tuple[Damage, ...]
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True)
class _ReadInto:
    """Reads a batch in a worker process, its images into shared memory."""

    stream: ImageStream
    shape: tuple[int, ...]
    closed: SharedFlag

    def __call__(self, number: int, slot: memoryview) -> _WithoutImages | DcganDistError:
        try:
            with interrupted_by(self.closed):
                batch = self.stream.read(number, np.frombuffer(slot, dtype=np.uint8).reshape(self.shape))
        except DcganDistError as error:
            return error
        except Interrupted:
            return DcganDistError("the stream is closed")  # nobody waits for this answer any more
        return _WithoutImages(batch.labels.numpy(), batch.slots.numpy(), batch.damage, batch.flaws)


def read_records(dataset: Dataset, shard: int, start: int, stop: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Read consecutive records of a shard in the order of its file, in this thread.

    Returns:
        Images of shape (stop - start, size, size, channels), and their labels, -1 if there is none.

    Raises:
        DataError: a record is damaged, or the shard is remote and unreachable.
    """
    opened = _OpenShard(dataset, shard, {})
    side = dataset.image_size
    images = np.empty((stop - start, side, side, dataset.channels), dtype=np.uint8)
    labels = np.empty(stop - start, dtype=np.int64)
    header = memoryview(bytearray(BLOCK))
    for index, record in enumerate(range(start, stop)):
        try:
            labels[index] = opened.read(record, images[index].reshape(-1).data, header)
        except Unreachable:
            raise
        except DataError as error:
            where = f"shard {opened.name!r} of {dataset.path!r} is damaged at byte {opened.offset(record)}"
            raise DataError(f"{where} (record {record}): {error}; restore it, or run prepare again") from error
    return images, labels


__all__ = ["Batch", "BatchIterator", "Damage", "Flaw", "ImageStream", "Samples", "read_records"]
