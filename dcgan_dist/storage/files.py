"""Where results are kept: atomic files on a local disk, and their mirror on object storage.

A location is a local folder or an fsspec URL (`s3://bucket/run`). Object storage can neither append nor rename, so a
run is always written into a local folder, and the files that changed are uploaded whole.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from dcgan_dist.errors import RunDirectoryError, StorageError
from dcgan_dist.paths import expanded

SET_ASIDE = "set_aside"
"""Folder of a run directory, with a numbered folder for each time that something damaged was moved out of the way."""

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between one try of an upload and the next; after the last one it is an error."""

# What network file systems answer to fsync of a folder.
NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

# These stores have no folders to make, and "making" one can create a bucket by a slip of the pen.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "r2", "memory"})

# What S3 answers to a conditional write when the file has changed, or is being replaced by another at this moment.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")

Result = TypeVar("Result")


def parse_location(location: str) -> Path | str:
    """Return the absolute path of a local location (`file://` too), or the URL of any other."""
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    elif "://" in location:
        return location.rstrip("/")
    return expanded(location).absolute()


def to_json(value: object) -> str:
    """Return `value` as one line of strict JSON; NaN and infinities, which JSON has not, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line that names the file.

    Raises:
        StorageError: writing failed.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def undone_by_errors(path: Path) -> Iterator[None]:
    """Remove a file that could not be written whole: on a full disk, others need its room."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_FOR_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def temporary_for(path: Path) -> Path:
    """Return the hidden name under which `path` is written before it gets its own."""
    return path.with_name(f".{path.name}.writing")


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file so that readers and crashes see the old content or the new one, never a part.

    Args:
        path: the file; its folder exists.
        content: what it will hold.
        durable: whether to wait for the disk, so that even a power cut leaves one of the two.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = temporary_for(path)
    with writing(path):
        with undone_by_errors(temporary):
            with temporary.open("wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        if durable:
            sync_path(path.parent)


def check_writable(location: str) -> None:
    """Check that files can be written into a folder, which need not be there yet, or below a URL.

    Raises:
        RunDirectoryError: they cannot.
        StorageError: object storage does not take a file.
    """
    where = parse_location(location)
    if isinstance(where, str):
        probe = f".{uuid.uuid4().hex}.writing"
        mirror = Mirror(where, delays=())
        mirror.write(probe, b"")
        mirror.remove([probe])
        return
    try:
        with TemporaryFile(dir=next(folder for folder in (where, *where.parents) if folder.exists())):
            pass
    except OSError as error:
        raise RunDirectoryError(
            f"{location} cannot be written: {error.strerror or error}; take a folder that can be"
        ) from error


class Mirror:
    """Files below one URL of an fsspec file system; names are relative to it, with forward slashes."""

    def __init__(self, url: str, delays: Sequence[float] | None = None) -> None:
        """Open the file system; nothing is sent yet.

        Args:
            url: such as `s3://bucket/run`.
            delays: seconds to wait before each further try; left out, `RETRY_DELAYS`.

        Raises:
            RunDirectoryError: no such kind of URL, or the package for it is missing.
        """
        import fsspec

        self.url = url
        self._delays = RETRY_DELAYS if delays is None else delays
        protocol = url.partition("://")[0]
        try:
            self._system, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            way_out = "pip install 'dcgan-dist[s3]'" if protocol in ("s3", "s3a") else str(error)
            raise RunDirectoryError(f"{url} needs a package that is not installed: {way_out}") from error
        except ValueError as error:
            raise RunDirectoryError(f"{url!r} is no location for results ({error}): take a folder or s3://…") from error
        self._root = root.rstrip("/")
        self._has_folders = protocol not in _WITHOUT_FOLDERS

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, name: str, verb: str, action: Callable[[], Result]) -> Result:
        """Do `action`, trying again after a pause; a missing file is for the caller to judge."""
        for delay in (*self._delays, None):
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:  # every fsspec file system raises exceptions of its own
                from dcgan_dist.storage.remote import about_credentials, goes_unsigned  # slow, and rarely needed

                if goes_unsigned(self._system, error):
                    return self._try(name, verb, action)
                if delay is None or isinstance(error, PermissionError):
                    reason = " ".join(str(error).split()) or type(error).__name__
                    if way_out := about_credentials(self._system, error):
                        reason += f": {way_out}"
                    raise StorageError(f"cannot {verb} {self.url}/{name}: {reason}") from error
            time.sleep(delay)
        raise AssertionError("the last try returns or raises")

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all files below `folder`, sorted.

        Raises:
            StorageError: the storage does not answer.
        """

        def find() -> list[str]:
            self._system.invalidate_cache()
            return list(self._system.find(self._path(folder)))

        try:
            found = self._try(folder, "list", find)
        except FileNotFoundError:
            return []
        start = len(self._root) + 1
        return sorted(path[start:] for path in found if path.startswith(f"{self._root}/"))

    def versions(self, folder: str = "") -> dict[str, str]:
        """Return the names of all files below `folder`, sorted, each with a text that changes when the file does.

        Raises:
            StorageError: the storage does not answer.
        """

        def find() -> dict[str, dict[str, Any]]:
            self._system.invalidate_cache()
            return dict(self._system.find(self._path(folder), detail=True))

        try:
            found = self._try(folder, "list", find)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        times = ("ETag", "etag", "LastModified", "mtime", "updated", "created")
        return {
            path[start:]: " ".join(str(details.get(name)) for name in ("size", *times) if name in details)
            for path, details in sorted(found.items())
            if path.startswith(f"{self._root}/")
        }

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None where there is none.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            content = self._try(name, "read", lambda: self._system.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        return bytes(content)

    def write(self, name: str, content: bytes) -> None:
        """Replace the content of a file.

        Raises:
            StorageError: it cannot be written, even when tried again.
        """
        self._send(name, lambda: self._system.pipe_file(self._path(name), content))

    def read_version(self, name: str) -> tuple[bytes | None, str | None]:
        """Return the content of a file and what tells this version from others, both None where there is none.

        The version is the one that was there before the content was read, so that `swap` errs on the safe side.

        Raises:
            StorageError: the storage does not answer.
        """

        def look() -> dict[str, Any]:
            self._system.invalidate_cache()
            return dict(self._system.info(self._path(name)))

        try:
            version = self._try(name, "read", look).get("ETag")
        except FileNotFoundError:
            return None, None
        return self.read(name), version

    def swap(self, name: str, content: bytes, version: str | None) -> bool:
        """Replace a file where it still has a version (None: where it is still missing); False where it has not.

        On other storage than S3, whose conditional writes fsspec does not offer, it is replaced in any case.

        Raises:
            StorageError: it cannot be written, even when tried again.
        """
        condition: dict[str, str] = {}
        if "s3" in self._system.protocol:
            condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        swapped = True

        def send() -> None:
            nonlocal swapped
            try:
                self._system.pipe_file(self._path(name), content, **condition)
            except OSError as error:
                answer = getattr(error.__cause__, "response", None) or {}
                if answer.get("Error", {}).get("Code") not in _CHANGED:
                    raise
                swapped = False

        self._send(name, send)
        return swapped

    def upload(self, name: str, source: Path) -> None:
        """Replace a file by a local one, of any size.

        Raises:
            StorageError: it cannot be written, even when tried again.
        """
        self._send(name, lambda: self._system.put_file(str(source), self._path(name)))

    def _send(self, name: str, action: Callable[[], object]) -> None:
        def send() -> None:
            if self._has_folders:
                self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            action()

        try:
            self._try(name, "write", send)
        except FileNotFoundError as error:
            raise StorageError(f"cannot write {self.url}/{name}: {error} (does the bucket exist?)") from error

    def download(self, name: str, target: Path) -> bool:
        """Copy a file to a local path; False where there is none.

        Raises:
            StorageError: the storage does not answer.
        """
        try:
            self._try(name, "read", lambda: self._system.get_file(self._path(name), str(target)))
        except FileNotFoundError:
            return False
        return True

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name; the old one goes when the new one is there.

        Raises:
            StorageError: the storage does not answer, or the file is gone.
        """
        self._send(new_name, lambda: self._system.cp_file(self._path(name), self._path(new_name)))
        self.remove([name])

    def remove(self, names: Iterable[str]) -> None:
        """Remove files in the order given; one that is gone already is no error.

        Raises:
            StorageError: the storage does not answer.
        """
        for name in names:
            try:
                self._try(name, "remove", partial(self._system.rm_file, self._path(name)))
            except FileNotFoundError:
                continue


class Uploader:
    """Keeps the small files of a local folder the same on object storage."""

    def __init__(self, folder: Path, mirror: Mirror, patterns: Sequence[str]) -> None:
        self._folder = folder
        self._mirror = mirror
        self._patterns = patterns
        self._sent: dict[str, tuple[int, int]] = {}
        self._mutex = threading.Lock()

    def _present(self) -> dict[str, tuple[int, int]]:
        """Name, and time of change and size, of every file to be kept."""
        found = {}
        for pattern in self._patterns:
            for path in sorted(self._folder.glob(pattern)):
                try:
                    details = path.stat()
                except FileNotFoundError:
                    continue  # removed at this moment by the thread that writes
                found[path.relative_to(self._folder).as_posix()] = (details.st_mtime_ns, details.st_size)
        return found

    def download(self) -> None:
        """Fetch the files from the storage.

        Raises:
            StorageError: the storage does not answer.
        """
        for name in self._mirror.names():
            if any(Path(name).match(pattern) and "/" not in name for pattern in self._patterns):
                self._mirror.download(name, self._folder / name)
        self._sent = self._present()

    def sync(self) -> None:
        """Upload what changed since the last time, then remove what is gone.

        Raises:
            StorageError: the storage does not answer, even when tried again.
        """
        with self._mutex:
            present = self._present()
            for name, version in present.items():
                if self._sent.get(name) == version:
                    continue
                try:
                    # Read whole: a file that grows during the upload is sent as it was at one moment.
                    content = (self._folder / name).read_bytes()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise StorageError(f"cannot read {self._folder / name}: {error.strerror or error}") from error
                self._mirror.write(name, content)
                self._sent[name] = version
            gone = [name for name in self._sent if name not in present]
            self._mirror.remove(gone)
            for name in gone:
                del self._sent[name]


def read_file(location: str, name: str) -> bytes | None:
    """Return a file of a run directory, None where there is none.

    Raises:
        RunDirectoryError: no such kind of URL.
        StorageError: it cannot be read.
    """
    place = parse_location(location)
    if isinstance(place, str):
        return Mirror(place, delays=()).read(name)
    try:
        return (place / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"cannot read {place / name}: {error.strerror or error}") from error


def parse_json_object(content: bytes | None) -> dict[str, Any] | None:
    """Return a JSON object, None where the content is none (missing, torn or damaged)."""
    if content is None:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
