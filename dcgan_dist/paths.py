"""Paths that a person gave."""

from __future__ import annotations

from pathlib import Path

from dcgan_dist.errors import InputError


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in place of a `~` or `~name` that it begins with.

    Raises:
        InputError: there is no such folder, as where HOME is unset and the user has no entry in /etc/passwd.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r} begins with a home folder that is not known: set HOME, or name it") from error
