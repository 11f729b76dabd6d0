"""Files that lie elsewhere, and the folder of a host where they and generated data are kept.

Any number of processes may use one cache at the same time: a file is made by one of them while the others wait, under
a temporary name until it is whole.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import xxhash
from filelock import FileLock

from dcgan_dist.errors import DataError, StorageError, Unreachable

CACHE_VARIABLE = "DCGAN_DIST_CACHE"
TRIES = 5
FIRST_DELAY_S = 0.25

# Storage that is a view of other storage, or that would run something.
_WRAPPERS = {"async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dir", "filecache", "simplecache"}
_WRAPPERS |= {"dask", "data", "generic", "jlab", "jupyter", "libarchive", "pyscript", "reference", "tar", "zip"}
# Errors of storage drivers that are no OSError, by the module that has them once it is in use.
_DRIVER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)

Result = TypeVar("Result")


def cache_directory(chosen: str | Path | None = None) -> Path:
    """Return the cache's folder: `chosen`, else $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist; make it if need be.

    Raises:
        DataError: it cannot be made or written.
    """
    given = str(chosen or os.environ.get(CACHE_VARIABLE) or Path("~", ".cache", "dcgan_dist"))
    folder = Path(given).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the cache {given!r} cannot be made ({error.strerror}): set data.cache") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"the cache {given!r} cannot be written: set data.cache")
    return folder


@contextmanager
def one_at_a_time(cache: Path, name: str) -> Iterator[None]:
    """Let one process of the host at a time do what `name` stands for; the lock of a dead process is free."""
    locks = cache / "locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / f"{name}.lock"):
        yield


def is_url(path: str) -> bool:
    """Whether a path names storage by a scheme, as in ``s3://bucket/folder``."""
    return "://" in path


def join_url(folder: str, name: str) -> str:
    """Return the URL of a file in a folder; a query (``?token=...``) stays at the end."""
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def check_scheme(url: str) -> None:
    """Check that a URL's scheme is one that files can be read from.

    Raises:
        DataError: the scheme is unknown, or is made of several.
    """
    scheme = url.split("://", 1)[0]
    if "::" in url or scheme in _WRAPPERS or scheme not in fsspec.available_protocols():
        raise DataError(f"{url!r} has the scheme {scheme!r}, which cannot be read: take a path, http(s)://, s3:// …")


def read_url(url: str) -> bytes:
    """Return the content of a small remote file.

    Raises:
        DataError: there is no such file, or it cannot be read after several tries.
        Unreachable: the storage was not reached.
    """
    content: bytes = _try(url, lambda storage, path: storage.cat_file(path))
    return content


def remote_size(url: str) -> int | None:
    """Return the length of a remote file in bytes; None where its storage does not say.

    Raises:
        DataError, Unreachable: as `read_url`.
    """
    size: int | None = _try(url, lambda storage, path: storage.info(path).get("size"))
    return size


def fetch(url: str, target: Path, cache: Path, *, size: int | None = None, digest: str | None = None) -> Path:
    """Download a file into the cache, if it is not there yet, and return where it is.

    A download that does not match `size` or `digest` is tried again. What still does not match is kept under another
    name and returned, so that a reader that checks each record can use the undamaged ones.

    Args:
        url: the file.
        target: its place in the cache.
        cache: the cache's folder.
        size: its length in bytes, where known.
        digest: its xxh3_64 as 16 hex digits, where known.

    Raises:
        DataError: there is no such file.
        StorageError: the cache's disk is full.
        Unreachable: the storage was not reached.
    """
    if target.exists():
        return target
    with one_at_a_time(cache, target.name):
        if target.exists():
            return target
        part = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for again in (True, True, False):
                _try(url, lambda storage, path: storage.get_file(path, str(part)))
                if (size is None or part.stat().st_size == size) and (digest is None or file_digest(part) == digest):
                    return part.rename(target)
                if not again:
                    return part.rename(target.with_name(target.name + ".damaged"))
        finally:
            part.unlink(missing_ok=True)
    raise AssertionError("the loop returns")


def send(file: Path, url: str) -> None:
    """Copy a file to remote storage.

    Raises:
        DataError: there is no such storage.
        Unreachable: the storage was not reached.
    """
    _try(url, lambda storage, path: storage.put_file(str(file), path))


def download(url: str, path: Path) -> None:
    """Copy a remote file to a path, over what is there.

    Raises:
        DataError: there is no such file.
        StorageError: the disk is full.
        Unreachable: the storage was not reached.
    """
    _try(url, lambda storage, source: storage.get_file(source, str(path)))


def list_url(url: str) -> set[str]:
    """Return the names of the files in a remote folder; none where there is nothing.

    Raises:
        Unreachable: the storage was not reached.
    """

    def names(storage: Any, path: str) -> set[str]:
        storage.invalidate_cache()
        try:
            found = storage.ls(path, detail=True)
        except FileNotFoundError:
            return set()
        return {entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file"}

    return _try(url, names)


def delete_url(url: str) -> None:
    """Remove a remote file, if it is there.

    Raises:
        Unreachable: the storage was not reached.
    """

    def remove(storage: Any, path: str) -> None:
        with suppress(FileNotFoundError):
            storage.rm_file(path)

    _try(url, remove)


def file_digest(path: Path) -> str:
    """Return the xxh3_64 of a file as 16 hex digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _open_storage(url: str) -> tuple[Any, str]:
    """Return the driver of a URL's storage, and the file's name for it."""
    check_scheme(url)
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # No limit on a download that moves on, unlike aiohttp's own five minutes.
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}
    elif url.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}  # tried again here, not in there as well
    try:
        storage, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        scheme = url.split("://", 1)[0]
        extra = " (for s3: pip install 'dcgan-dist[s3]')" if scheme.startswith("s3") else ""
        raise DataError(f"{url!r} needs a package for {scheme}://: {error}{extra}") from error
    return storage, path


def _try(url: str, action: Callable[[Any, str], Result]) -> Result:
    """Do something with a remote file, again with growing delays if the storage fails."""
    storage, path = _open_storage(url)
    for left in range(TRIES - 1, -1, -1):
        try:
            return action(storage, path)
        except _storage_errors() as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise StorageError(f"{url!r} cannot be kept in the cache ({error.strerror}): set data.cache") from error
            if _is_missing(error):
                raise DataError(f"there is no file {url!r}") from error
            if not left:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise Unreachable(f"{url!r} cannot be read ({reason}): is its server up and open to you?") from error
        time.sleep(FIRST_DELAY_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("the loop returns or raises")


def _is_missing(error: Exception) -> bool:
    """Whether an error says that a file is not there; the driver for http says so of any failure, with its cause."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, _storage_errors()):
        return getattr(cause, "status", None) in (404, 410)
    return isinstance(error, FileNotFoundError | IsADirectoryError)


def _storage_errors() -> tuple[type[Exception], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _DRIVER_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))
