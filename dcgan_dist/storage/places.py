"""Where the files of a set of shards are: a folder of this host, or a folder of remote storage.

A file appears under its name when all of it is there, and not before. A place is small, and made to be sent to the
processes that write or check the files.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from dcgan_dist.errors import DataError
from dcgan_dist.paths import expanded
from dcgan_dist.storage.remote import delete_url, download, is_url, join_url, list_url, read_url, send

PART = ".part"  # end of the name of a file that is being written

_WINDOWS_HIDDEN = ("thumbs.db", "desktop.ini")


class Place(Protocol):
    """A folder, here or elsewhere."""

    def names(self) -> set[str]:
        """Return the names of the files that are there; none where there is no folder."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            DataError: there is no such file, or it cannot be read.
        """

    def open(self, name: str) -> AbstractContextManager[memoryview]:
        """Give the content of a large file as memory, which is not held all at once.

        Raises:
            DataError: as `read`.
        """

    def new(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Give a file to write to, which gets its name at the end of the block if nothing went wrong there.

        Raises:
            OSError: the disk is full or fails.
            DataError: the place is not there, or remote storage cannot be written.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def is_hidden(name: str) -> bool:
    """Whether a file is one that operating systems put into folders by themselves, such as ``.DS_Store``."""
    return name.startswith(".") or name.lower() in _WINDOWS_HIDDEN


def place_of(location: str) -> Place:
    """Return the place that a path or URL names."""
    if is_url(location) and not location.startswith("file://"):
        return RemotePlace(location)
    return LocalPlace(Path(os.path.abspath(expanded(location.removeprefix("file://")))))


@dataclass(frozen=True)
class LocalPlace:
    """A folder of this host, or one that it shares with others; see `Place`."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> set[str]:
        """See `Place`."""
        return set(os.listdir(self.folder)) if self.folder.is_dir() else set()

    def read(self, name: str) -> bytes:
        """See `Place`."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise _unreadable(self.folder / name, error) from error

    @contextmanager
    def open(self, name: str) -> Iterator[memoryview]:
        """See `Place`."""
        try:
            with (self.folder / name).open("rb") as file:
                content = _mapped(file)
        except OSError as error:
            raise _unreadable(self.folder / name, error) from error
        yield content

    @contextmanager
    def new(self, name: str) -> Iterator[IO[bytes]]:
        """See `Place`; what is written is on disk before it has its name."""
        part = self.folder / f".{name}.{uuid.uuid4().hex}{PART}"
        try:
            file = part.open("wb", buffering=1 << 20)
        except FileNotFoundError as error:
            raise DataError(
                f"host {socket.gethostname()} cannot write in {str(self.folder)!r}: name an output in a folder that is "
                "there, over a cluster one that all hosts share, by its absolute path, or a URL"
            ) from error
        try:
            with file:
                yield file
                sync(file)
            part.rename(self.folder / name)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Place`."""
        (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemotePlace:
    """A folder of remote storage; see `Place`. Copies of files here have no name, and so end with the process."""

    url: str

    def __str__(self) -> str:
        return self.url

    def names(self) -> set[str]:
        """See `Place`."""
        return list_url(self.url)

    def read(self, name: str) -> bytes:
        """See `Place`."""
        return read_url(join_url(self.url, name))

    @contextmanager
    def open(self, name: str) -> Iterator[memoryview]:
        """See `Place`."""
        with tempfile.TemporaryFile(buffering=0) as file:
            download(join_url(self.url, name), file, None, resume=False)
            content = _mapped(file)
        yield content

    @contextmanager
    def new(self, name: str) -> Iterator[IO[bytes]]:
        """See `Place`."""
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            send(_path_of(file), join_url(self.url, name))

    def remove(self, name: str) -> None:
        """See `Place`."""
        delete_url(join_url(self.url, name))


def sync(file: IO[Any]) -> None:
    """Have what was written to a file on disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # network file systems without it
            raise
    finally:
        os.close(handle)


def _mapped(file: IO[bytes]) -> memoryview:
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # nothing cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _path_of(file: IO[bytes]) -> Path:
    """Return a path by which this process can open a file that has no name."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"there is no file {str(path)!r}")
    return DataError(f"{str(path)!r} cannot be read ({error.strerror})")
