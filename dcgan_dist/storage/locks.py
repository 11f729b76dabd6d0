"""Locks on files that end with their process; on a file system that has none, one warning instead."""

from __future__ import annotations

import errno
import fcntl
from functools import lru_cache

from dcgan_dist.printing import tell

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: int, name: object, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file or folder, against whoever locks it by this function too.

    Args:
        file: its descriptor. The lock ends when it is closed.
        name: what the warning calls it.
        shared: whether others may hold it at the same time, who ask for it so too.
        wait: whether to wait until it is free.

    Raises:
        BlockingIOError: another process holds it, and `wait` is off.
        OSError: the file system failed.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn(str(name), error.strerror or str(error))


def unlock(file: int) -> None:
    """End a lock before its file is closed, for a process forked meanwhile too."""
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@lru_cache(1)
def _warn(name: str, reason: str) -> None:
    """Say once in a process what a missing lock means."""
    tell(
        f"warning: the file system of {name} has no locks ({reason}): do not let two commands write there at once",
        to_stderr=True,
    )
