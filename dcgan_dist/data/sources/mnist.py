"""MNIST and Fashion-MNIST: pairs of idx files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dcgan_dist.data.sources.archives import ARCHIVE_ERRORS, digest_of_file
from dcgan_dist.data.sources.base import Item, RawImage, Source, Split
from dcgan_dist.errors import DataError

# In the order of their labels.
_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class MnistSource(Source):
    """MNIST, or Fashion-MNIST, which has the same format: a pair of idx files, plain or gzipped."""

    images: Path
    labels: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        classes = self.classes or ()
        with _open_idx(self.images) as images, _open_idx(self.labels) as labels:
            count, rows, columns = _idx_shape(images, 3, self.images)
            (label_count,) = _idx_shape(labels, 1, self.labels)
            if count != label_count:
                raise DataError(f"{self.images} has {count} images, {self.labels} has {label_count} labels")
            for start in range(0, count, _ROWS_AT_ONCE):
                many = min(_ROWS_AT_ONCE, count - start)
                block = _idx_bytes(images, many * rows * columns, self.images)
                values = np.frombuffer(block, np.uint8).reshape(many, rows, columns, 1)
                for number, label in enumerate(_idx_bytes(labels, many, self.labels)):
                    if label >= len(classes):
                        raise DataError(f"{self.labels} holds the label {label}, which is not in 0 to 9")
                    category, at = classes[label], start + number
                    if not self.only or category in self.only:
                        yield Item(f"image {at}", (category,), RawImage(values[number]), (at + 1) / count)


def _open_idx(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _idx_bytes(file: IO[bytes], size: int, path: Path) -> bytes:
    try:
        content = file.read(size)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} is damaged or cut short ({error}): get it again") from error
    if len(content) != size:
        raise DataError(f"{path} is cut short: get it again")
    return content


def _idx_shape(file: IO[bytes], dimensions: int, path: Path) -> tuple[int, ...]:
    """Read the header of an idx file of unsigned bytes, and return its shape."""
    head = _idx_bytes(file, 4 + 4 * dimensions, path)
    if head[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is no idx file of {dimensions} dimensions of bytes")
    shape = tuple(int(length) for length in np.frombuffer(head[4:], ">u4"))
    if 0 in shape[1:] or any(length > 4096 for length in shape[1:]):
        raise DataError(f"{path} says that its images have {' x '.join(map(str, shape[1:]))} pixels")
    return shape


def mnist_source(kind: str, path: Path, split: Split, only: tuple[str, ...]) -> MnistSource:
    """Open the pair of idx files of `mnist` or `fashion_mnist`; `path` is their folder, or one of the files.

    Raises:
        DataError: there is no such pair.
    """
    part = "train" if split == "train" else "t10k"
    folder = path if path.is_dir() else path.parent

    def pick(kind: str) -> Path:
        names = [f"{part}-{kind}{joint}ubyte{end}" for joint in ("-", ".") for end in (".gz", "")]
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise DataError(f"{folder} holds no {names[0]} (nor {names[1]}): {kind} takes the folder of the idx files")

    images, labels = pick("images-idx3"), pick("labels-idx1")
    identity: dict[str, str | int] = {
        "input": images.name,
        "input_digest": digest_of_file(images),
        "input_labels_digest": digest_of_file(labels),
    }
    with _open_idx(images) as file:
        count, rows, columns = _idx_shape(file, 3, images)
    size = rows if rows == columns else None
    return MnistSource(
        name=kind,
        where=str(images),
        identity=identity,
        image_size=size,
        channels=1,
        classes=_CLASSES[kind],
        count=None if only else count,
        only=only,
        images=images,
        labels=labels,
    )
