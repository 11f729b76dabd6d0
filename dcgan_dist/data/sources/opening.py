"""Open a source by its kind."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from dcgan_dist.data.sources.archives import ARCHIVES, archive_kind
from dcgan_dist.data.sources.base import Source, Split
from dcgan_dist.data.sources.cifar10 import cifar_source
from dcgan_dist.data.sources.folder import folder_source, imagenet_source
from dcgan_dist.data.sources.lsun import lsun_source
from dcgan_dist.data.sources.mnist import mnist_source
from dcgan_dist.data.sources.remote_files import remote_file
from dcgan_dist.data.sources.remote_folder import remote_folder_source
from dcgan_dist.data.sources.rooms import room_source
from dcgan_dist.data.sources.svhn import svhn_source
from dcgan_dist.data.sources.webdataset import is_list_of_tars, webdataset_source
from dcgan_dist.errors import DataError
from dcgan_dist.paths import expanded
from dcgan_dist.storage.remote import check_scheme, is_url, shown


def open_source(
    kind: str,
    path: str | Path | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    split: Split = "train",
    only: tuple[str, ...] = (),
    image_member: str | None = None,
) -> Source:
    """Open a source of images.

    Args:
        kind: `rooms`, `lsun`, `folder`, `imagenet`, `cifar10`, `svhn`, `mnist`, `fashion_mnist` or `webdataset`.
        path: folder or file; for `folder` and `webdataset` also a URL; None for `rooms`.
        count: number of rooms; ignored for other sources.
        seed: of the rooms.
        split: of CIFAR-10, SVHN, MNIST, Fashion-MNIST or ImageNet; only SVHN has `extra`.
        only: names of folders or classes to which the images are restricted; empty for all.
        image_member: extension of the members of `webdataset` that are the images; see `WebDatasetSource`.

    Raises:
        DataError: it does not exist, or is not of that kind.
    """
    if image_member is not None and kind != "webdataset":
        raise DataError(f"image_member is {image_member!r}: only webdataset has members, so leave it out")
    if kind == "rooms":
        if path is not None:
            raise DataError(f"input is {str(path)!r}: rooms are drawn, so leave it out")
        if only:
            raise DataError(f"only is {', '.join(only)!r}: rooms have no folders, so leave it out")
        return room_source(count or 20_000, seed)
    if path is None:
        raise DataError(f"input is missing: name the folder or file of the {kind} images")
    if split == "extra" and kind != "svhn":
        raise DataError(f"split is 'extra': only svhn has it, so take train or test of {kind}")
    if is_url(str(path)):
        text = str(path)
        if not text.startswith("file://"):
            return _opened_url(kind, text, only, image_member)
        path = text.removeprefix("file://")
    location = expanded(path)
    try:
        if kind == "webdataset" and is_list_of_tars(str(location)):
            return webdataset_source(os.path.abspath(location), only, image_member)
        _check(location, str(path))
        return _opened(kind, Path(os.path.abspath(location)), split, only, image_member)
    except OSError as error:
        raise DataError(f"input {str(path)!r} cannot be read: {error.strerror}") from error


def _opened_url(kind: str, url: str, only: tuple[str, ...], image_member: str | None) -> Source:
    check_scheme(url)
    if kind == "webdataset":
        return webdataset_source(url, only, image_member)
    if kind == "folder":
        is_archive = urlsplit(url).path.lower().endswith(ARCHIVES)
        return folder_source(remote_file(url), only) if is_archive else remote_folder_source(url, only)
    raise DataError(
        f"input is {shown(url)!r}: only folder and webdataset can be read from remote storage, so copy the files of "
        f"{kind} to this host first"
    )


def _check(location: Path, given: str) -> None:
    if not location.exists():
        raise DataError(f"input {given!r} does not exist")
    if location.is_dir() and not any(location.iterdir()):
        raise DataError(f"input {given!r} is an empty folder")
    if location.is_file() and not location.stat().st_size:
        raise DataError(f"input {given!r} is an empty file")


def _opened(kind: str, location: Path, split: Split, only: tuple[str, ...], image_member: str | None) -> Source:
    match kind:
        case "lsun":
            if only:
                raise DataError(f"only is {', '.join(only)!r}: an LMDB of LSUN has one category, so leave it out")
            return lsun_source(location)
        case "svhn":
            return svhn_source(location, split, only)
        case "mnist" | "fashion_mnist":
            return mnist_source(kind, location, split, only)
        case "imagenet":
            return imagenet_source(location, split, only)
        case "webdataset":
            return webdataset_source(str(location), only, image_member)
    if not location.is_dir() and archive_kind(location) is None:
        raise DataError(f"input {str(location)!r} is of an unknown kind: take a folder, {', '.join(ARCHIVES)}")
    return folder_source(location, only) if kind == "folder" else cifar_source(location, split, only)
