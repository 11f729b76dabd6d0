"""Files on remote storage: http(s), s3, and every other scheme that fsspec knows.

Each action is retried until it succeeds or `PATIENCE_S` pass without a new byte: immediately after the first lost
connection; with exponentially growing, jittered delays if that happens again or if the storage answers with an error.
A transfer that is cut off, or receives nothing for `STALL_S`, continues where it stopped if the storage can serve
ranges, otherwise from the beginning. A thread that waits in this module can be interrupted: see `interrupted_by`.
"""

from __future__ import annotations

import concurrent.futures
import errno
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from dcgan_dist.errors import DataError, StorageError, Unreachable

if TYPE_CHECKING:
    import asyncio

    import aiohttp

STALL_S = 10.0  # without a byte, until a transfer counts as cut off
PATIENCE_S = 25.0  # without a new byte, over all tries, until the storage counts as unreachable
FIRST_PATIENCE_S = 5.0  # the same for the first file of a set, whose URL may be mistyped
RANGE_PATIENCE_S = 15.0  # the same for a range of a file: the whole file can be downloaded instead
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 4.0

_BLOCK = 4 << 20  # bytes per request to storage whose transfers cannot be observed
_BLOCK_S = 60.0
_WATCH_S = 0.1  # seconds between two looks at the flag of `interrupted_by`

# Schemes that are a view of other storage, or that would execute something.
_WRAPPERS = {"async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dir", "filecache", "simplecache"}
_WRAPPERS |= {"dask", "data", "generic", "jlab", "jupyter", "libarchive", "pyscript", "reference", "tar", "zip"}
# Errors of storage drivers that are not OSErrors, with the module that defines each, which may not be imported yet.
_DRIVER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TRANSIENT = (408, 425, 429)  # the client errors (4xx) that pass: timeout, too early, too many requests
_SECRETS = re.compile(r"(?<=://)[^/\s'\"]*@|\?[^\s'\")]+")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

Result = TypeVar("Result")


class Flag(Protocol):
    """Signal to a waiting thread to give up: an Event of threading or of multiprocessing."""

    def is_set(self) -> bool:
        """Return whether to give up."""
        ...


class Interrupted(Exception):
    """The flag of `interrupted_by` was set: the result that was waited for is not needed any more."""


class MissingFile(DataError):
    """There is no such file."""


_flag: ContextVar[Flag | None] = ContextVar("flag", default=None)


@contextmanager
def interrupted_by(flag: Flag) -> Iterator[None]:
    """Within the block, make this thread's waits in this module and in `cache` raise Interrupted once `flag` is set."""
    token = _flag.set(flag)
    try:
        yield
    finally:
        _flag.reset(token)


def pause(seconds: float) -> None:
    """Sleep for some seconds, unless interrupted.

    Raises:
        Interrupted: the flag of `interrupted_by` is set.
    """
    end = time.monotonic() + seconds
    while True:
        flag = _flag.get()
        if flag is not None and flag.is_set():
            raise Interrupted
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _WATCH_S))


def result_of(future: concurrent.futures.Future[Result], most_s: float | None = None) -> Result:
    """Wait for the result of a future, at most `most_s` seconds.

    Raises:
        Interrupted: the flag of `interrupted_by` is set.
        TimeoutError: it took longer.
    """
    end = None if most_s is None else time.monotonic() + most_s
    while not concurrent.futures.wait([future], timeout=_WATCH_S).done:
        pause(0)
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"no answer in {most_s:.0f} s")
    return future.result()


def is_url(path: str) -> bool:
    """Return whether a path is a URL, such as ``s3://bucket/folder``."""
    return "://" in path


def join_url(folder: str, name: str) -> str:
    """Return the URL of a file in a folder; a query (``?token=...``) stays at the end."""
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def shown(text: str) -> str:
    """Return a URL, or a text with URLs, without possible secrets: ``user:password@`` and ``?token=...``."""
    return _SECRETS.sub("", text)


def check_scheme(url: str) -> None:
    """Check that files can be read from a URL's scheme.

    Raises:
        DataError: the scheme is unknown, or is chained of several (``a::b://``).
    """
    import fsspec  # takes a tenth of a second, so it is imported only if there is a URL

    scheme = url.split("://", 1)[0]
    if "::" in url or scheme in _WRAPPERS or scheme not in fsspec.available_protocols():
        raise DataError(
            f"{shown(url)!r} has the scheme {scheme!r}, which cannot be read: take a path, http(s)://, s3:// …"
        )


def read_url(url: str) -> bytes:
    """Return the content of a small remote file.

    Raises:
        DataError: there is no such file.
        Unreachable: the storage was not reached.
    """
    content: bytes = persist(url, lambda storage, path: _call(storage, "cat_file", path), FIRST_PATIENCE_S)
    return content


def remote_state(url: str) -> tuple[int | None, str]:
    """Return the length of a remote file in bytes (None if unknown) and its version, an ETag or a date ("" if unknown).

    Raises:
        DataError, Unreachable: as `read_url`.
    """
    about: dict[str, Any] = persist(url, lambda storage, path: _call(storage, "info", path), FIRST_PATIENCE_S)
    return about.get("size"), _version(about)


def _version(about: dict[str, Any]) -> str:
    return str(about.get("ETag") or about.get("Last-Modified") or about.get("LastModified") or "")


def read_range(url: str, start: int, size: int) -> bytes | None:
    """Return `size` bytes of a remote file from `start` on; None if its storage serves whole files only.

    Raises:
        DataError: there is no such file. Not every storage reports that here; some give None.
        Unreachable: the storage was not reached.
    """

    def read(storage: Any, path: str) -> bytes | None:
        if _is_http(url):
            return _wait_for(_http_range(storage, path, start, size), storage.loop)
        content: bytes = _call(storage, "cat_file", path, start=start, end=start + size)
        return content

    return persist(url, read, RANGE_PATIENCE_S)


def download(url: str, part: FileIO, size: int | None, *, resume: bool) -> None:
    """Append the missing bytes of a remote file to `part`.

    On return, `part` holds the whole file as the storage sends it, or more than `size` bytes.

    Args:
        url: the file.
        part: open for reading and writing, with the first bytes of the file or empty.
        size: length of the file in bytes, if known.
        resume: whether to keep the bytes in `part`, although they may be those of another version of the file. The
            caller should then know a digest.

    Raises:
        DataError: there is no such file.
        StorageError: the disk is full.
        Unreachable: the storage was not reached, or lost the connection again and again without a new byte.
    """
    transfer = _Transfer(part, size, resume)
    persist(url, transfer.advance, PATIENCE_S, lambda: transfer.most)


def list_url(url: str, patience: float = FIRST_PATIENCE_S) -> set[str]:
    """Return the names of the files and folders directly in a remote folder; an empty set if it does not exist.

    Raises:
        Unreachable: the storage was not reached.
    """

    def names(storage: Any, path: str) -> set[str]:
        storage.invalidate_cache()  # fsspec remembers listings, and other hosts write there too
        found = storage.ls(path, detail=True)
        names = {entry["name"].rstrip("/") for entry in found} - {path.rstrip("/")}
        return {name.rpartition("/")[2] for name in names}

    try:
        return persist(url, names, patience, done="listed")
    except MissingFile:
        return set()


@dataclass(frozen=True)
class Listed:
    """A file below a URL.

    Attributes:
        name: its path below the URL, with slashes.
        key: the name that its storage knows it by.
        size: in bytes; None if the storage does not report it.
        version: its ETag or date; "" if the storage does not report one.
    """

    name: str
    key: str
    size: int | None
    version: str

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of its name."""
        return tuple(self.name.split("/"))


def list_tree(url: str) -> list[Listed]:
    """Return all files below a remote folder, sorted by path; an empty list if it does not exist.

    Raises:
        Unreachable: the storage was not reached.
    """

    def find(storage: Any, path: str) -> list[Listed]:
        storage.invalidate_cache()
        root = path.rstrip("/") + "/"
        try:
            found = storage.find(root, detail=True)
        except FileNotFoundError:
            return []
        return [
            Listed(unquote(name) if _is_http(url) else name, key, about.get("size"), _version(about))
            for key, about in found.items()
            if about["type"] == "file" and key.startswith(root) and (name := key[len(root) :])
        ]

    return sorted(persist(url, find, FIRST_PATIENCE_S), key=lambda file: file.path)


def read_listed(url: str, file: Listed) -> bytes:
    """Return the content of a small file listed by `list_tree`.

    Raises:
        DataError: it does not exist any more.
        Unreachable: the storage was not reached.
    """
    content: bytes = persist(url, lambda storage, _: _call(storage, "cat_file", file.key), PATIENCE_S)
    return content


class _Transfer:
    """A download that may take several connections."""

    def __init__(self, part: FileIO, size: int | None, resume: bool) -> None:
        self._part, self._size, self._resume = part, size, resume
        self._version: str | None = None  # the file's ETag or date
        self._short_end = -1
        self.most = self._length

    @property
    def _length(self) -> int:
        return os.fstat(self._part.fileno()).st_size

    def advance(self, storage: Any, path: str) -> None:
        if self._version is None and not self._resume:
            self._part.truncate(0)
        if self._size is not None and self._length >= self._size:
            return
        if _is_http(f"{storage.protocol[0]}://"):
            _wait_for(self._http(storage, path), storage.loop)
        else:
            self._blocks(storage, path)

    async def _http(self, storage: Any, path: str) -> None:
        start = self._length
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self._version is not None:
            headers["If-Range"] = self._version  # a changed file is then sent from its beginning
        async with await _get(storage, path, headers) as answer:
            first, total = _range_of(answer)
            if answer.status == 416:  # range not satisfiable: there is nothing after `start`
                if total == start:
                    return
                self._part.truncate(0)
                raise ConnectionError("it is shorter than before")
            _check(answer)
            etag = answer.headers.get("ETag", "")  # a weak one (W/"…") does not promise equal bytes
            version = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
            if start and answer.status == 206 and (first != start or self._version not in (None, version)):
                self._part.truncate(0)
                raise ConnectionError("it changed on its way")
            if answer.status != 206:  # the whole file, not the range that was requested
                self._part.truncate(0)
            self._version = version
            async for content in answer.content.iter_any():
                self._append(content)
                if self._size is not None and self._length > self._size:
                    answer.close()
                    return
            if total is None and "chunked" not in answer.headers.get("Transfer-Encoding", ""):
                self._check_end()

    def _check_end(self) -> None:
        """Raise ConnectionError if the answer ended before `size`, unless it ends at the same byte a second time."""
        # Without a length in the answer, a lost connection looks like the end of the file.
        end = self._length
        if self._size is not None and end < self._size and end != self._short_end:
            self._short_end = end
            raise ConnectionError(f"the answer ended at byte {end} of {self._size}")

    def _blocks(self, storage: Any, path: str) -> None:
        if self._size is None:
            self._append(_call(storage, "cat_file", path))
            return
        while (start := self._length) < self._size:
            asked = min(_BLOCK, self._size - start)
            content = _call(storage, "cat_file", path, start=start, end=start + asked)
            self._append(content)
            if len(content) < asked:
                return

    def _append(self, content: bytes) -> None:
        view = memoryview(content)
        self._part.seek(0, os.SEEK_END)
        while view:
            view = view[self._part.write(view) :]
        self.most = max(self.most, self._part.tell())


async def _get(storage: Any, path: str, headers: dict[str, str]) -> Any:
    import aiohttp

    session = await storage.set_session()
    return session.get(
        storage.encode_url(path),
        headers={"Accept-Encoding": "identity", **headers},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S),
        read_bufsize=1 << 18,
    )


async def _http_range(storage: Any, path: str, start: int, size: int) -> bytes | None:
    async with await _get(storage, path, {"Range": f"bytes={start}-{start + size - 1}"}) as answer:
        if answer.status >= 500 or answer.status in _TRANSIENT:
            answer.raise_for_status()
        if answer.status != 206 or _range_of(answer)[0] != start:
            answer.close()
            return None
        content: bytes = await answer.read()
        return content


def _range_of(answer: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Return the offset of an answer in its file, and the length of the file, if known."""
    if match := _CONTENT_RANGE.match(answer.headers.get("Content-Range", "")):
        return int(match[1] or 0), None if match[2] == "*" else int(match[2])
    return 0, answer.content_length


def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status in (404, 410):
        raise FileNotFoundError(answer.status)
    answer.raise_for_status()


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _open_storage(url: str) -> tuple[Any, str]:
    """Return the fsspec driver of a URL's storage, and the driver's name of the file."""
    import fsspec

    check_scheme(url)
    options: dict[str, Any] = {}
    if _is_http(url):
        import aiohttp  # takes a third of a second, so it is imported only for http

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=STALL_S, sock_read=STALL_S)}
    elif url.startswith(("s3://", "s3a://")):
        # `persist` retries: retries in the driver as well would multiply the delays.
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "read_timeout": STALL_S}
        options["config_kwargs"]["connect_timeout"] = STALL_S
    try:
        storage, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        way_out = "pip install 'dcgan-dist[s3]'" if url.startswith("s3") else str(error)
        raise DataError(f"{shown(url)!r} needs a package that is not installed: {way_out}") from error
    return storage, path


def persist(
    url: str,
    action: Callable[[Any, str], Result],
    patience: float,
    progress: Callable[[], int] = lambda: 0,
    done: str = "read",
    tries: int = 1,
) -> Result:
    """Do an action on a remote file; retry it while the storage fails.

    Args:
        url: the file.
        action: called with the storage's driver and the driver's name of the file.
        patience: seconds without progress until it is an error.
        progress: returns a number that grows while the action makes progress.
        done: the participle of the action for messages: `read`, `written`, …
        tries: minimum number of tries, since one try with a large file can take longer than `patience`.

    Raises:
        MissingFile: there is no such file.
        Unreachable: the storage failed for too long, or refused.
        StorageError: the disk of this host is full.
    """
    storage, path = _open_storage(url)
    reached, since, failures = progress(), time.monotonic(), 0
    while True:
        pause(0)
        try:
            return action(storage, path)
        except _storage_errors() as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise StorageError(
                    f"{shown(url)!r} cannot be kept in the cache ({error.strerror}): set data.cache or data.cache_gib"
                ) from error
            if error_code(error) == "NoSuchBucket":
                raise DataError(
                    f"{shown(url)!r} cannot be {done} ({_reason(error)}): does the bucket exist?"
                ) from error
            if _is_missing(error):
                raise MissingFile(f"there is no file {shown(url)!r}") from error
            if goes_unsigned(storage, error):
                continue
            if progress() > reached:
                reached, since, failures = progress(), time.monotonic(), 0
            is_over = time.monotonic() - since >= patience and failures + 1 >= tries
            if is_over or _is_refused(error):
                way_out = about_credentials(storage, error) or "is its server up and open to you?"
                raise Unreachable(f"{shown(url)!r} cannot be {done} ({_reason(error)}): {way_out}") from error
            # A single lost connection is retried at once: it says nothing about the storage. An error status does.
            delays = failures + (1 if _status(error) else 0)
            failures += 1
        if delays:
            pause(min(FIRST_DELAY_S * 2 ** (delays - 1), LONGEST_DELAY_S) * random.uniform(0.5, 1))


def goes_unsigned(storage: Any, error: Exception) -> bool:
    """Switch to unsigned requests if `error` says that there are no credentials; return whether that was done.

    Public buckets accept unsigned requests.
    """
    if type(error).__name__ != "NoCredentialsError" or getattr(storage, "anon", True):
        return False
    storage.anon = True
    storage.connect(refresh=True)
    return True


def about_credentials(storage: Any, error: Exception) -> str:
    """Return what to do where a bucket refuses access; "" for other errors and other storage."""
    if not isinstance(error, PermissionError) or not hasattr(storage, "anon"):
        return ""
    if storage.anon:
        return "it was asked without credentials, so set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "are the credentials right? A public bucket is read without any where FSSPEC_S3_ANON=true is set"


def _call(storage: Any, name: str, *arguments: Any, **settings: Any) -> Any:
    """Call a method of a storage driver so that waiting for it can be interrupted."""
    if getattr(storage, "async_impl", False):
        return _wait_for(getattr(storage, f"_{name}")(*arguments, **settings), storage.loop, _BLOCK_S)
    called: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def call() -> None:
        try:
            called.set_result(getattr(storage, name)(*arguments, **settings))
        except Exception as error:  # noqa: BLE001 `result_of` raises it again
            called.set_exception(error)

    threading.Thread(target=call, daemon=True, name="dcgan_dist-storage").start()
    return result_of(called, _BLOCK_S)


def _wait_for(
    action: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop, most_s: float | None = None
) -> Result:
    """Return the result of a coroutine of the driver's event loop; if interrupted, cancel it and wait for its end."""
    import asyncio  # not needed if all files are on this host

    ended = threading.Event()

    async def watched() -> Result:
        try:
            return await action
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), loop)
    try:
        return result_of(future, most_s)
    finally:
        if not future.done() or future.cancelled():
            future.cancel()
            ended.wait(1)


def _is_missing(error: Exception) -> bool:
    # fsspec's http driver raises FileNotFoundError for any failure: its cause has the status.
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, _storage_errors()) and not error_code(error):
        return getattr(cause, "status", None) in (404, 410)
    return isinstance(error, FileNotFoundError | IsADirectoryError)


def error_code(error: Exception) -> str:
    """Return S3's code of an error, such as NoSuchBucket; "" for other storage."""
    answer = getattr(error.__cause__, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _is_refused(error: Exception) -> bool:
    """Return whether a retry would get the same answer."""
    if isinstance(error, PermissionError):
        return True
    status = _status(error)
    return 400 <= status < 500 and status not in _TRANSIENT


def _status(error: Exception) -> int:
    """Return the http status of an error; 0 if it has none."""
    return getattr(error, "status", None) or getattr(error.__cause__, "status", None) or 0


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status:
        return f"status {status} {getattr(error, 'message', '')}".strip()
    return shown(" ".join(str(error).split())) or type(error).__name__


def _storage_errors() -> tuple[type[Exception], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _DRIVER_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))
