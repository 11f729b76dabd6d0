"""Download data sets from their official URLs into the cache, and compare them with their known checksums."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch

from dcgan_dist.data.progress import PLAIN_PERIOD_S, TERMINAL_PERIOD_S
from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.storage.cache import one_at_a_time
from dcgan_dist.storage.remote import check_scheme, join_url, shown
from dcgan_dist.storage.remote import download as download_part

MIRROR_VARIABLE = "DCGAN_DIST_MIRROR"


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class _Origin:
    """The URL of a data set, and the files of each split. A source reads their folder if there are several."""

    url: str
    splits: dict[str, tuple[_File, ...]]


_CIFAR10 = (_File("cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),)
_ORIGINS = {
    "cifar10": _Origin("https://www.cs.toronto.edu/~kriz", {"train": _CIFAR10, "test": _CIFAR10}),
    "svhn": _Origin(
        "http://ufldl.stanford.edu/housenumbers",
        {
            "train": (_File("train_32x32.mat", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),),
            "test": (_File("test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3"),),
            "extra": (_File("extra_32x32.mat", 1_329_278_602, "a93ce644f1a588dc4d68dda5feec44a7"),),
        },
    ),
    "mnist": _Origin(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        {
            "train": (
                _File("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                _File("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            ),
            "test": (
                _File("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
                _File("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
            ),
        },
    ),
    "fashion_mnist": _Origin(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train": (
                _File("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                _File("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            ),
            "test": (
                _File("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
                _File("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
        },
    ),
}


def download(kind: str, split: str, cache: Path, *, base: str | None = None) -> Path:
    """Download the files of a data set that are not in the cache yet, and return the path for `open_source`.

    A file appears in the cache only when it is complete and its checksum is right. An interrupted transfer continues
    where it stopped.

    Args:
        kind: `cifar10`, `svhn`, `mnist` or `fashion_mnist`.
        split: `train`, `test`, or `extra` of `svhn`.
        cache: the cache's folder; the files are in its `downloads/KIND`.
        base: URL of a folder that has the files in sub-folders KIND, to use instead of the official URLs; None for
            $DCGAN_DIST_MIRROR, if that is set.

    Raises:
        DataError: that kind or split cannot be downloaded, is unreachable, or its checksum is wrong.
        StorageError: the disk is full or fails.
    """
    origin = _ORIGINS.get(kind)
    if origin is None:
        raise DataError(f"source is {kind!r}: only {', '.join(_ORIGINS)} can be downloaded, so give --input")
    files = origin.splits.get(split)
    if files is None:
        raise DataError(f"split is {split!r}: {kind} has {' and '.join(origin.splits)}")
    mirror = base or os.environ.get(MIRROR_VARIABLE)
    folder_url = origin.url if not mirror else join_url(mirror, kind)
    check_scheme(folder_url)
    folder = cache / "downloads" / kind
    pooch.get_logger().setLevel(logging.WARNING)  # its messages name temporary files
    with one_at_a_time(cache, f"download-{kind}"):
        for file in files:
            _get(file, folder_url, folder)
    return folder / files[0].name if len(files) == 1 else folder


def _get(file: _File, folder_url: str, folder: Path) -> None:
    url, target = join_url(folder_url, file.name), folder / file.name
    way_out = f"download it by hand to {target}, or give --input"

    def transfer(_: str, output: Any, __: Any) -> None:
        with open(output, "r+b", buffering=0) as part, _progress(file, Path(output)):
            part.truncate()
            download_part(url, part, file.size, resume=False)

    try:
        pooch.retrieve(url, f"md5:{file.md5}", file.name, folder, downloader=transfer)
    except DataError as error:
        raise DataError(f"{error}; or {way_out}") from error
    except ValueError as error:  # a wrong checksum
        raise DataError(f"{shown(url)} does not have the expected checksum md5:{file.md5}: {way_out}") from error
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error


@contextmanager
def _progress(file: _File, part: Path) -> Iterator[None]:
    """Print how much of a file has been downloaded, in a line that is rewritten on a terminal."""
    done = threading.Event()
    is_terminal = sys.stderr.isatty()
    start = time.monotonic()

    def show() -> None:
        while not done.wait(TERMINAL_PERIOD_S if is_terminal else PLAIN_PERIOD_S):
            has = part.stat().st_size
            rate = has / (time.monotonic() - start)
            line = f"{file.name}: {has / 1e6:,.0f} of {file.size / 1e6:,.0f} MB, {rate / 1e6:,.1f} MB/s"
            sys.stderr.write(f"\r{line.ljust(79)}" if is_terminal else line + "\n")
            sys.stderr.flush()
        if is_terminal:
            sys.stderr.write("\r" + " " * 79 + "\r")
            sys.stderr.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
