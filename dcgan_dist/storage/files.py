"""Files on this host: atomic replacement, syncing to disk, and JSON."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dcgan_dist.errors import StorageError

PART = ".part"
"""Suffix of the name of a file that is being written."""

# Errors with which network file systems answer fsync of a folder: they do not support it, and nothing is wrong.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_WINDOWS_HIDDEN = ("thumbs.db", "desktop.ini")


def is_hidden(name: str) -> bool:
    """Return whether a file is one that operating systems create by themselves, such as ``.DS_Store``."""
    return name.startswith(".") or name.lower() in _WINDOWS_HIDDEN


def to_json(value: object) -> str:
    """Return `value` as one line of strict JSON. NaN and infinity, which JSON does not have, become null."""
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
    """Turn an OSError of the block into a one-line error that names the file.

    Raises:
        StorageError: writing failed.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def undone_by_errors(path: Path) -> Iterator[None]:
    """Remove a file that could not be written completely: on a full disk, other files need its space."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync(file: IO[Any]) -> None:
    """Wait until everything written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Wait until the content of a file, or the directory entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def temporary_for(path: Path) -> Path:
    """Return the hidden name under which `path` is written before it is renamed."""
    return path.with_name(f".{path.name}.writing")


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file so that readers see the old content or the new one, never a part, even after a crash.

    Args:
        path: the file; its folder must exist.
        content: the new content.
        durable: whether to wait for the disk, so that this also holds after a power cut.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = temporary_for(path)
    with writing(path):
        with undone_by_errors(temporary):
            with temporary.open("wb") as file:
                file.write(content)
                if durable:
                    sync(file)
            temporary.replace(path)
        if durable:
            sync_path(path.parent)  # the rename is a change of the folder, so that has to reach the disk as well


def parse_json_object(content: bytes | None) -> dict[str, Any] | None:
    """Return a JSON object, or None if the content is not one (missing, incomplete or damaged)."""
    if content is None:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
