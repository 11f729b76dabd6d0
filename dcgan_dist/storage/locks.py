"""File locks that the kernel releases when their process ends; on a file system without locks, one warning instead."""

from __future__ import annotations

import errno
import fcntl
from functools import lru_cache

from dcgan_dist.printing import tell

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: int, name: object, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file or folder. The lock is advisory: it only excludes other callers of this function.

    Args:
        file: its descriptor. Closing it releases the lock.
        name: the name of the file for the warning.
        shared: whether other callers with `shared` may hold the lock at the same time.
        wait: whether to wait until the lock is free.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is off.
        OSError: the file system failed.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn(str(name), error.strerror or str(error))


def unlock(file: int) -> None:
    """Release a lock before its file is closed, also for processes forked in the meantime, which share the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@lru_cache(1)  # one warning per process
def _warn(name: str, reason: str) -> None:
    tell(
        f"warning: the file system of {name} has no locks ({reason}): do not let two commands write there at once",
        to_stderr=True,
    )
