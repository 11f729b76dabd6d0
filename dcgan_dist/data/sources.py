"""Where images come from: procedural rooms, folders and archives, CIFAR-10 as distributed, MNIST's idx files.

A source lists what it has one item after the other, in an order that does not change. Archives are read as streams,
each byte once, in bounded memory, and never extracted. Nothing is decoded here: an item says how to make its picture,
so that worker processes can.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from bz2 import BZ2File
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Protocol

import numpy as np
import xxhash

from dcgan_dist.data import rooms
from dcgan_dist.data.images import FORMATS, SUFFIXES, Pixels, decode, fit
from dcgan_dist.errors import DataError

Folders = tuple[str, ...]
Split = Literal["train", "test", "extra"]

MAX_FILE_BYTES = 1 << 28  # of one encoded image or batch
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_CIFAR10_ROW = 3 * 32 * 32
_MNIST_CLASSES = tuple("0123456789")
_ROWS_AT_ONCE = 1000
_OUTSIDE, _LINK, _NO_FILE = "its name points out of the archive", "it is a link", "it is no plain file"
_ARCHIVE_ERRORS = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError)


class Content(Protocol):
    """What an image is made from, small enough to be sent to a worker process."""

    def picture(self, size: int, channels: int) -> tuple[Pixels, dict[str, Any] | None]:
        """Return the image, shape (size, size, channels), and its attributes where it has any.

        Raises:
            DataError: it cannot be decoded.
        """


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file."""

    content: bytes

    def picture(self, size: int, channels: int) -> tuple[Pixels, None]:
        """See `Content`."""
        return fit(decode(self.content, channels), size, channels), None


@dataclass(frozen=True)
class RawImage:
    """An image's values, uint8 of shape (rows, columns, channels)."""

    values: Pixels

    def picture(self, size: int, channels: int) -> tuple[Pixels, None]:
        """See `Content`."""
        return fit(self.values, size, channels), None


@dataclass(frozen=True)
class Room:
    """One procedural room."""

    seed: int
    index: int

    def picture(self, size: int, channels: int) -> tuple[Pixels, dict[str, Any]]:
        """See `Content`."""
        image, attributes = rooms.draw_room(self.seed, self.index, size)
        return fit(image, size, channels), {"index": self.index, **attributes}


@dataclass(frozen=True)
class Unreadable:
    """In place of the content of an input that could not be read: a damaged member, a file without permission."""

    reason: str

    def picture(self, size: int, channels: int) -> tuple[Pixels, None]:
        """See `Content`."""
        raise DataError(self.reason)


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        name: to find it by in the source.
        folders: the folders that it lies in, or its class as the only one: labels are made of them.
        content: what its image is made from; None for what is left out on purpose, such as a link in an archive.
        share: how much of the source has been read with it, in [0, 1].
        reason: why it is left out.
    """

    name: str
    folders: Folders
    content: Content | None
    share: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Images to be made into shards.

    Attributes:
        name: of the kind of source.
        where: the source in words, for messages.
        identity: what tells this source from others, without reading all of it.
        image_size: side of its images where all have the same, else None.
        channels: 1 where all its images are grey, else 3.
        classes: its labels in their usual order; None where the folders name them.
        count: number of its images where it is known before reading.
        only: names of folders or classes: no others are taken; all where empty.
    """

    name: str
    where: str
    identity: dict[str, str | int]
    image_size: int | None = None
    channels: int = 3
    classes: tuple[str, ...] | None = None
    count: int | None = None
    only: tuple[str, ...] = ()

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Read the source from the beginning.

        Raises:
            DataError: the source as a whole is damaged or cut short.
        """


@dataclass(frozen=True, kw_only=True)
class RoomSource(Source):
    """Procedural rooms; the class of a room is the side from which it is seen."""

    seed: int

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        count = self.count or 0
        for index in range(count):
            view = rooms.room_attributes(self.seed, index)["view"]
            yield Item(f"room {index}", (view,), Room(self.seed, index), (index + 1) / count)


def room_source(count: int, seed: int = 0) -> RoomSource:
    """Return the first `count` procedural rooms of `seed`."""
    return RoomSource(
        name="rooms",
        where=f"rooms of seed {seed}",
        identity={"rooms_version": rooms.VERSION, "rooms_seed": seed},
        image_size=64,
        classes=rooms.VIEWS,
        count=count,
        seed=seed,
    )


# --- files, in folders and archives -----------------------------------------------------------------------------------


Wanted = Callable[[Folders], bool]
"""Whether the file of this path in a folder or archive is to be read."""


@dataclass(frozen=True)
class _Member:
    """A file of a folder or archive.

    Attributes:
        name: as it stands there.
        path: its parts.
        share: how much of the folder or archive has been read with it.
        content: its bytes.
        left_out: why it is none to read.
        unreadable: why it could not be read.
    """

    name: str
    path: Folders
    share: float
    content: bytes = b""
    left_out: str = ""
    unreadable: str = ""


def _has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    return any(path.name.lower().endswith(suffix) for suffix in suffixes)


def _digest_of_file(path: Path, blocks: int = 256, block: int = 1 << 16) -> str:
    """Return a digest of a file's size and of evenly spread parts of it (all of it up to 16 MiB)."""
    size = path.stat().st_size
    digest = xxhash.xxh3_64(str(size).encode())
    with path.open("rb") as file:
        if size <= blocks * block:
            digest.update(file.read())
        else:
            for number in range(blocks):
                file.seek((size - block) * number // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()


def _safe_path(name: str) -> tuple[str, ...] | None:
    """Return the parts of a member's name; None where it points out of the archive."""
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if name.startswith(("/", "\\")) or ".." in parts or not parts or parts[0].endswith(":"):
        return None
    return parts


def _tar_members(path: Path, wanted: Wanted) -> Iterator[_Member]:
    size = max(1, path.stat().st_size)
    number = 0
    try:
        with path.open("rb", buffering=0) as file, _decompressed(file) as plain:
            stream = _Watched(plain)
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
                for entry in archive:
                    number += 1
                    vars(archive)["members"] = []  # tarfile would keep all of them, of millions too
                    name, parts, share = entry.name, _safe_path(entry.name), min(1.0, file.tell() / size)
                    if entry.isdir():
                        continue
                    if parts is None:
                        yield _Member(name, (), share, left_out=_OUTSIDE)
                    elif entry.islnk() or entry.issym():
                        yield _Member(name, parts, share, left_out=_LINK)
                    elif not entry.isreg() or entry.issparse():
                        yield _Member(name, parts, share, left_out=_NO_FILE)
                    elif wanted(parts) and entry.size > MAX_FILE_BYTES:
                        yield _Member(name, parts, share, unreadable=_too_large(entry.size))
                    elif wanted(parts):
                        content = archive.extractfile(entry)
                        yield _Member(name, parts, share, content.read() if content is not None else b"")
                is_whole = stream.has_end_mark(archive.offset)
    except _ARCHIVE_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged, cut short or no tar (after {number} members: {what})") from error
    if not is_whole:  # tarfile takes a damaged header for the end, and says nothing
        raise DataError(f"{path} is damaged or cut short after {number} members: get it again")


def _decompressed(file: io.FileIO) -> Any:
    """Return the plain bytes of a stream that may be compressed; unlike tarfile's own, it notices when cut short."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if magic.startswith(b"BZh"):
        return BZ2File(file)
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(file)
    return io.BufferedReader(file)


class _Watched(io.RawIOBase):
    """A stream that remembers its last parts, to see what stands where tarfile saw the end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._position += len(content)
        self._tail = (self._tail + content)[-4 * tarfile.RECORDSIZE :]
        return content

    def has_end_mark(self, offset: int) -> bool:
        """Whether the block of zeros that ends a tar stands at `offset`."""
        start = offset - (self._position - len(self._tail))
        return start >= 0 and self._tail[start : start + tarfile.BLOCKSIZE] == bytes(tarfile.BLOCKSIZE)


def _zip_members(path: Path, wanted: Wanted) -> Iterator[_Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for number, entry in enumerate(entries, 1):
                name, parts, share = entry.filename, _safe_path(entry.filename), number / len(entries)
                mode = entry.external_attr >> 16
                if parts is None:
                    yield _Member(name, (), share, left_out=_OUTSIDE)
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    yield _Member(name, parts, share, left_out=_LINK if stat.S_ISLNK(mode) else _NO_FILE)
                elif wanted(parts) and entry.file_size > MAX_FILE_BYTES:
                    yield _Member(name, parts, share, unreadable=_too_large(entry.file_size))
                elif wanted(parts):
                    yield _zip_member(archive, entry, parts, share)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged, cut short or no zip ({error})") from error


def _zip_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, parts: Folders, share: float) -> _Member:
    try:
        return _Member(entry.filename, parts, share, archive.read(entry))
    # RuntimeError: it has a password; NotImplementedError: a compression that Python does not know.
    except (*_ARCHIVE_ERRORS, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return _Member(entry.filename, parts, share, unreadable=reason)


def _folder_files(folder: Path) -> Iterator[tuple[Path, tuple[str, ...], str]]:
    """Walk a folder in the order of names: each file, its path below the folder, and why it is left out."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for place, below, files in os.walk(folder, onerror=fail):
        above = Path(place).relative_to(folder).parts
        below.sort()
        for name in [name for name in below if Path(place, name).is_symlink()]:
            below.remove(name)
            yield Path(place, name), (*above, name), _LINK
        for name in sorted(files):
            yield Path(place, name), (*above, name), ""


def _folder_members(folder: Path, wanted: Wanted) -> Iterator[_Member]:
    found = list(_folder_files(folder))
    for number, (path, parts, left_out) in enumerate(found, 1):
        name, share = "/".join(parts), number / len(found)
        try:
            if left_out:
                yield _Member(name, parts, share, left_out=left_out)
            elif wanted(parts):
                kind = path.stat()
                if not stat.S_ISREG(kind.st_mode):
                    yield _Member(name, parts, share, left_out=_NO_FILE)
                elif kind.st_size > MAX_FILE_BYTES:
                    yield _Member(name, parts, share, unreadable=_too_large(kind.st_size))
                else:
                    yield _Member(name, parts, share, path.read_bytes())
        except OSError as error:
            yield _Member(name, parts, share, unreadable=error.strerror or str(error))


def _too_large(size: int) -> str:
    return f"it has {size} bytes, more than {MAX_FILE_BYTES}"


def _members(path: Path, wanted: Wanted) -> Iterator[_Member]:
    if path.is_dir():
        return _folder_members(path, wanted)
    return _zip_members(path, wanted) if _has_suffix(path, (".zip",)) else _tar_members(path, wanted)


def _identity(path: Path) -> dict[str, str | int]:
    """Return what tells this folder or archive from others: names and sizes, parts of an archive's content."""
    if path.is_file():
        return {"input": path.name, "input_bytes": path.stat().st_size, "input_digest": _digest_of_file(path)}
    digest, count, total = xxhash.xxh3_64(), 0, 0
    for file, parts, _ in _folder_files(path):
        try:
            size = file.stat().st_size
        except OSError:
            size = -1
        digest.update("/".join(parts).encode("utf-8", "surrogateescape") + f"\0{size}\0".encode())
        count, total = count + 1, total + max(0, size)
    return {"input": path.name, "input_files": count, "input_bytes": total, "input_digest": digest.hexdigest()}


def _is_image(path: Folders, only: Collection[str]) -> bool:
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path)
    is_asked_for = not only or not set(only).isdisjoint(path[:-1])
    return is_asked_for and not is_hidden and path[-1].lower().endswith(SUFFIXES)


def _image_item(member: _Member) -> Item:
    content: Content = Unreadable(member.unreadable) if member.unreadable else EncodedImage(member.content)
    return Item(member.name, member.path[:-1], None if member.left_out else content, member.share, member.left_out)


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """All images below a folder, or in a .zip, .tar or compressed tar; folder names become labels."""

    path: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        return map(_image_item, _members(self.path, lambda path: _is_image(path, self.only)))


def classes_of(
    folders: Collection[Folders], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[Folders, int]]:
    """Return the names of the classes, and the class of each set of folders.

    A class is named by the last folder that tells images apart: folders at the end that all have in common
    (``CLASS/images/1.png``) do not. Images in a single folder have no labels (class -1).
    """
    if classes is not None and all(path and path[-1] in classes for path in folders):
        return classes, {path: classes.index(path[-1]) for path in folders}
    paths = {path: path for path in folders}
    while len(paths) > 1 and all(paths.values()) and len({path[-1] for path in paths.values()}) == 1:
        paths = {whole: path[:-1] for whole, path in paths.items()}
    if len(paths) < 2:
        return (), dict.fromkeys(folders, -1)
    names = tuple(sorted({path[-1] for path in paths.values() if path}))
    if len(names) < 2 and all(paths.values()):
        return (), dict.fromkeys(folders, -1)
    numbers = {name: number for number, name in enumerate(names)}
    return names, {whole: numbers[path[-1]] if path else -1 for whole, path in paths.items()}


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------


class _PickledType:
    """Stands for NumPy's array type in a pickle; only named, never called."""


class _PickledDtype:
    """Stands for a NumPy dtype in a pickle."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: single bytes have none."""


class _PickledArray:
    """Stands for a NumPy array in a pickle: keeps what it is made from, and makes only arrays of bytes."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> Pixels:
        """Return the array.

        Raises:
            ValueError: it is no array of bytes, or its size does not fit its content.
        """
        match self.state:
            case (_, tuple(shape), _PickledDtype(code="u1" | b"u1"), by_column, bytes(content)):
                order: Literal["F", "C"] = "F" if by_column else "C"
                return np.frombuffer(content, np.uint8).reshape(shape, order=order)
            case _:
                raise ValueError("an array in it holds no bytes")


def _from_buffer(content: object, dtype: object, shape: object, order: object) -> _PickledArray:
    """Stand for NumPy's way to make an array from a pickle of protocol 5."""
    array = _PickledArray()
    array.state = (1, shape, dtype, order == "F", bytes(content) if isinstance(content, bytes | bytearray) else None)
    return array


class _BatchUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays, bytes, text, numbers, lists and dicts; a pickle that names anything else is refused.

    Not even NumPy's own functions are called: what they would make is kept as plain values and checked.
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
        """Return the stand-in for one of the few names that a batch needs."""
        known = self._KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")
        return known


def read_cifar_batch(content: bytes, where: str) -> tuple[Pixels, list[int]]:
    """Read one of CIFAR-10's python batches without running anything that it names.

    Returns:
        Images of shape (n, 32, 32, 3), and their classes (0 to 9).

    Raises:
        DataError: it is no such batch, or names anything but arrays.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        values = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        rows = values["data"].array()
        labels = [int(label) for label in values["labels"]]
        if rows.ndim != 2 or rows.shape[1] != _CIFAR10_ROW or len(labels) != len(rows):
            raise ValueError(f"data of shape {rows.shape} and {len(labels)} labels")
        if not all(0 <= label < len(CIFAR10_CLASSES) for label in labels):
            raise ValueError("a label that is none of 0 to 9")
    except (
        *(pickle.UnpicklingError, AttributeError, EOFError, ImportError, LookupError, TypeError, ValueError),
        *(OverflowError, MemoryError, RecursionError),
    ) as error:
        raise DataError(f"{where} is no CIFAR-10 batch: {' '.join(str(error).split())}") from error
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


@dataclass(frozen=True, kw_only=True)
class CifarSource(Source):
    """CIFAR-10: its python batches, in their folder or archive, or a tree of class folders."""

    path: Path
    split: Split

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        batches = _CIFAR10_BATCHES[self.split]
        other = "test" if self.split == "train" else "train"

        def is_wanted(path: Folders) -> bool:
            return path[-1] in batches or (_is_image(path, self.only) and other not in path[:-1])

        for member in _members(self.path, is_wanted):
            if member.content and member.path[-1] in batches:
                yield from self._batch(member)
            else:
                yield _image_item(member)

    def _batch(self, member: _Member) -> Iterator[Item]:
        images, labels = read_cifar_batch(member.content, f"{self.path}: {member.name}")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            category = CIFAR10_CLASSES[label]
            if not self.only or category in self.only:
                yield Item(f"{member.name} image {number}", (category,), RawImage(image), member.share)


# --- MNIST ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MnistSource(Source):
    """MNIST and whatever has its form, such as Fashion-MNIST: a pair of idx files, plain or gzipped."""

    images: Path
    labels: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
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
                    if label >= len(_MNIST_CLASSES):
                        raise DataError(f"{self.labels} holds the label {label}: it is none of 0 to 9")
                    category, at = _MNIST_CLASSES[label], start + number
                    if not self.only or category in self.only:
                        yield Item(f"image {at}", (category,), RawImage(values[number]), (at + 1) / count)


def _open_idx(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _idx_bytes(file: IO[bytes], size: int, path: Path) -> bytes:
    try:
        content = file.read(size)
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{path} is damaged or cut short ({error}): get it again") from error
    if len(content) != size:
        raise DataError(f"{path} is cut short: get it again")
    return content


def _idx_shape(file: IO[bytes], dimensions: int, path: Path) -> tuple[int, ...]:
    """Read the head of an idx file of unsigned bytes: its lengths."""
    head = _idx_bytes(file, 4 + 4 * dimensions, path)
    if head[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is no idx file of {dimensions} dimensions of bytes")
    shape = tuple(int(length) for length in np.frombuffer(head[4:], ">u4"))
    if 0 in shape[1:] or any(length > 4096 for length in shape[1:]):
        raise DataError(f"{path} says that its images have {' x '.join(map(str, shape[1:]))} pixels")
    return shape


def _mnist(path: Path, split: Split, only: tuple[str, ...]) -> MnistSource:
    part = {"train": "train", "test": "t10k"}[split]
    folder = path if path.is_dir() else path.parent

    def pick(kind: str) -> Path:
        names = [f"{part}-{kind}{joint}ubyte{end}" for joint in ("-", ".") for end in (".gz", "")]
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise DataError(f"{folder} holds no {names[0]} (nor {names[1]}): mnist takes the folder of the idx files")

    images, labels = pick("images-idx3"), pick("labels-idx1")
    identity: dict[str, str | int] = {
        "input": images.name,
        "input_digest": _digest_of_file(images),
        "input_labels_digest": _digest_of_file(labels),
    }
    with _open_idx(images) as file:
        count, rows, columns = _idx_shape(file, 3, images)
    size = rows if rows == columns else None
    return MnistSource(
        name="mnist",
        where=str(images),
        identity=identity,
        image_size=size,
        channels=1,
        classes=_MNIST_CLASSES,
        count=None if only else count,
        only=only,
        images=images,
        labels=labels,
    )


# --- choosing ---------------------------------------------------------------------------------------------------------


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
            return _mnist(place, split, only)
        if not place.is_dir() and not _has_suffix(place, ARCHIVES):
            raise DataError(f"input {str(path)!r} is of an unknown kind: take a folder, {', '.join(ARCHIVES)}")
        identity = _identity(place)
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


def nothing_found(source: Source) -> DataError:
    """Return the error of a source in which no image was found."""
    if source.only:
        names = ", ".join(source.only)
        return DataError(f"{source.where} holds no image of {names}: see the names of its folders, or leave out only")
    return DataError(f"{source.where} holds no image ({', '.join(FORMATS)} are read)")
