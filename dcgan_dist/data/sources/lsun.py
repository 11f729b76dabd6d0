"""LSUN as it is distributed: an LMDB environment for each category, whose values are encoded images.

Keys are hashes of the images, so that their order is random, and a range of keys is a random part of the images.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from dcgan_dist.data.sources.archives import MAX_FILE_BYTES, digest_of_file, too_large
from dcgan_dist.data.sources.base import Content, EncodedImage, Folders, Item, Source, Unreadable
from dcgan_dist.errors import DataError

_DATA = "data.mdb"

# Open environments of this process with the number of their readers: LMDB forbids opening one twice in a process.
_open: dict[str, tuple[Any, int]] = {}
_open_lock = threading.Lock()


@contextmanager
def _reading(folder: Path) -> Iterator[Any]:
    """Open an environment, shared with other readers in this process, and yield a read transaction.

    Nothing is written, not even a lock: any number of processes and hosts may read the same files, also read-only ones.
    Another process may have the environment open for writing, but must not commit in the meantime: since there is no
    lock, its commits may reuse pages that are still read here.

    Raises:
        DataError: it is not an environment, cannot be read, or is truncated or damaged.
    """
    name = str(folder)
    try:
        with _open_lock:
            environment, readers = _open.get(name) or (_opened(folder), 0)
            _open[name] = environment, readers + 1
        try:
            with environment.begin(buffers=True) as transaction:
                yield transaction
        finally:
            with _open_lock:
                environment, readers = _open.pop(name)
                if readers > 1:
                    _open[name] = environment, readers - 1
                else:
                    environment.close()
    except lmdb.Error as error:
        raise DataError(f"{folder} is damaged or no LMDB ({error}): get it again") from error


def _opened(folder: Path) -> Any:
    data = folder / _DATA
    try:
        size = data.stat().st_size
        data.open("rb").close()  # LMDB's own error names neither the file nor the reason
    except OSError as error:
        raise DataError(f"{data} cannot be read: {error.strerror}") from error
    # No readahead: values are spread over the file, and it would only displace other pages from memory.
    environment = lmdb.open(str(folder), readonly=True, lock=False, create=False, readahead=False, max_dbs=0)
    # The file is mapped into memory: access to a page beyond its end would kill the process.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise DataError(f"{data} is cut short: it has {size} bytes of {needed}, so get it again")
    return environment


def _item(key: Any, value: Any, category: str, share: float) -> Item:
    content: Content
    if not len(value):
        content = Unreadable("it is empty")
    elif len(value) > MAX_FILE_BYTES:
        content = Unreadable(too_large(len(value)))
    else:
        content = EncodedImage(bytes(value))
    return Item(bytes(key).decode("ascii", "backslashreplace"), (category,), content, share)


@dataclass(frozen=True)
class LsunPart:
    """A range of keys; see `Part`.

    Attributes:
        folder: of the environment.
        category: the images' class.
        start: number of the first key in the environment.
        count: number of keys.
        first: the first key.
        last: the last key.
    """

    folder: Path
    category: str
    start: int
    count: int
    first: bytes
    last: bytes

    def items(self) -> Iterator[tuple[int, Item]]:
        """See `Part`."""
        done = 0
        with _reading(self.folder) as transaction, transaction.cursor() as cursor:
            if cursor.set_key(self.first):
                for key, value in cursor:
                    done += 1
                    yield self.start + done - 1, _item(key, value, self.category, done / self.count)
                    if done == self.count:
                        if bytes(key) != self.last:
                            break
                        return
        raise DataError(f"{self.folder} has changed while it was read: its keys are different, so run again")


@dataclass(frozen=True, kw_only=True)
class LsunSource(Source):
    """The images of an LMDB environment in the order of their keys."""

    folder: Path
    category: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        with _reading(self.folder) as transaction, transaction.cursor() as cursor:
            for number, (key, value) in enumerate(cursor, 1):
                yield _item(key, value, self.category, number / (self.count or number))

    def all_folders(self) -> Collection[Folders]:
        """See `Source`."""
        return [(self.category,)]

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[LsunPart]:
        """See `Source`. It takes one pass over the keys, without their values; the bounds of each part are kept."""
        entries = self.count or 0
        stop = entries if count is None else min(count, entries)
        bounds: list[tuple[bytes, bytes]] = []
        found, first = 0, b""
        with _reading(self.folder) as transaction, transaction.cursor() as cursor:
            for found, key in enumerate(islice(cursor.iternext(keys=True, values=False), stop), 1):
                if found % size == 1 or size == 1:
                    first = bytes(key)
                if found % size == 0 or found == stop:
                    bounds.append((first, bytes(key)))
        if found != stop:
            raise DataError(f"{self.folder} is damaged: it has {found} keys of {stop}, so get it again")
        return [
            LsunPart(self.folder, self.category, start, min(size, stop - start), *ends)
            for start, ends in zip(range(0, stop, size), bounds, strict=True)
        ]


def lsun_source(path: Path) -> LsunSource:
    """Open the environment of a category; `path` is its folder, or a folder that contains only that environment.

    Raises:
        DataError: there is no environment, several, or a damaged one.
    """
    folder = _environment_at(path)
    with _reading(folder) as transaction:
        count = transaction.stat()["entries"]
        if not count:
            raise DataError(f"{folder} holds no images: it is an LMDB without records")
    return LsunSource(
        name="lsun",
        where=str(folder),
        identity={"input": folder.name, "input_entries": count, "input_digest": digest_of_file(folder / _DATA)},
        count=count,
        folder=folder,
        category=_category(folder.name),
    )


def _environment_at(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"input {str(path)!r} is a file: lsun takes the folder of an LMDB, which holds its {_DATA}")
    if (path / _DATA).exists():
        return path
    below = sorted(folder.name for folder in path.iterdir() if (folder / _DATA).exists())
    if not below:
        raise DataError(f"input {str(path)!r} is no LMDB: it holds no {_DATA}")
    if len(below) > 1:
        named = ", ".join(below[:5]) + (", …" if len(below) > 5 else "")
        one = shlex.quote(str(path / below[0]))
        raise DataError(f"input {str(path)!r} holds {len(below)} LMDBs ({named}): name one, such as --input {one}")
    return path / below[0]


def _category(name: str) -> str:
    """Return ``bedroom`` of ``bedroom_train_lmdb``."""
    for end in ("_lmdb", "_train", "_val", "_test"):
        name = name.removesuffix(end)
    return name
