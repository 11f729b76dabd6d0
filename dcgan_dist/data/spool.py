"""The spool: an intermediate file for sources that can only be read from the beginning, such as compressed archives.

Worker processes decode and encode the images, and they are appended to the spool in the order of the source. Then the
shards are filled from the spool in an order given by a hash of (seed, number of the image). A journal next to the spool
has a line for each block of it. A run that continues an interrupted one reads the source again, but does not decode
again what is in the spool.
"""

from __future__ import annotations

import json
import mmap
import os
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.shard_writer import Encoded, Recipe, Sample, Skipped, encoded
from dcgan_dist.data.sources import Content, EncodedImage, Folders, Item, Source, classes_of
from dcgan_dist.errors import DataError
from dcgan_dist.parallel import TaskPool

SPOOL_NAME = "images.unordered"
JOURNAL_NAME = "images.journal"

_CHUNK_ITEMS = 64
_CHUNK_BYTES = 1 << 22
_BLOCK_ITEMS = 1024
_BLOCK_BYTES = 1 << 24


@dataclass
class Spool:
    """Encoded images in the order of the source, and their descriptions.

    Attributes:
        path: the file of images, each followed by its attributes.
        inputs: number of inputs of the source that were processed.
        found: number of images at the beginning, from a previous run.
        is_whole: whether the source was read to its end.
        numbers: number in the source, of each image.
        sizes: size in bytes, of each image.
        json_sizes: size of the attributes in bytes, of each image.
        folder_numbers: index in `folders`, of each image.
        folders: all folders, in the order of their first use.
        skipped: the inputs that were left out.
        bad: how many of these may have been images.
        remarks: what was noticed about the images.
    """

    path: Path
    inputs: int = 0
    found: int = 0
    is_whole: bool = False
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    json_sizes: array[int] = field(default_factory=lambda: array("I"))
    folder_numbers: array[int] = field(default_factory=lambda: array("I"))
    folders: dict[Folders, int] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    bad: int = 0
    remarks: Remarks = Remarks()  # noqa: RUF009 it is immutable

    def cut(self, source: Source, recipe: Recipe) -> tuple[tuple[str, ...], Iterator[SpoolSamples]]:
        """Return the names of the classes, and the content of each shard."""
        classes, by_folders = classes_of(self.folders.keys(), source.classes, source.label_folder)
        by_folder = np.array([by_folders[folders] for folders in self.folders], dtype=np.int32)
        numbers, sizes = np.frombuffer(self.numbers, np.uint64), np.frombuffer(self.sizes, np.uint32)
        json_sizes, folders = np.frombuffer(self.json_sizes, np.uint32), np.frombuffer(self.folder_numbers, np.uint32)
        ends = np.cumsum(sizes.astype(np.int64) + json_sizes)
        order = _order(self.numbers, recipe.seed)

        def shards() -> Iterator[SpoolSamples]:
            for start in range(0, len(order), recipe.shard_size):
                which = order[start : start + recipe.shard_size]
                offsets = ends[which] - sizes[which] - json_sizes[which]
                rows = (numbers[which], offsets, sizes[which], json_sizes[which], by_folder[folders[which]])
                yield SpoolSamples(self.path, np.stack([column.astype(np.int64) for column in rows], axis=1))

        return classes, shards()

    def add(self, block: dict[str, Any]) -> None:
        """Add a block, given by its line of the journal."""
        self.remarks += Remarks(**block["remarks"])
        self.inputs += block["inputs"]
        for number, size, json_size, folder_number in block["rows"]:
            self.numbers.append(number)
            self.sizes.append(size)
            self.json_sizes.append(json_size)
            self.folder_numbers.append(folder_number)
        for folders in block["folders"]:
            self.folders[tuple(folders)] = len(self.folders)
        self.skipped += block["skipped"]
        self.bad += block["bad"]
        self.is_whole = block["end"]


@dataclass(frozen=True)
class SpoolSamples:
    """The images of one shard in a spool; see `shard_writer.Samples`.

    Attributes:
        path: of the spool.
        rows: number, offset, size, size of the attributes and label of each image, int64 of shape (images, 5).
    """

    path: Path
    rows: npt.NDArray[np.int64]

    def read(self) -> Iterator[Sample]:
        """See `Samples`."""
        with self.path.open("rb") as file:
            for number, offset, size, json_size, label in self.rows.tolist():
                content = os.pread(file.fileno(), size + json_size, offset)
                yield Sample(number, label, Encoded(content[:size], content[size:]))


def _order(numbers: array[int], seed: int) -> npt.NDArray[np.intp]:
    """Return a permutation that depends only on the seed and the numbers, not on the version of a random generator."""
    keys = [xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"), seed) for number in numbers]
    return np.argsort(np.array(keys, dtype=np.uint64), kind="stable")


def fill_spool(
    source: Source, recipe: Recipe, folder: Path, pool: TaskPool, watch: Callable[[Spool, float], None]
) -> Spool:
    """Decode and encode a source into a spool, or continue the spool of a previous run.

    Args:
        source: of the images.
        recipe: how to convert them.
        folder: of the spool and its journal; existing ones must be of this source and recipe.
        pool: decodes and encodes.
        watch: called after each block with the spool and the share of the source that was processed.

    Raises:
        DataError: the source is damaged.
        OSError: the disk is full or fails.
    """
    spool, journal_bytes = _resume(folder)
    if spool.is_whole:
        return spool
    with spool.path.open("ab", buffering=0) as images, (folder / JOURNAL_NAME).open("ab", buffering=0) as journal:
        images.truncate(int(sum(spool.sizes) + sum(spool.json_sizes)))
        journal.truncate(journal_bytes)
        writer = _BlockWriter(spool, images, journal)
        share = 0.0
        items = islice(source.items(), spool.inputs, recipe.count)
        with closing(_encoded(items, recipe, pool, spool.inputs)) as results:
            for number, item, result in results:
                writer.add(number, item, result)
                share = item.share
                if writer.is_full:
                    writer.flush(is_end=False)
                    watch(spool, share)
        writer.flush(is_end=True)
        watch(spool, share)
    return spool


def _resume(folder: Path) -> tuple[Spool, int]:
    """Return the intact blocks of a spool, and the length in bytes of their journal lines."""
    spool, length, position = Spool(folder / SPOOL_NAME), 0, 0
    try:
        with spool.path.open("rb") as file, (folder / JOURNAL_NAME).open("rb") as journal:
            images = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            for line in journal:
                digest, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or digest.decode("latin-1") != xxhash.xxh3_64_hexdigest(text):
                    break
                block = json.loads(text)
                stop = position + sum(size + json_size for _, size, json_size, _ in block["rows"])
                if xxhash.xxh3_64_hexdigest(images[position:stop]) != block["digest"]:
                    break
                spool.add(block)
                length, position = length + len(line), stop
    except (FileNotFoundError, ValueError, KeyError):  # no file yet; an empty one, which cannot be mapped; an older one
        pass  # start from the blocks read so far
    spool.found = len(spool.numbers)
    return spool, length


class _BlockWriter:
    """Collects results, and appends them to the spool and its journal in blocks."""

    def __init__(self, spool: Spool, images: IO[bytes], journal: IO[bytes]) -> None:
        self._spool, self._images, self._journal = spool, images, journal
        self._clear()

    def _clear(self) -> None:
        self._content: list[bytes] = []
        self._bytes = self._inputs = 0
        self._rows: list[tuple[int, int, int, int]] = []
        self._folders: dict[Folders, int] = {}
        self._skipped: list[Skipped] = []
        self._remarks = Remarks()

    @property
    def is_full(self) -> bool:
        return self._inputs >= _BLOCK_ITEMS or self._bytes >= _BLOCK_BYTES

    def add(self, number: int, item: Item, result: Encoded | Skipped) -> None:
        self._inputs += 1
        if isinstance(result, Skipped):
            self._skipped.append(result)
            return
        image, attributes = result.image, result.attributes
        self._remarks += result.remarks
        known = self._spool.folders
        if item.folders not in known:
            self._folders.setdefault(item.folders, len(known) + len(self._folders))
        folder_number = known.get(item.folders, self._folders.get(item.folders, 0))
        self._rows.append((number, len(image), len(attributes), folder_number))
        self._content += (image, attributes)
        self._bytes += len(image) + len(attributes)

    def flush(self, *, is_end: bool) -> None:
        content = b"".join(self._content)
        block = {
            "inputs": self._inputs,
            "rows": self._rows,
            "folders": list(self._folders),
            "skipped": [entry.entry() for entry in self._skipped],
            "bad": sum(entry.is_bad for entry in self._skipped),
            "remarks": asdict(self._remarks),
            "digest": xxhash.xxh3_64_hexdigest(content),
            "end": is_end,
        }
        # The images before their line of the journal: a kill in between leaves only bytes that the next run truncates.
        _write_all(self._images, content)
        text = json.dumps(block).encode() + b"\n"
        _write_all(self._journal, xxhash.xxh3_64_hexdigest(text).encode() + b" " + text)
        self._spool.add(block)
        self._clear()


def _write_all(file: IO[bytes], content: bytes) -> None:
    """Write to an unbuffered file, where one call may write only a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _encoded(
    items: Iterator[Item], recipe: Recipe, pool: TaskPool, first: int
) -> Generator[tuple[int, Item, Encoded | Skipped]]:
    """Yield the number of each input, from `first` on, the input and its result, in order."""
    waiting: deque[list[Item]] = deque()

    def tasks() -> Iterator[tuple[list[Content], Recipe]]:
        for chunk in _chunks(items):
            waiting.append([_without_content(item) for item in chunk])
            yield [item.content for item in chunk if item.content is not None], recipe

    number = first
    with closing(pool.run(_encode_all, tasks())) as results:
        for result in results:
            encoded_images = iter(result)
            for item in waiting.popleft():
                if item.content is None:
                    yield number, item, Skipped(item.name, item.reason, is_bad=False)
                else:
                    image = next(encoded_images)
                    yield number, item, Skipped(item.name, image, is_bad=True) if isinstance(image, str) else image
                number += 1


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.content.content) if isinstance(item.content, EncodedImage) else 0
        if len(chunk) >= _CHUNK_ITEMS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


_SENT = EncodedImage(b"")


def _without_content(item: Item) -> Item:
    """Return an item without the content, which has been sent to a worker, to free its memory."""
    return item if item.content is None else replace(item, content=_SENT)


def _encode_all(task: tuple[list[Content], Recipe]) -> list[Encoded | str]:
    # An error becomes a text, since an exception would end the whole task.
    contents, recipe = task
    return [_encode(content, recipe) for content in contents]


def _encode(content: Content, recipe: Recipe) -> Encoded | str:
    try:
        return encoded(content, recipe)
    except DataError as error:
        return str(error)
