"""CIFAR-10 as it is distributed: pickled batches, from which no code is executed; or a tree of class folders."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dcgan_dist.data.images import SUFFIXES, Pixels
from dcgan_dist.data.sources.archives import Member, identity_of, image_item, is_image, members
from dcgan_dist.data.sources.base import Folders, Item, RawImage, Source, Split
from dcgan_dist.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_CIFAR10_ROW = 3 * 32 * 32


class _PickledType:
    """Replaces NumPy's array type in a pickle; only referred to, never called."""


class _PickledDtype:
    """Replaces a NumPy dtype in a pickle."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore the state (byte order and the like), which single bytes do not need."""


class _PickledArray:
    """Replaces a NumPy array in a pickle: keeps the pickled state, and creates only arrays of bytes from it."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> Pixels:
        """Return the array.

        Raises:
            ValueError: it is not an array of bytes, or its shape does not match its content.
        """
        match self.state:
            case (_, tuple(shape), _PickledDtype(code="u1" | b"u1"), by_column, bytes(content)):
                order: Literal["F", "C"] = "F" if by_column else "C"
                return np.frombuffer(content, np.uint8).reshape(shape, order=order)
            case _:
                raise ValueError("an array in it holds no bytes")


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> _PickledArray:
    """Replace NumPy's function that creates an array from a pickle of protocol 5."""
    array = _PickledArray()
    array.state = (1, shape, dtype, order == "F", bytes(content) if isinstance(content, bytes | bytearray) else None)
    return array


class _BatchUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays, bytes, text, numbers, lists and dicts; refuses a pickle that names anything else.

    Not even NumPy's own functions are called: their arguments are kept as plain values and checked.
    """

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): _PickledType,
        ("numpy", "dtype"): _PickledDtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of one of the few names that a batch needs."""
        known = self._KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")
        return known


def read_cifar_batch(content: bytes, where: str) -> tuple[Pixels, list[int]]:
    """Read one of CIFAR-10's Python batches without executing anything that it names.

    Returns:
        Images of shape (n, 32, 32, 3), and their classes (0 to 9).

    Raises:
        DataError: it is not such a batch, or names anything but arrays.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        values = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        rows = values["data"].array()
        labels = [int(label) for label in values["labels"]]
        if rows.ndim != 2 or rows.shape[1] != _CIFAR10_ROW or len(labels) != len(rows):
            raise ValueError(f"data of shape {rows.shape} and {len(labels)} labels")
        if not all(0 <= label < len(CIFAR10_CLASSES) for label in labels):
            raise ValueError("a label is not in 0 to 9")
    except (
        *(pickle.UnpicklingError, AttributeError, EOFError, ImportError, LookupError, TypeError, ValueError),
        *(OverflowError, MemoryError, RecursionError),
    ) as error:
        raise DataError(f"{where} is no CIFAR-10 batch: {' '.join(str(error).split())}") from error
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


@dataclass(frozen=True, kw_only=True)
class CifarSource(Source):
    """CIFAR-10: its Python batches, in their folder or archive, or a tree of class folders."""

    path: Path
    split: Split

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        batches = _CIFAR10_BATCHES[self.split]
        other = "test" if self.split == "train" else "train"

        def is_wanted(path: Folders) -> bool:
            return path[-1] in batches or (
                path[-1].lower().endswith(SUFFIXES) and is_image(path, self.only) and other not in path[:-1]
            )

        for member in members(self.path, is_wanted):
            if member.content and member.path[-1] in batches:
                yield from self._batch(member)
            else:
                yield image_item(member)

    def _batch(self, member: Member) -> Iterator[Item]:
        images, labels = read_cifar_batch(member.content, f"{self.path}: {member.name}")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            category = CIFAR10_CLASSES[label]
            if not self.only or category in self.only:
                yield Item(f"{member.name} image {number}", (category,), RawImage(image), member.share)


def cifar_source(path: Path, split: Split, only: tuple[str, ...]) -> CifarSource:
    """Open CIFAR-10's batches, in their folder or archive, or a tree of class folders."""
    return CifarSource(
        name="cifar10",
        where=str(path),
        identity=identity_of(path) | {"split": split},
        image_size=32,
        classes=CIFAR10_CLASSES,
        only=only,
        path=path,
        split=split,
    )
