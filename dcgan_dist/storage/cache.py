"""The cache: a folder of the host for copies of remote files and for generated data, with a size limit.

::

    open_copy ─> is there a copy?  ── yes ─> open it with a shared lock
                    │ no
                    ├─ lock NAME.part (another process has it: wait, look again)
                    ├─ remove the least recently used copies until there is space
                    └─ download, compare size and digest, rename to NAME (or NAME.damaged)

Any number of processes may use one cache at the same time. One of them makes a copy while the others wait; if it is
killed, the next one continues the download where it stopped. Every process that uses or makes a copy holds a lock on
the file itself (flock), which ends with the process: copies in use are kept, others are removed when space is needed,
the least recently used first. A removed copy is downloaded again when it is needed.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import FileIO
from pathlib import Path

import xxhash
from filelock import FileLock

from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.printing import tell
from dcgan_dist.storage.locks import lock
from dcgan_dist.storage.remote import MissingFile, download, pause

CACHE_VARIABLE = "DCGAN_DIST_CACHE"
COPIES = "shards"  # the folder in the cache whose files may be removed to free space

_DOWNLOADS = 3  # of a file that does not match, before the last one is kept as damaged
_DAMAGED_S = 600.0  # seconds before a damaged copy is downloaded again
_SPARE = 0.05  # share of the limit that is freed at once, so that the files are seldom listed
_FREE = 0.1  # share of the disk that is left free if no limit is set

_log = logging.getLogger(__name__)


def cache_directory(chosen: str | Path | None = None) -> Path:
    """Return the cache's folder: `chosen`, else $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist; create it if necessary.

    If the home folder cannot be written, as in many containers, a folder for temporary files is used instead.

    Raises:
        DataError: it cannot be created or written.
    """
    named = chosen or os.environ.get(CACHE_VARIABLE)
    given = str(named or Path("~", ".cache", "dcgan_dist"))
    problem = f"the cache {given!r} cannot be written"
    try:
        folder = Path(os.path.expanduser(given)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError) as error:  # a RuntimeError if there is no home folder
        problem = f"the cache {given!r} cannot be made ({getattr(error, 'strerror', None) or error})"
    if named:
        raise DataError(f"{problem}: set data.cache")
    return _cache_without_home(problem)


@lru_cache(1)  # one message per process
def _cache_without_home(problem: str) -> Path:
    # Every user can write to the folder of temporary files: trust a cache there only if it is ours.
    folder = Path(tempfile.gettempdir(), f"dcgan_dist-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        is_ours = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
    except OSError as error:
        raise DataError(f"{problem}, nor {str(folder)!r} ({error.strerror}): set data.cache") from error
    if not is_ours:
        raise DataError(f"{problem}, and {str(folder)!r} is another user's: set data.cache")
    tell(f"{problem}: using {str(folder)!r}; data.cache or {CACHE_VARIABLE} names another", to_stderr=True)
    return folder


@contextmanager
def one_at_a_time(cache: Path, name: str) -> Iterator[None]:
    """Admit one process of the host at a time to the block, by a lock called `name`; a dead process holds no lock."""
    locks = cache / "locks"
    locks.mkdir(exist_ok=True)
    only_one = FileLock(locks / f"{name}.lock")
    with warnings.catch_warnings():
        # On a file system without locks, filelock warns and creates a file exclusively instead.
        warnings.simplefilter("ignore")
        only_one.acquire()
    with only_one:
        only_one.release()  # `with` has acquired it a second time
        yield


def open_copy(
    url: str,
    target: Path,
    cache: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    limit: int | None = None,
) -> FileIO:
    """Open the copy of a remote file; download it first if necessary. It stays in the cache while open or mapped.

    A download that does not match `size` or `digest` is repeated. If it still does not match, it is kept under another
    name and opened, so that a reader that checks each record can use the undamaged ones.

    Args:
        url: the file.
        target: the path of its copy in the cache.
        cache: the cache's folder.
        size: its length in bytes, if known.
        digest: its xxh3_64 as 16 hex digits, if known.
        limit: maximum bytes of all copies in the cache; None leaves a tenth of the disk free.

    Raises:
        DataError: there is no such file.
        StorageError: the cache's disk is full.
        Unreachable: the storage was not reached.
    """
    damaged = target.with_name(target.name + ".damaged")
    while True:
        copy = _hold(target, size) or _hold(damaged, None, _DAMAGED_S)
        if copy is not None:
            return copy
        part = _claim(target.with_name(target.name + ".part"))
        if part is None:
            pause(0.02)
            continue
        try:
            if target.exists():  # another process has made it since we looked
                Path(str(part.name)).unlink()
                continue
            _free_space(cache, limit, size or 0)
            matches = _fill(part, url, size, digest)
            if size is None:
                _free_space(cache, limit, os.fstat(part.fileno()).st_size)
            os.rename(str(part.name), target if matches else damaged)
        except (MissingFile, StorageError):  # if the storage is unreachable instead, the next try continues this part
            Path(str(part.name)).unlink(missing_ok=True)
            raise
        finally:
            part.close()


def map_copy(file: FileIO) -> memoryview:
    """Map an open file into memory, read-only, and close the file.

    A copy stays in the cache until the last reference to the memory is gone, since the mapping keeps its lock.

    Raises:
        DataError: the file is empty.
    """
    with file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError as error:
            raise DataError(f"{str(file.name)!r} is empty: make or copy it again") from error


def file_digest(path: Path) -> str:
    """Return the xxh3_64 of a file as 16 hex digits."""
    with FileIO(path) as file:
        return _digest(file)


def _digest(file: FileIO) -> str:
    digest = xxhash.xxh3_64()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _fill(part: FileIO, url: str, size: int | None, digest: str | None) -> bool:
    """Download the rest of a claimed file; return whether its size and digest are right."""
    for answer in range(1, _DOWNLOADS + 1):
        download(url, part, size, resume=digest is not None)
        right_size = size is None or os.fstat(part.fileno()).st_size == size
        if right_size and (digest is None or _digest(part) == digest):
            return True
        if answer < _DOWNLOADS:
            part.truncate(0)
    return False


def _hold(path: Path, size: int | None, youngest_s: float | None = None) -> FileIO | None:
    """Open an existing copy under a shared lock; remove it if it has another size, ignore it if it is too old."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return None
    # An exclusive lock is held only for moments, by a process that removes the copy or has just made it.
    lock(file.fileno(), path, shared=True, wait=True)
    about = os.fstat(file.fileno())
    if not about.st_nlink or (youngest_s is not None and time.time() - about.st_mtime > youngest_s):
        file.close()
        return None
    if size is not None and about.st_size != size:  # possible after a power cut
        path.unlink(missing_ok=True)
        file.close()
        return None
    with suppress(PermissionError):  # if the file is another user's
        # The access time orders the copies for removal; many file systems do not keep it by themselves (noatime).
        os.utime(file.fileno(), ns=(time.time_ns(), about.st_mtime_ns))
    return file


def _claim(path: Path) -> FileIO | None:
    """Open a file under an exclusive lock to write it; return None if another process holds the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+")
    except OSError as error:
        raise StorageError(f"the cache cannot keep {str(path)!r} ({error.strerror}): set data.cache") from error
    try:
        lock(file.fileno(), path)
    except OSError as error:
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise StorageError(f"the cache cannot lock {str(path)!r} ({error.strerror}): set data.cache") from error
    if not _is_at(file, path):  # between opening and locking, its last owner has renamed or removed it
        file.close()
        return None
    return file


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _free_space(cache: Path, limit: int | None, size: int) -> None:
    """Remove unused copies, the least recently used first, until `size` more bytes fit.

    To list all files only seldom, a running total is kept, and a little more space is freed than needed. The total may
    be too high (it counts downloads that have only begun), never too low.
    """
    with one_at_a_time(cache, "room"):
        if limit is None:
            disk = shutil.disk_usage(cache)
            lacking = size + int(_FREE * disk.total) - disk.free
            if lacking > 0 and _remove(cache, lacking + int(0.01 * disk.total))[1] < lacking:
                _warn_once(
                    "less than a tenth of the cache's disk is free even without unused downloads: set data.cache"
                )
            return
        ledger = cache / "locks" / "room.bytes"
        try:
            total = int(ledger.read_text())
        except (FileNotFoundError, ValueError):
            total = limit + 1
        if total + size > limit:
            before, freed = _remove(cache, None, int((1 - _SPARE) * limit) - size)
            total = before - freed
            if total + size > limit:
                _warn_once(
                    f"data.cache_gib is {limit / 2**30:.3g}, too few for the shards that are in use at a time: the "
                    f"cache takes more than that; raise it"
                )
        ledger.write_text(str(total + size))


def _remove(cache: Path, wanted: int | None, keep: int = 0) -> tuple[int, int]:
    """Remove unused copies; return the bytes of all copies before, and the bytes removed.

    Args:
        cache: the cache's folder.
        wanted: bytes to remove; None removes all but `keep`.
        keep: bytes that may stay.
    """
    found = []
    try:
        with os.scandir(cache / COPIES) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was just renamed from .part, so it is in use and stays
                    found.append((entry.stat(), entry.path))
    except FileNotFoundError:
        return 0, 0
    total = sum(about.st_size for about, _ in found)
    wanted = total - keep if wanted is None else wanted
    removed = 0
    for about, path in sorted(found, key=lambda entry: entry[0].st_atime_ns):
        if removed >= wanted:
            break
        if _remove_unused(path):
            removed += about.st_size
    return total, removed


def _remove_unused(path: str) -> bool:
    try:
        with FileIO(path, "r+") as file:
            lock(file.fileno(), path)
            os.unlink(path)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    return True


@lru_cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
