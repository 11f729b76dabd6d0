"""Writing and checking shards; `manifest.py` says what they are.

The images of a source are encoded in its order, by worker processes, into one file beside the shards-to-be; then the
shards are filled from it in an order that is a hash of (seed, number of the image). The same source and recipe give
the same bytes with any number of workers, from sources that tell their length only at their end, in bounded memory.

All of it happens in a folder with another name, which is renamed when everything is on disk: what stands under the
output's name is whole. A killed writer's folder is cleared away by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.data.images import JPEG_QUALITY, Encoding, encode
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, Manifest, Shard, read_index
from dcgan_dist.data.sources import Content, EncodedImage, Folders, Item, Source, classes_of, nothing_found
from dcgan_dist.errors import DataError, StorageError, WorkerFailed

Report = Callable[[int, float, int], None]
"""Called with the number of images done, the share of the whole (in [0, 1]) and the number of unreadable inputs."""

_CHUNK_ITEMS = 64
_CHUNK_BYTES = 1 << 22
_SPOOL = "images.unordered"
# Raised when what is written for the same recipe changes.
_REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides, with the source, what is in a set of shards.

    Attributes:
        image_size: side of the square images in pixels.
        channels: 1 (grey) or 3 (colour).
        encoding: `jpg`, `png` or `raw`.
        shard_size: images in a shard; the last may have fewer.
        name: first part of the shards' file names.
        seed: of the distribution of the images over the shards.
        count: how many images to take, the first ones of the source; None for all.
    """

    image_size: int
    channels: int = 3
    encoding: Encoding = "jpg"
    shard_size: int = 2000
    name: str = "images"
    seed: int = 0
    count: int | None = None


def made_with(source: Source, recipe: Recipe) -> dict[str, Any]:
    """Return what the manifest records of a source and a recipe: the same means the same shards."""
    settings: dict[str, Any] = {"revision": _REVISION, "source": source.name, **source.identity}
    if source.only:
        settings["only"] = ",".join(sorted(source.only))
    settings |= asdict(recipe)
    settings["count"] = source.count if recipe.count is None else recipe.count
    if recipe.encoding == "jpg":
        settings["jpeg_quality"] = JPEG_QUALITY
    return settings


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(folder, MANIFEST_NAME)
    try:
        return Manifest.from_json(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise DataError(f"{str(folder)!r} holds no finished shards: it has no {MANIFEST_NAME}") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def check_same(manifest: Manifest, wanted: dict[str, Any], where: str) -> None:
    """Check that the shards at `where` were made with the settings `wanted`.

    Raises:
        DataError: they were not; it names what differs.
    """
    has = manifest.made_with
    differing = [key for key in (has | wanted) if has.get(key) != wanted.get(key)]
    if differing:
        told = "; ".join(f"{key} there {has.get(key)!r}, now {wanted.get(key)!r}" for key in differing)
        raise DataError(f"output {where!r} holds shards made with other settings ({told}): name another folder")


def find_finished(folder: str | Path, wanted: dict[str, Any]) -> Manifest | None:
    """Return the manifest of shards that were made with `wanted`; None where there is nothing yet.

    Raises:
        DataError: the folder holds something else, shards made with other settings, or shards that lack a part.
    """
    folder = Path(folder)
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise DataError(f"output {str(folder)!r} is a file: name a folder")
    if not (folder / MANIFEST_NAME).exists():
        if any(folder.iterdir()):
            raise DataError(f"output {str(folder)!r} holds other files: name a new or empty folder")
        return None
    manifest = read_manifest(folder)
    check_same(manifest, wanted, str(folder))
    for shard in manifest.shards:
        for name, size in ((shard.file, shard.bytes), (shard.index, shard.samples * RECORD.itemsize)):
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise DataError(f"output {str(folder)!r} is damaged at {name}: delete the folder and run again")
    return manifest


def write_shards(
    source: Source,
    recipe: Recipe,
    output: str | Path,
    *,
    workers: int = 1,
    max_bad: float = 0.01,
    report: Report | None = None,
) -> Manifest:
    """Make the shards of a source, or find them made already.

    Args:
        source: where the images come from.
        recipe: what to make of them.
        output: folder of the shards; it must not exist, be empty, or hold the very same shards.
        workers: processes that decode and encode; with 1 it is done in this process.
        max_bad: share of the inputs that may be unreadable.
        report: told of the progress.

    Raises:
        DataError: the source or the output cannot be used; too many unreadable inputs; another process makes the same.
        StorageError: the disk is full or fails.
        WorkerFailed: a worker process died.
    """
    output = Path(os.path.abspath(Path(output).expanduser()))
    if output.is_symlink():
        output = output.resolve()
    settings = made_with(source, recipe)
    finished = find_finished(output, settings)
    if finished is not None:
        return finished
    if recipe.count is not None and source.count is not None and recipe.count > source.count:
        raise _too_few(source, source.count, recipe.count)
    with _work_folder(output) as work:
        try:
            with (work / _SPOOL).open("wb") as file:
                spool = _fill_spool(source, recipe, file, workers, max_bad, report)
            classes, labels = _labels(spool, source)
            shards = tuple(_write_all(work, recipe, spool, labels))
            (work / _SPOOL).unlink()
            manifest = Manifest(
                image_size=recipe.image_size,
                channels=recipe.channels,
                encoding=recipe.encoding,
                count=len(spool.sizes),
                classes=classes,
                shards=shards,
                made_with=settings,
                skipped=tuple(spool.skipped),
            )
            with (work / MANIFEST_NAME).open("w", encoding="utf-8") as text:
                text.write(manifest.to_json())
                _sync(text)
            _sync_folder(work)
            work.rename(output)
            _sync_folder(output.parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise DataError(f"output {str(output)!r} was filled by another process meanwhile") from error
            raise StorageError(f"the shards of {str(output)!r} cannot be written: {error.strerror or error}") from error
    return manifest


def _too_few(source: Source, has: int, wanted: int) -> DataError:
    return DataError(f"count is {wanted}, but {source.where} has {has} images: take {has} or fewer, or leave it out")


# --- the folder that is worked in -------------------------------------------------------------------------------------


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """Give an empty folder beside `output`, locked for this process; clear it away unless it was renamed."""
    work = output.parent / f".{output.name}.unfinished"
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(work, output)
        for path in list(work.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise DataError(f"output {str(output)!r} cannot be written: {error.strerror}") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
        if not output.exists():
            with suppress(OSError):
                for folder in missing:
                    folder.rmdir()


def _locked(work: Path, output: Path) -> int:
    """Make the folder if need be and lock it; the lock goes with the process, however that ends."""
    while True:
        work.mkdir(exist_ok=True)
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, its former owner may have renamed or removed it.
            if work.exists() and os.path.samestat(os.fstat(lock), work.stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise DataError(f"output {str(output)!r} is being made by another process: wait for it") from error
        os.close(lock)


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- encoding ---------------------------------------------------------------------------------------------------------

# What a worker makes of an input: the encoded image and its attributes as JSON, or why it cannot be read.
Encoded = tuple[bytes, bytes] | str


@dataclass(frozen=True)
class _Spool:
    """The encoded images in the order of the source: where each lies, and what belongs to it."""

    path: Path
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    json_sizes: array[int] = field(default_factory=lambda: array("I"))
    places: array[int] = field(default_factory=lambda: array("I"))
    folders: dict[Folders, int] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)


def _fill_spool(
    source: Source, recipe: Recipe, file: IO[bytes], workers: int, max_bad: float, report: Report | None
) -> _Spool:
    spool = _Spool(Path(file.name))
    bad = offset = 0
    known = source.count if recipe.count is None else recipe.count
    for number, (item, encoded) in enumerate(_encoded(source, recipe, workers)):
        if encoded is None:
            spool.skipped.append({"input": item.name, "reason": item.reason})
            continue
        if isinstance(encoded, str):
            bad += 1
            spool.skipped.append({"input": item.name, "reason": encoded})
            if known is not None and bad > max_bad * (known + bad):
                raise _too_bad(source, spool, bad, max_bad)
            continue
        image, attributes = encoded
        file.write(image)
        file.write(attributes)
        spool.numbers.append(number)
        spool.offsets.append(offset)
        spool.sizes.append(len(image))
        spool.json_sizes.append(len(attributes))
        spool.places.append(spool.folders.setdefault(item.folders, len(spool.folders)))
        offset += len(image) + len(attributes)
        done = len(spool.sizes)
        if report is not None:
            report(done, item.share if known is None else done / known, bad)
        if done == recipe.count:
            break
    good = len(spool.sizes)
    if not good and not bad:
        raise nothing_found(source)
    if bad > max_bad * (good + bad):
        raise _too_bad(source, spool, bad, max_bad)
    if recipe.count is not None and good < recipe.count:
        raise _too_few(source, good, recipe.count)
    return spool


def _too_bad(source: Source, spool: _Spool, bad: int, max_bad: float) -> DataError:
    example = next(entry for entry in reversed(spool.skipped))
    return DataError(
        f"{bad} of the first {bad + len(spool.sizes)} images of {source.where} cannot be read, such as "
        f"{example['input']!r} ({example['reason']}): more than max_bad ({max_bad:g}) allows"
    )


def _encoded(source: Source, recipe: Recipe, workers: int) -> Iterator[tuple[Item, Encoded | None]]:
    """Return the items of a source with what they were encoded to, in order; None for those left out."""
    if workers == 1:
        for item in source.items():
            yield item, None if item.content is None else _encode(item.content, recipe)
        return
    # Spawned: forking a process that has threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[tuple[list[Item], Future[list[Encoded]]]] = deque()

    def collect() -> Iterator[tuple[Item, Encoded | None]]:
        items, future = waiting.popleft()
        results = iter(future.result())
        for item in items:
            yield item, None if item.content is None else next(results)

    try:
        for items in _chunks(source.items()):
            contents = [item.content for item in items if item.content is not None]
            waiting.append((_without_contents(items), pool.submit(_encode_all, contents, recipe)))
            if len(waiting) > 2 * workers:
                yield from collect()
        while waiting:
            yield from collect()
    except BrokenProcessPool as error:
        raise WorkerFailed("a worker process of prepare died (too little memory?): run it again") from error
    finally:
        pool.shutdown(cancel_futures=True)


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


def _without_contents(items: list[Item]) -> list[Item]:
    """Return items that no longer hold what has been sent to a worker."""
    return [
        item if item.content is None else Item(item.name, item.folders, _SENT, item.share, item.reason)
        for item in items
    ]


def _start_worker() -> None:
    """Let a worker end with its parent, even a killed one, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _encode_all(contents: list[Content], recipe: Recipe) -> list[Encoded]:
    return [_encode(content, recipe) for content in contents]


def _encode(content: Content, recipe: Recipe) -> Encoded:
    try:
        image, attributes = content.picture(recipe.image_size, recipe.channels)
    except DataError as error:
        return str(error)
    told = b"" if attributes is None else json.dumps(attributes, separators=(",", ":")).encode()
    return encode(image, recipe.encoding), told


# --- filling the shards -----------------------------------------------------------------------------------------------


def _labels(spool: _Spool, source: Source) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    classes, numbers = classes_of(spool.folders.keys(), source.classes)
    by_place = np.array([numbers[folders] for folders in spool.folders], dtype=np.int32)
    return classes, by_place[np.frombuffer(spool.places, np.uint32)]


def _order(numbers: array[int], seed: int) -> npt.NDArray[np.intp]:
    """Return a permutation that depends on the seed and the images' numbers alone, not on a generator's version."""
    keys = [xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"), seed) for number in numbers]
    return np.argsort(np.array(keys, dtype=np.uint64), kind="stable")


def _write_all(work: Path, recipe: Recipe, spool: _Spool, labels: npt.NDArray[np.int32]) -> Iterator[Shard]:
    order = _order(spool.numbers, recipe.seed)
    images = np.memmap(spool.path, dtype=np.uint8, mode="r")
    for shard, start in enumerate(range(0, len(order), recipe.shard_size)):
        name = f"{recipe.name}-{shard:06d}"
        yield _write_shard(work, name, order[start : start + recipe.shard_size], recipe, spool, labels, images)


def _write_shard(
    work: Path,
    name: str,
    which: npt.NDArray[np.intp],
    recipe: Recipe,
    spool: _Spool,
    labels: npt.NDArray[np.int32],
    images: npt.NDArray[np.uint8],
) -> Shard:
    records = np.zeros(len(which), dtype=RECORD)
    with (work / f"{name}.tar").open("wb") as file:
        tar = _TarWriter(file)
        for position, at in enumerate(which):
            key, label = f"{spool.numbers[at]:09d}", int(labels[at])
            offset, middle = spool.offsets[at], spool.offsets[at] + spool.sizes[at]
            image, attributes = images[offset:middle], images[middle : middle + spool.json_sizes[at]]
            place = tar.add(f"{key}.{recipe.encoding}", image.tobytes())
            if label >= 0:
                tar.add(f"{key}.cls", str(label).encode())
            json_place = tar.add(f"{key}.json", attributes.tobytes()) if len(attributes) else 0
            digest = xxhash.xxh3_64_intdigest(image.data)
            records[position] = (place, len(image), label, digest, json_place, len(attributes))
        tar.finish()
        _sync(file)
    with (work / f"{name}.index").open("wb") as file:
        file.write(records.tobytes())
        _sync(file)
    return Shard(
        file=f"{name}.tar",
        samples=len(which),
        bytes=tar.position,
        digest=tar.digest.hexdigest(),
        index=f"{name}.index",
        index_digest=xxhash.xxh3_64_hexdigest(records.tobytes()),
    )


class _TarWriter:
    """Writes a plain tar whose bytes depend on names and contents alone, and digests it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.position = 0
        self.digest = xxhash.xxh3_64()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.position += len(content)

    def add(self, name: str, content: bytes) -> int:
        """Add a file and return where its content begins."""
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._write(entry.tobuf(format=tarfile.USTAR_FORMAT))
        place = self.position
        self._write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
        return place

    def finish(self) -> None:
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.position + end) % tarfile.RECORDSIZE))


# --- checking ---------------------------------------------------------------------------------------------------------


def verify(folder: str | Path, workers: int = 4) -> list[str]:
    """Check every byte of a set of shards against its manifest; return what is damaged, one line each.

    Raises:
        DataError: there is no manifest that can be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    with ThreadPoolExecutor(workers) as pool:  # digests are computed without the interpreter's lock
        found = list(pool.map(lambda shard: _check_shard(folder, shard, len(manifest.classes)), manifest.shards))
    damage = [line for lines in found for line in lines]
    total = sum(shard.samples for shard in manifest.shards)
    if total != manifest.count:
        damage.append(f"{MANIFEST_NAME}: its shards have {total} images, it says {manifest.count}")
    return damage


def _check_shard(folder: Path, shard: Shard, classes: int) -> list[str]:
    lines: list[str] = []
    index = _check_file(folder / shard.index, shard.samples * RECORD.itemsize, shard.index_digest, lines)
    tar = _check_file(folder / shard.file, shard.bytes, shard.digest, lines)
    if index is None or tar is None:
        return lines
    content = bytes(index)
    if len(content) != shard.samples * RECORD.itemsize:
        return lines
    for position, record in enumerate(read_index(content, shard.samples, shard.index)):
        start, stop = int(record["offset"]), int(record["offset"]) + int(record["size"])
        if stop > len(tar) or xxhash.xxh3_64_intdigest(tar[start:stop].data) != int(record["digest"]):
            lines.append(f"{shard.file}: image {position} (bytes {start} to {stop}) is damaged")
        elif not -1 <= int(record["label"]) < max(1, classes):
            lines.append(f"{shard.index}: image {position} has the label {record['label']} of {classes} classes")
    return lines


def _check_file(path: Path, size: int, digest: str, lines: list[str]) -> npt.NDArray[np.uint8] | None:
    """Return a file's bytes, after adding to `lines` what is wrong with it; None where there is nothing to read."""
    try:
        has = path.stat().st_size
        content = np.memmap(path, np.uint8, "r") if has else np.zeros(0, np.uint8)
        if has != size:
            lines.append(f"{path.name}: it has {has} bytes, not {size}")
        elif xxhash.xxh3_64_hexdigest(content.data) != digest:
            lines.append(f"{path.name}: its digest differs from the manifest's")
    except OSError as error:
        lines.append(f"{path.name}: it cannot be read ({error.strerror})")
        return None
    return content
