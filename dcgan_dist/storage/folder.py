"""A folder on this host or on object storage: one interface for both.

::

    Folder ── LocalFolder     a file is written under a hidden name, synced, renamed; a lock file protects `update`
           └─ RemoteFolder    files are written whole; conditional writes protect `update`, if the storage has them

A file appears under its name only when it is complete. A folder object is small and can be sent to other processes.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from dcgan_dist.errors import DataError, RunDirectoryError, StorageError, Unreachable
from dcgan_dist.paths import expanded
from dcgan_dist.storage.files import PART, sync, write_atomically, writing
from dcgan_dist.storage.locks import lock, unlock
from dcgan_dist.storage.remote import (
    MissingFile,
    check_scheme,
    download,
    error_code,
    is_url,
    join_url,
    list_url,
    persist,
    shown,
)

LOCK_NAME = ".lock"
PATIENCE_S = 15.0
"""Seconds for which an action on object storage is retried before it is an error."""

_TRIES = 4  # at least, however long each takes
_LOCK_S = 10.0
_SWAPS = 100  # tries of an update while other processes update the same file
# These stores have no folders, and "creating" one could create a bucket from a mistyped URL.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2", "memory"})
# S3's error codes for a conditional write to a file that has changed, or that another process is just replacing.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")
_VERSION_KEYS = ("size", "ETag", "etag", "LastModified", "mtime", "updated", "created")

Result = TypeVar("Result")


class Folder(ABC):
    """A folder on this host or on object storage. Names are relative to it, with forward slashes.

    Every method raises StorageError if the disk or the storage fails.

    Attributes:
        location: its absolute path or its URL.
        path: its path on this host; None on object storage.
    """

    location: str
    path: Path | None

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of the files and folders directly in it; an empty set if it does not exist."""

    @abstractmethod
    def versions(self, below: str = "") -> dict[str, str]:
        """Return the names of all files below a sub-folder, sorted, each with a text that changes with its content."""

    @abstractmethod
    def get(self, name: str, most: int | None = None) -> bytes | None:
        """Return the content of a file; None if it does not exist.

        Args:
            name: of the file.
            most: maximum size in bytes; on this host, a larger file is not read.

        Raises:
            StorageError: it cannot be read, is not a regular file, or is larger.
        """

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[memoryview]:
        """Yield the content of a large file, mapped into memory.

        Raises:
            DataError: there is no such file.
            StorageError: it cannot be read.
        """

    @abstractmethod
    def new(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Yield a file to write to; it appears under its name at the end of the block, unless the block raises.

        Raises:
            OSError: the disk is full or fails.
            DataError: there is no such folder.
            StorageError: object storage cannot be written.
        """

    @abstractmethod
    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Replace a small file so that readers see the old content or the new one, never a part, even after a crash."""

    @abstractmethod
    def update(
        self, name: str, change: Callable[[bytes | None], bytes], *, durable: bool = True, overwrites: bool = False
    ) -> None:
        """Replace a small file by `change` of its content; no concurrent update is lost.

        On a disk, updates wait for each other. On object storage the write is conditional: if another process was
        first, `change` is called again with the new content. If `change` raises, nothing is written.

        Args:
            name: of the file.
            change: called with the content, or None if there is no file; returns the new content.
            durable: whether to wait for the disk.
            overwrites: whether to overwrite the file in place if the disk has no space for a second one.
        """

    @abstractmethod
    def put(self, name: str, source: Path) -> None:
        """Replace a file by a copy of a file of this host, of any size."""

    @abstractmethod
    def fetch(self, name: str, target: Path) -> bool:
        """Copy a file to a path of this host; return whether it exists."""

    @abstractmethod
    def rename(self, name: str, new_name: str) -> None:
        """Rename a file; on object storage, copy it first and then remove the old name."""

    @abstractmethod
    def remove(self, *names: str) -> None:
        """Remove files in the given order; one that does not exist is no error."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            DataError: there is no such file.
            StorageError: it cannot be read.
        """
        content = self.get(name)
        if content is None:
            raise DataError(f"there is no file {self.at(name)!r}")
        return content

    def at(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""
        return f"{shown(self.location).rstrip('/')}/{name}"


def folder_at(location: str | Path, patience: float | None = None) -> Folder:
    """Return the folder that a path or URL names.

    Args:
        location: a path, a `file://` URL, or any other URL such as `s3://bucket/run`.
        patience: seconds for which actions on object storage are retried; None for `PATIENCE_S`.

    Raises:
        DataError: the URL's scheme is unknown.
    """
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif is_url(text):
        return RemoteFolder(text.rstrip("/"), patience)
    return LocalFolder(Path(os.path.abspath(expanded(text))))


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder of this host, possibly shared with other hosts; see `Folder`."""

    path: Path

    @property
    def location(self) -> str:  # type: ignore[override]
        """Its path."""
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        """See `Folder`."""
        return set(os.listdir(self.path)) if self.path.is_dir() else set()

    def versions(self, below: str = "") -> dict[str, str]:
        """See `Folder`."""
        found = {}
        for path in sorted((self.path / below).rglob("*")):
            details = path.stat()
            if stat.S_ISREG(details.st_mode):
                found[path.relative_to(self.path).as_posix()] = f"{details.st_mtime_ns:x}:{details.st_size:x}"
        return found

    def get(self, name: str, most: int | None = None) -> bytes | None:
        """See `Folder`; a named pipe is refused at once, not waited for."""
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            details = os.fstat(descriptor)
            if not stat.S_ISREG(details.st_mode):
                os.close(descriptor)
                raise StorageError(f"{path} is not a regular file")
            with open(descriptor, "rb") as file:
                if most is not None and details.st_size > most:
                    raise StorageError(f"{path} has {details.st_size:,} bytes, more than the {most:,} that are read")
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[memoryview]:
        """See `Folder`."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = _mapped(file)
        except FileNotFoundError as error:
            raise DataError(f"there is no file {str(path)!r}") from error
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        yield content

    @contextmanager
    def new(self, name: str) -> Iterator[IO[bytes]]:
        """See `Folder`; the content is synced to disk before the file gets its name."""
        path = self.path / name
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
        try:
            file = part.open("wb", buffering=1 << 20)
        except FileNotFoundError as error:
            raise DataError(
                f"host {socket.gethostname()} cannot write in {str(self.path)!r}: name an output in a folder that is "
                "there, over a cluster one that all hosts share, by its absolute path, or a URL"
            ) from error
        try:
            with file:
                yield file
                sync(file)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """See `Folder`; missing sub-folders are created."""
        path = self.path / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, durable=durable)

    def update(
        self, name: str, change: Callable[[bytes | None], bytes], *, durable: bool = True, overwrites: bool = False
    ) -> None:
        """See `Folder`; the lock is held while the file is read, changed and written, not longer."""
        with self._locked():
            content = change(self.get(name))
            try:
                write_atomically(self.path / name, content, durable=durable)
            except StorageError as error:
                is_full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
                if not (is_full and overwrites and (self.path / name).exists()):
                    raise
                self._overwrite(name, content)

    def _overwrite(self, name: str, content: bytes) -> None:
        path = self.path / name
        with writing(path), path.open("r+b", buffering=0) as file:
            # Padded with blanks instead of truncated: one write, and the file is valid JSON at every moment.
            file.write(content.rstrip().ljust(path.stat().st_size - 1) + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.path / LOCK_NAME
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            give_up = time.monotonic() + _LOCK_S
            while True:
                try:
                    lock(descriptor, self.path)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > give_up:
                        raise RunDirectoryError(
                            f"{self.path} is locked by a process that is starting there: try again"
                        ) from error
                time.sleep(0.02)
            yield
        finally:
            # A process forked in the meantime shares the lock, and would keep it if we only closed our descriptor.
            unlock(descriptor)
            os.close(descriptor)

    def put(self, name: str, source: Path) -> None:
        """See `Folder`."""
        with writing(self.path / name), source.open("rb") as content, self.new(name) as file:
            shutil.copyfileobj(content, file)

    def fetch(self, name: str, target: Path) -> bool:
        """See `Folder`."""
        try:
            shutil.copyfile(self.path / name, target)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"cannot copy {self.path / name} to {target}: {error.strerror or error}") from error
        return True

    def rename(self, name: str, new_name: str) -> None:
        """See `Folder`."""
        with writing(self.path / new_name):
            (self.path / name).rename(self.path / new_name)

    def remove(self, *names: str) -> None:
        """See `Folder`."""
        for name in names:
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteFolder(Folder):
    """A folder on object storage; see `Folder`. Local copies are unnamed temporary files, which end with the process.

    Attributes:
        url: such as `s3://bucket/run`.
        patience: seconds for which an action is retried; None for `PATIENCE_S`, 0 for a single try.
    """

    url: str
    patience: float | None = None
    path = None

    def __post_init__(self) -> None:
        """Check the scheme.

        Raises:
            DataError: it is unknown.
        """
        check_scheme(self.url)

    @property
    def location(self) -> str:  # type: ignore[override]
        """Its URL."""
        return self.url

    def __str__(self) -> str:
        return self.url

    @property
    def _patience(self) -> float:
        return PATIENCE_S if self.patience is None else self.patience

    def _act(self, name: str, done: str, action: Callable[[Any, str], Result]) -> Result:
        """Do an action on a file, with retries.

        Raises:
            MissingFile: there is no such file. The caller decides whether that is an error.
            StorageError: the storage fails.
        """
        url = join_url(self.url, name) if name else self.url
        try:
            return persist(url, action, self._patience, done=done, tries=_TRIES if self._patience else 1)
        except Unreachable as error:
            raise StorageError(str(error)) from error

    def names(self) -> set[str]:
        """See `Folder`."""
        try:
            return list_url(self.url, self._patience)
        except Unreachable as error:
            raise StorageError(str(error)) from error

    def versions(self, below: str = "") -> dict[str, str]:
        """See `Folder`."""

        def find(storage: Any, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
            storage.invalidate_cache()  # fsspec remembers listings, and other hosts write there too
            path = path.rstrip("/")
            return path.removesuffix(below).rstrip("/"), dict(storage.find(path, detail=True))

        try:
            root, found = self._act(below, "listed", find)
        except MissingFile:
            return {}
        return {
            path.removeprefix(f"{root}/"): " ".join(str(about.get(key)) for key in _VERSION_KEYS if key in about)
            for path, about in sorted(found.items())
            if path.startswith(f"{root}/")
        }

    def get(self, name: str, most: int | None = None) -> bytes | None:
        """See `Folder`."""
        try:
            return bytes(self._act(name, "read", lambda storage, path: storage.cat_file(path)))
        except MissingFile:
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[memoryview]:
        """See `Folder`."""
        with tempfile.TemporaryFile(buffering=0) as file:
            try:
                download(join_url(self.url, name), file, None, resume=False)
            except Unreachable as error:
                raise StorageError(str(error)) from error
            content = _mapped(file)
        yield content

    @contextmanager
    def new(self, name: str) -> Iterator[IO[bytes]]:
        """See `Folder`."""
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            self.put(name, Path(f"/proc/self/fd/{file.fileno()}"))  # the path of an unnamed file

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """See `Folder`."""
        self._send(name, lambda storage, path: storage.pipe_file(path, content))

    def put(self, name: str, source: Path) -> None:
        """See `Folder`."""
        self._send(name, lambda storage, path: storage.put_file(str(source), path))

    def fetch(self, name: str, target: Path) -> bool:
        """See `Folder`."""
        try:
            self._act(name, "read", lambda storage, path: storage.get_file(path, str(target)))
        except MissingFile:
            return False
        return True

    def _send(self, name: str, action: Callable[[Any, str], object]) -> None:
        def send(storage: Any, path: str) -> None:
            if not _WITHOUT_FOLDERS & {storage.protocol, *storage.protocol}:
                storage.makedirs(path.rpartition("/")[0], exist_ok=True)
            action(storage, path)

        try:
            self._act(name, "written", send)
        except MissingFile as error:
            raise StorageError(f"{self.at(name)!r} cannot be written: does the bucket exist?") from error

    def update(
        self, name: str, change: Callable[[bytes | None], bytes], *, durable: bool = True, overwrites: bool = False
    ) -> None:
        """See `Folder`."""
        for _ in range(_SWAPS):
            content, version = self.read_version(name)
            if self.swap(name, change(content), version):
                return
        raise StorageError(f"{self.at(name)!r} cannot be written: other processes keep replacing it; try again")

    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        """Return the content of a file and its version, both None if it does not exist.

        The version is read before the content. If the file changes in between, `swap` fails, and nothing is lost.
        """

        def look(storage: Any, path: str) -> dict[str, Any]:
            storage.invalidate_cache()
            return dict(storage.info(path))

        try:
            version = self._act(name, "read", look).get("ETag")
        except MissingFile:
            return None, None
        return self.get(name), version

    def swap(self, name: str, content: bytes, version: str | None) -> bool:
        """Replace a file if it still has `version` (None: if it still does not exist); return whether it was replaced.

        On storage other than S3 it is always replaced, since fsspec offers no conditional writes there.
        """
        swapped = True

        def send(storage: Any, path: str) -> None:
            nonlocal swapped
            condition: dict[str, str] = {}
            if "s3" in storage.protocol:
                condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
            try:
                storage.pipe_file(path, content, **condition)
            except OSError as error:
                if error_code(error) not in _CHANGED:
                    raise
                swapped = False

        self._send(name, send)
        return swapped

    def rename(self, name: str, new_name: str) -> None:
        """See `Folder`."""
        self._send(name, lambda storage, path: storage.cp_file(path, path.removesuffix(name) + new_name))
        self.remove(name)

    def remove(self, *names: str) -> None:
        """See `Folder`."""
        for name in names:
            try:
                self._act(name, "removed", lambda storage, path: storage.rm_file(path))
            except MissingFile:
                continue


def _mapped(file: IO[bytes]) -> memoryview:
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # an empty file cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_writable(location: str) -> None:
    """Check that files can be written to a folder, which need not exist yet, or below a URL.

    Raises:
        RunDirectoryError: the folder cannot be written.
        StorageError: the object storage cannot be written.
    """
    folder = folder_at(location, patience=0)
    if folder.path is None:
        probe = f".{uuid.uuid4().hex}.writing"
        folder.write(probe, b"")
        folder.remove(probe)
        return
    try:
        with tempfile.TemporaryFile(dir=next(above for above in (folder.path, *folder.path.parents) if above.exists())):
            pass
    except OSError as error:
        raise RunDirectoryError(
            f"{location} cannot be written: {error.strerror or error}; choose a writable folder"
        ) from error
