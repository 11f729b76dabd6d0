"""Check a whole set of shards, on this host or on remote storage: what is damaged, and where.

Each finding is one line: the file, the byte if known, and the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.data.images import SUFFIXES, decode
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, KeepList, Manifest, Shard, read_index, unpack_keep
from dcgan_dist.data.tar_index import members
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.parallel import TaskPool
from dcgan_dist.storage.folder import Folder, folder_at

MOST_LINES = 20  # findings of one shard that are reported one by one


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        findings: one line each; none if everything is intact.
        images: number of images that the set should have; without a manifest, that it has.
        shards: number of shards that the set should have.
        has_manifest: whether there was a manifest to compare with.
    """

    findings: tuple[str, ...]
    images: int
    shards: int
    has_manifest: bool


def verify(location: str | Path, pool: TaskPool, watch: Callable[[int, int], None] | None = None) -> Checked:
    """Compare every byte of a set of shards with its manifest; without one, check that tars and images can be read.

    Args:
        location: folder or URL of the shards.
        pool: checks the shards, one per task.
        watch: called with the number of checked shards and of all shards.

    Raises:
        DataError: there is nothing to check, or the manifest cannot be read.
        Unreachable: the storage was not reached.
    """
    text = str(location)
    folder = folder_at(text)
    if folder.path is not None and not folder.path.is_dir():
        raise DataError(f"verify is {text!r}: there is no such folder")
    names = folder.names()
    if MANIFEST_NAME in names:
        manifest = Manifest.from_json(folder.read(MANIFEST_NAME), f"{text}/{MANIFEST_NAME}")
        return _check_set(folder, manifest, pool, watch)
    tars = sorted(name for name in names if name.endswith(".tar"))
    if not tars or any(f"{name.removesuffix('.tar')}.index" in names for name in tars):
        raise DataError(f"{text!r} holds no finished shards: it has no {MANIFEST_NAME}")
    return _check_foreign(folder, tars, pool, watch)


def _check_set(folder: Folder, manifest: Manifest, pool: TaskPool, watch: Callable[[int, int], None] | None) -> Checked:
    findings: list[str] = []
    by_digest = {shard.digest: shard.file for shard in manifest.shards}
    tasks = [_ShardCheck(folder, shard, len(manifest.classes)) for shard in manifest.shards]
    with closing(pool.run(_check_shard, tasks)) as results:
        for number, (lines, digest) in enumerate(results, 1):
            file = manifest.shards[number - 1].file
            other = by_digest.get(digest)
            findings += lines if other in (None, file) else [f"{file}: byte 0: it has the content of {other}"]
            if watch is not None:
                watch(number, len(tasks))
    total = sum(shard.samples for shard in manifest.shards)
    if total != manifest.count:
        findings.append(f"{MANIFEST_NAME}: its shards have {total} images, it says {manifest.count}")
    if manifest.keep is not None:
        findings += _check_keep(folder, manifest.keep, manifest.count)
    return Checked(tuple(findings), manifest.count, len(tasks), has_manifest=True)


@dataclass(frozen=True)
class _ShardCheck:
    folder: Folder
    shard: Shard
    classes: int


def _check_shard(task: _ShardCheck) -> tuple[list[str], str]:
    """Return the findings of a shard, and the digest of its tar."""
    shard, lines = task.shard, []
    records = None
    try:
        with task.folder.open(shard.index) as content:
            wrong = _compare(content, shard.samples * RECORD.itemsize, shard.index_digest)
            if wrong:
                lines.append(f"{shard.index}: {wrong}")
            else:
                records = read_index(bytes(content), shard.samples, shard.index)
                lines += _check_labels(records, shard.index, task.classes)
    except DataError as error:
        lines.append(_missing(shard.index, error))
    try:
        with task.folder.open(shard.file) as tar:
            wrong = _compare(tar, shard.bytes, shard.digest)
            if wrong:
                lines += _locate(tar, shard, records) or [f"{shard.file}: {wrong}"]
            return lines, xxhash.xxh3_64_hexdigest(tar)
    except DataError as error:
        return [*lines, _missing(shard.file, error)], ""


def _missing(name: str, error: DataError) -> str:
    if isinstance(error, Unreachable):
        raise error  # a failure of the storage, not damage to the shard
    return f"{name}: it cannot be read ({error})"


def _compare(content: memoryview, size: int, digest: str) -> str:
    """Return the problem of a file's content; "" if it is intact."""
    if len(content) < size:
        return f"byte {len(content)}: it is cut off, {size - len(content)} bytes are missing"
    if len(content) > size:
        return f"byte {size}: it has {len(content) - size} bytes more than it should"
    return "" if xxhash.xxh3_64_hexdigest(content) == digest else "its digest differs from the manifest's"


def _locate(tar: memoryview, shard: Shard, records: npt.NDArray[np.void] | None) -> list[str]:
    """Return a line for each damaged image, and for the first damaged position of the tar itself."""
    lines = []
    if len(tar) > shard.bytes:
        lines.append(f"{shard.file}: byte {shard.bytes}: it has {len(tar) - shard.bytes} bytes more than it should")
    for position, record in enumerate(records if records is not None else ()):
        start, stop = int(record["offset"]), int(record["offset"]) + int(record["size"])
        if stop > len(tar):
            count = shard.samples - position
            lines.append(f"{shard.file}: byte {len(tar)}: it is cut off, the last {count} images are missing")
            break
        if xxhash.xxh3_64_intdigest(tar[start:stop]) != int(record["digest"]):
            lines.append(f"{shard.file}: byte {start}: image {position} ({stop - start} bytes) is damaged")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"{shard.file}: {len(lines) - MOST_LINES} more images in it are damaged"]
    if len(tar) == shard.bytes:
        try:
            for _ in members(tar, shard.file):
                pass
        except DataError as error:
            lines.append(f"{shard.file}: {_plain(error, shard.file)}")
        if not lines and records is not None:
            lines.append(f"{shard.file}: a label, attributes or padding in it are damaged, its images are intact")
    return lines


def _check_labels(records: npt.NDArray[np.void], name: str, classes: int) -> list[str]:
    wrong = np.flatnonzero((records["label"] < -1) | (records["label"] >= max(1, classes)))
    return [
        f"{name}: byte {row * RECORD.itemsize}: image {row} has the label {records['label'][row]} of {classes} classes"
        for row in wrong[:MOST_LINES].tolist()
    ]


def _check_keep(folder: Folder, keep: KeepList, count: int) -> list[str]:
    try:
        with folder.open(keep.file) as content:
            wrong = _compare(content, -(-count // 8), keep.digest)
            if wrong:
                return [f"{keep.file}: {wrong}"]
            kept = int(unpack_keep(bytes(content), 0, count).sum())
    except DataError as error:
        return [_missing(keep.file, error)]
    return [] if kept == keep.count else [f"{keep.file}: it keeps {kept} images, {MANIFEST_NAME} says {keep.count}"]


# --- shards without a manifest ----------------------------------------------------------------------------------------


def _check_foreign(
    folder: Folder, tars: Sequence[str], pool: TaskPool, watch: Callable[[int, int], None] | None
) -> Checked:
    findings: list[str] = []
    images = 0
    with closing(pool.run(_check_tar, [(folder, name) for name in tars])) as results:
        for number, (lines, count) in enumerate(results, 1):
            findings += lines
            images += count
            if watch is not None:
                watch(number, len(tars))
    return Checked(tuple(findings), images, len(tars), has_manifest=False)


def _check_tar(task: tuple[Folder, str]) -> tuple[list[str], int]:
    """Return the findings of a tar without a manifest, and the number of its images."""
    folder, name = task
    lines: list[str] = []
    images = 0
    try:
        with folder.open(name) as tar:
            for offset, size, is_encoded in _images(tar, name):
                images += 1
                try:
                    if is_encoded:
                        decode(bytes(tar[offset : offset + size]))
                except DataError as error:
                    lines.append(f"{name}: byte {offset}: image {images - 1} is damaged: {error}")
    except DataError as error:
        lines.append(f"{name}: {_plain(error, name)}")
    return lines, images


def _images(tar: memoryview, name: str) -> Iterator[tuple[int, int, bool]]:
    """Yield offset and size of each image of a tar, and whether it is encoded."""
    for member in members(tar, name):
        suffix = f".{member.name.lower().rpartition('.')[2]}"
        if suffix in SUFFIXES or suffix == ".raw":
            yield member.offset, member.size, suffix != ".raw"


def _plain(error: DataError, name: str) -> str:
    """Return the text of an error without the file name at its beginning and the advice at its end."""
    return str(error).removeprefix(name).lstrip().partition(": make or copy")[0]
