"""Paths given by users."""

from __future__ import annotations

from pathlib import Path

from dcgan_dist.errors import InputError


def expanded(path: str | Path) -> Path:
    """Return a path with a leading `~` or `~name` replaced by the home folder.

    Raises:
        InputError: the home folder is unknown, for example if HOME is unset and the user is not in /etc/passwd.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r} begins with a home folder that is not known: set HOME, or name it") from error
