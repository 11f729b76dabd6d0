"""Choosing a source by its kind."""

from __future__ import annotations

import os
from pathlib import Path

from dcgan_dist.data.sources.archives import ARCHIVES, has_suffix, identity_of
from dcgan_dist.data.sources.base import Source, Split
from dcgan_dist.data.sources.cifar10 import CIFAR10_CLASSES, CifarSource
from dcgan_dist.data.sources.folder import FolderSource
from dcgan_dist.data.sources.mnist import mnist_source
from dcgan_dist.data.sources.rooms import room_source
from dcgan_dist.errors import DataError


def open_source(
    kind: str,
    path: str | Path | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    split: Split = "train",
    only: tuple[str, ...] = (),
) -> Source:
    """Open a source of images.

    Args:
        kind: `rooms`, `folder`, `cifar10` or `mnist`.
        path: folder or file; none for `rooms`.
        count: number of rooms; other sources have as many images as they have.
        seed: of the rooms.
        split: which part of CIFAR-10's batches or of MNIST.
        only: names of folders or classes, to take no others; all where empty.

    Raises:
        DataError: there is nothing there, or nothing of that kind.
    """
    if kind == "rooms":
        if path is not None:
            raise DataError(f"input is {str(path)!r}: rooms are drawn, so leave it out")
        if only:
            raise DataError(f"only is {', '.join(only)!r}: rooms have no folders, so leave it out")
        return room_source(count or 20_000, seed)
    if path is None:
        raise DataError(f"input is missing: name the folder or file of the {kind} images")
    place = Path(path).expanduser()
    try:
        if not place.exists():
            raise DataError(f"input {str(path)!r} does not exist")
        if place.is_dir() and not any(place.iterdir()):
            raise DataError(f"input {str(path)!r} is an empty folder")
        if place.is_file() and not place.stat().st_size:
            raise DataError(f"input {str(path)!r} is an empty file")
        place = Path(os.path.abspath(place))
        if kind == "mnist":
            return mnist_source(place, split, only)
        if not place.is_dir() and not has_suffix(place, ARCHIVES):
            raise DataError(f"input {str(path)!r} is of an unknown kind: take a folder, {', '.join(ARCHIVES)}")
        identity = identity_of(place)
    except OSError as error:
        raise DataError(f"input {str(path)!r} cannot be read: {error.strerror}") from error
    if kind == "folder":
        return FolderSource(name=kind, where=str(place), identity=identity, only=only, path=place)
    return CifarSource(
        name=kind,
        where=str(place),
        identity=identity | {"split": split},
        image_size=32,
        classes=CIFAR10_CLASSES,
        only=only,
        path=place,
        split=split,
    )
