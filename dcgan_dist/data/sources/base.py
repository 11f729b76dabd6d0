"""The interface of sources: inputs in a fixed order, each of which knows how to make its image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.images import FORMATS, Pixels, Target, cut_off, decode_fitted, fit
from dcgan_dist.errors import DataError

Folders = tuple[str, ...]
Split = Literal["train", "test", "extra"]
Labels = Literal["none", "first", "last"]


class Content(Protocol):
    """The data that an image is made from, small enough to be sent to a worker process."""

    def picture(self, target: Target) -> tuple[Pixels, dict[str, Any] | None, Remarks]:
        """Return the image, shape (size, size, channels), its attributes if it has any, and what was noticed.

        Raises:
            DataError: it cannot be decoded.
        """


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file."""

    content: bytes

    def picture(self, target: Target) -> tuple[Pixels, None, Remarks]:
        """See `Content`."""
        image, remarks = decode_fitted(self.content, target)
        return image, None, remarks


@dataclass(frozen=True)
class RawImage:
    """An image's values, uint8 of shape (rows, columns, channels)."""

    values: Pixels

    def picture(self, target: Target) -> tuple[Pixels, None, Remarks]:
        """See `Content`."""
        image = fit(self.values, target.size, target.channels, target.fitting)
        return image, None, Remarks(cut=cut_off(self.values, target.fitting))


@dataclass(frozen=True)
class Unreadable:
    """Stands for the content of an input that could not be read: a damaged member, a file without permission."""

    reason: str

    def picture(self, target: Target) -> tuple[Pixels, None, Remarks]:
        """See `Content`."""
        raise DataError(self.reason)


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        name: by which a person finds it in the source.
        folders: the folders that it is in, or its class as the only one: labels are derived from them.
        content: the data that its image is made from; None if it turned out not to be an image.
        share: share of the source that has been read after it, in [0, 1].
        reason: why it is left out, if `content` is None.
    """

    name: str
    folders: Folders
    content: Content | None
    share: float
    reason: str = ""


class Part(Protocol):
    """Some inputs of a source, small enough to be sent to a worker process, which can read them by itself."""

    @property
    def count(self) -> int:
        """Number of its inputs."""

    def items(self) -> Iterator[tuple[int, Item]]:
        """Read the inputs; yield the number of each in the source, and the input, whose `share` is that of the part.

        Raises:
            DataError: the source is damaged or has changed.
        """


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A source of images for shards.

    Attributes:
        name: of the kind of source.
        where: path or description of the source, for messages.
        identity: values that distinguish this source from others, found without reading all of it.
        image_size: side of its images if it is the same for all, else None.
        channels: 1 if all its images are grey, else 3.
        classes: names of its labels in their usual order; None if the folders name them.
        count: number of its images if it is known before reading, else None.
        only: names of folders or classes to which the images are restricted; empty for all.
        label_folder: which of an item's folders names its class; see `classes_of`.
    """

    name: str
    where: str
    identity: dict[str, str | int]
    image_size: int | None = None
    channels: int = 3
    classes: tuple[str, ...] | None = None
    count: int | None = None
    only: tuple[str, ...] = ()
    label_folder: Labels = "last"

    @property
    def ignored(self) -> Counter[str]:
        """Number of files that were ignored because their suffixes are not those of images, by suffix."""
        return Counter()

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Read the source from the beginning; yield its inputs.

        Raises:
            DataError: the source as a whole is damaged or truncated.
        """

    def all_folders(self) -> Collection[Folders] | None:
        """Return all values of its items' `folders`; None if they are known only after reading."""
        return None

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[Part] | None:
        """Split the source into parts that any process can read by itself.

        Args:
            size: inputs in a part; the last may have fewer.
            seed: of the order of the inputs, which depends only on the source and `seed`.
            count: number of inputs, the first ones of the source; None for all.

        Returns:
            The parts; None if the source can only be read from its beginning.
        """
        return None


def shuffled(count: int, seed: int) -> npt.NDArray[np.intp]:
    """Return a permutation of 0 … count - 1 that depends only on count and seed, not on a generator's version."""
    keys = [xxhash.xxh3_64_intdigest(number.to_bytes(8, "little"), seed) for number in range(count)]
    return np.argsort(np.array(keys, dtype=np.uint64), kind="stable")


def classes_of(
    folders: Collection[Folders], classes: tuple[str, ...] | None, labels: Labels = "last"
) -> tuple[tuple[str, ...], dict[Folders, int]]:
    """Return the names of the classes, and the class of each value of `folders`.

    The last folder that differs between images names the class: folders at the end that all images have in common
    (``CLASS/images/1.png``) are ignored. If all images are in a single folder, they have no labels (class -1). With
    labels "first", the first folder that differs names the class; with "none", no image has a label.
    """
    if labels == "none":
        return (), dict.fromkeys(folders, -1)
    if classes is not None and all(path and path[-1] in classes for path in folders):
        return classes, {path: classes.index(path[-1]) for path in folders}
    paths = {path: path for path in folders}
    while len(paths) > 1 and all(paths.values()) and len({path[-1] for path in paths.values()}) == 1:
        paths = {whole: path[:-1] for whole, path in paths.items()}
    if labels == "first":
        while len(paths) > 1 and all(paths.values()) and len({path[0] for path in paths.values()}) == 1:
            paths = {whole: path[1:] for whole, path in paths.items()}
        paths = {whole: path[:1] for whole, path in paths.items()}
    if len(paths) < 2:
        return (), dict.fromkeys(folders, -1)
    found = {path[-1] for path in paths.values() if path}
    # Numbers keep their own order: 10 comes after 9.
    are_numbers = all(name.isascii() and name.isdecimal() for name in found)
    names = tuple(sorted(found, key=lambda name: (int(name) if are_numbers else 0, name)))
    if len(names) < 2 and all(paths.values()):
        return (), dict.fromkeys(folders, -1)
    numbers = {name: number for number, name in enumerate(names)}
    return names, {whole: numbers[path[-1]] if path else -1 for whole, path in paths.items()}


def single_class_of(folders: Collection[Folders]) -> str:
    """Return the name of the folder that all images are in; "" if there are several, or none."""
    names = set(folders)
    return "".join(names.pop()[-1:]) if len(names) == 1 else ""


def nothing_found(source: Source) -> DataError:
    """Return the error of a source without images."""
    if source.only:
        names = ", ".join(source.only)
        return DataError(f"{source.where} holds no image of {names}: see the names of its folders, or leave out only")
    return DataError(f"{source.where} holds no image ({', '.join(FORMATS)} are read)")
