"""Read the files of folders and archives safely.

Archives are read as streams, each byte once, in bounded memory, and never extracted. Members whose names point outside
the archive, links and devices count as unreadable.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from bz2 import BZ2File
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import xxhash

from dcgan_dist.data.images import NO_IMAGES, SUFFIXES, looks_like_image
from dcgan_dist.data.sources.base import EncodedImage, Folders, Item, Unreadable
from dcgan_dist.data.sources.remote_files import RemoteFile
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.storage.files import is_hidden

MAX_FILE_BYTES = 1 << 28  # of one encoded image or batch
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVE_ERRORS = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError)

_ZIP = (b"PK\3\4", b"PK\5\6")
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"BZh": BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_LONGEST_MAGIC = max(map(len, _COMPRESSED))
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
}
_READERS = 8
_FILES_AT_A_TIME = 4096
_LOOP = "it is a link back to a folder that contains it"
_NO_IMAGE = "it is not an image"
_OUTSIDE, _LINK, _NO_FILE = "its name points out of the archive", "it is a link", "it is not a regular file"
_ENCRYPTED, _PASSWORD = 1, "it has a password: extract the zip, and name the folder"

Wanted = Callable[[Folders], bool]
"""Returns whether to read the file with this path in a folder or archive."""


@dataclass(frozen=True)
class Member:
    """A file of a folder or archive.

    Attributes:
        name: as in the folder or archive.
        path: the parts of the name.
        share: share of the folder or archive that has been read after it, in [0, 1].
        content: its bytes.
        unreadable: why they were not read; "" if they were.
    """

    name: str
    path: Folders
    share: float
    content: bytes = b""
    unreadable: str = ""


def has_suffix(path: Path | RemoteFile, suffixes: Collection[str]) -> bool:
    """Return whether a file's name ends in one of `suffixes`, in upper or lower case."""
    return any(path.name.lower().endswith(suffix) for suffix in suffixes)


def compared_bytes(files: int) -> int:
    """Return how many bytes `digest_of_file` reads of each of `files` files: 1 GiB in total, at least 64 KiB each."""
    return max(1 << 16, (1 << 30) // max(1, files))


def digest_of_file(path: Path, most: int = compared_bytes(1)) -> str:
    """Return a digest of a file's size and content; of a file of more than `most` bytes, of evenly spread parts."""
    size = path.stat().st_size
    digest = xxhash.xxh3_64(str(size).encode())
    block = min(max(1 << 14, most >> 12), 1 << 18)
    with path.open("rb", buffering=0) as file:
        if size <= most:
            while content := file.read(1 << 20):
                digest.update(content)
        else:
            blocks = most // block
            for number in range(blocks):
                file.seek((size - block) * number // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()


def _safe_path(name: str) -> tuple[str, ...] | None:
    """Return the parts of a member's name; None if it points outside the archive."""
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if name.startswith(("/", "\\")) or ".." in parts or not parts or parts[0].endswith(":"):
        return None
    return parts


def _open(path: Path | RemoteFile) -> Any:
    return path.open("rb", buffering=0) if isinstance(path, Path) else path.open()


def _tar_members(path: Path | RemoteFile, wanted: Wanted) -> Iterator[Member]:
    size = max(1, path.stat().st_size if isinstance(path, Path) else path.size or 1)
    number = 0
    try:
        with _open(path) as file, _decompressed(file) as plain:
            stream = _Watched(plain)
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
                for entry in archive:
                    number += 1
                    vars(archive)["members"] = []  # tarfile keeps them all in memory, even millions
                    name, parts, share = entry.name, _safe_path(entry.name), min(1.0, file.tell() / size)
                    if entry.isdir():
                        continue
                    if parts is None:
                        yield Member(name, (), share, unreadable=_OUTSIDE)
                    elif not wanted(parts):
                        continue
                    elif entry.islnk() or entry.issym():
                        yield Member(name, parts, share, unreadable=_LINK)
                    elif not entry.isreg() or entry.issparse():
                        yield Member(name, parts, share, unreadable=_NO_FILE)
                    elif entry.size > MAX_FILE_BYTES:
                        yield Member(name, parts, share, unreadable=too_large(entry.size))
                    else:
                        content = archive.extractfile(entry)
                        yield Member(name, parts, share, content.read() if content is not None else b"")
                is_whole = stream.has_end_mark(archive.offset)
    except Unreachable:
        raise
    except ARCHIVE_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged, cut short or no tar (after {number} members: {what})") from error
    if not is_whole:  # tarfile silently treats a damaged header as the end
        raise DataError(f"{path} is damaged or cut short after {number} members: get it again")


def _decompressed(file: Any) -> Any:
    """Return a decompressed stream; unlike tarfile's own decompression, it raises if the file is truncated."""
    start = file.read(_LONGEST_MAGIC)
    file.seek(0)
    for magic, opened in _COMPRESSED.items():
        if start.startswith(magic):
            return opened(file)
    return io.BufferedReader(file)


class _Watched(io.RawIOBase):
    """A stream that remembers its last bytes, to check the position where tarfile stopped."""

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
        """Return whether the block of zeros that ends a tar is at `offset`."""
        start = offset - (self._position - len(self._tail))
        return start >= 0 and self._tail[start : start + tarfile.BLOCKSIZE] == bytes(tarfile.BLOCKSIZE)


def _zip_members(path: Path | RemoteFile, wanted: Wanted) -> Iterator[Member]:
    try:
        with _open(path) as file, zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for number, entry in enumerate(entries, 1):
                name, parts, share = entry.filename, _safe_path(entry.filename), number / len(entries)
                mode = entry.external_attr >> 16
                if parts is None:
                    yield Member(name, (), share, unreadable=_OUTSIDE)
                elif not wanted(parts):
                    continue
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    yield Member(name, parts, share, unreadable=_LINK if stat.S_ISLNK(mode) else _NO_FILE)
                elif entry.flag_bits & _ENCRYPTED:
                    yield Member(name, parts, share, unreadable=_PASSWORD)
                elif entry.file_size > MAX_FILE_BYTES:
                    yield Member(name, parts, share, unreadable=too_large(entry.file_size))
                else:
                    yield _zip_member(archive, entry, parts, share)
    except Unreachable:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged, cut short or no zip ({error})") from error


def _zip_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, parts: Folders, share: float) -> Member:
    try:
        return Member(entry.filename, parts, share, archive.read(entry))
    except Unreachable:
        raise
    except NotImplementedError:
        reason = f"it is compressed in a way (method {entry.compress_type}) that is not known here: extract the zip"
        return Member(entry.filename, parts, share, unreadable=reason)
    except ARCHIVE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Member(entry.filename, parts, share, unreadable=reason)


def _folder_files(folder: Path) -> Iterator[tuple[Path, tuple[str, ...], str]]:
    """Yield the files of a folder in the order of names: file, path below the folder, and why it cannot be read."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    inside = {str(folder): {os.path.realpath(folder)}}  # real paths of each folder and its parents, to find loops
    for current, below, files in os.walk(folder, onerror=fail, followlinks=True):
        above, real = Path(current).relative_to(folder).parts, inside.pop(current)
        below.sort()
        for name in list(below):
            path = os.path.join(current, name)
            target = os.path.realpath(path)
            if target in real:
                below.remove(name)
                yield Path(path), (*above, name), _LOOP
            else:
                inside[path] = real | {target}
        for name in sorted(files):
            yield Path(current, name), (*above, name), ""


@dataclass(frozen=True, slots=True)
class File:
    """A file below a folder: its path there, and why it cannot be read ("" if it can)."""

    path: Folders
    unreadable: str = ""


def files_of(folder: Path, wanted: Wanted) -> list[File]:
    """Return the wanted files below a folder, and unreadable ones, in the order of names.

    Raises:
        DataError: a folder cannot be listed.
    """
    return [File(parts, unreadable) for _, parts, unreadable in _folder_files(folder) if unreadable or wanted(parts)]


def read_file(folder: Path, file: File, share: float) -> Member:
    """Read one of the files returned by `files_of`."""
    path, name, parts = folder.joinpath(*file.path), "/".join(file.path), file.path
    if file.unreadable:
        return Member(name, parts, share, unreadable=file.unreadable)
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            return Member(name, parts, share, unreadable=_NO_FILE)
        if kind.st_size > MAX_FILE_BYTES:
            return Member(name, parts, share, unreadable=too_large(kind.st_size))
        return Member(name, parts, share, path.read_bytes())
    except OSError as error:
        return Member(name, parts, share, unreadable=error.strerror or str(error))


def _folder_members(folder: Path, wanted: Wanted) -> Iterator[Member]:
    found = files_of(folder, wanted)
    for number, file in enumerate(found, 1):
        yield read_file(folder, file, number / len(found))


def too_large(size: int) -> str:
    """Return why a file of more than `MAX_FILE_BYTES` is not read."""
    return f"it has {size} bytes, more than {MAX_FILE_BYTES}"


def members(path: Path | RemoteFile, wanted: Wanted) -> Iterator[Member]:
    """Yield the wanted files of a folder or archive in its order, unreadable ones with the reason.

    Raises:
        DataError: it is damaged or truncated, or cannot be listed.
    """
    if isinstance(path, Path) and path.is_dir():
        return _folder_members(path, wanted)
    return _zip_members(path, wanted) if archive_kind(path) == "zip" else _tar_members(path, wanted)


def archive_kind(path: Path | RemoteFile) -> Literal["zip", "tar"] | None:
    """Return the kind of an archive by its first bytes, or, if these are unknown, by its name; None if it is neither.

    Raises:
        DataError: it is an archive of an unsupported kind.
        OSError: it cannot be read.
    """
    with _open(path) as file:
        start = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    for magic, kind in _OTHER_ARCHIVES.items():
        if start.startswith(magic):
            raise DataError(f"input {str(path)!r} is {kind}, which is not read: extract it, and name the folder")
    if start.startswith(tuple(_COMPRESSED)) or start[_TAR_MAGIC_AT:] == _TAR_MAGIC:
        return "tar"
    if start.startswith(_ZIP):
        return "zip"
    return "zip" if has_suffix(path, (".zip",)) else "tar" if has_suffix(path, ARCHIVES) else None


def identity_of(path: Path | RemoteFile) -> dict[str, str | int]:
    """Return values that identify a folder or archive: its name, and the names, sizes and contents of its files.

    Contents are compared by `digest_of_file`, not by times, so that a copy is the same input. Hidden files are ignored,
    since operating systems create and remove them.
    """
    if isinstance(path, RemoteFile):
        return path.identity
    if path.is_file():
        return {"input": path.name, "input_bytes": path.stat().st_size, "input_digest": digest_of_file(path)}
    files = [(file, parts) for file, parts, _ in _folder_files(path) if not any(map(is_hidden, parts))]
    most = compared_bytes(len(files))

    def describe(file: tuple[Path, Folders]) -> tuple[int, str]:
        try:
            if file[0].is_file():
                return file[0].stat().st_size, digest_of_file(file[0], most)
        except OSError:
            pass  # reported when the images are read
        return 0, ""

    digest, total = xxhash.xxh3_64(), 0
    with ThreadPoolExecutor(_READERS) as pool:  # threads, since most of the time is spent waiting for the disk
        for start in range(0, len(files), _FILES_AT_A_TIME):  # bounds the memory for the pool's pending tasks
            some = files[start : start + _FILES_AT_A_TIME]
            for (_, parts), (size, content) in zip(some, pool.map(describe, some), strict=True):
                digest.update("/".join(parts).encode("utf-8", "surrogateescape") + f"\0{size}\0{content}\0".encode())
                total += size
    return {"input": path.name, "input_files": len(files), "input_bytes": total, "input_digest": digest.hexdigest()}


def is_image(path: Folders, only: Collection[str]) -> bool:
    """Return whether a file may be an image, and is below one of the folders `only`, if there are any.

    The content decides whether it is one; the name only excludes files that certainly are not.
    """
    return _is_wanted(path, only) and not path[-1].lower().endswith(NO_IMAGES)


def _is_wanted(path: Folders, only: Collection[str]) -> bool:
    hidden = any(is_hidden(part) or part == "__MACOSX" for part in path)
    return not hidden and (not only or not set(only).isdisjoint(path[:-1]))


class ImageFilter:
    """Selects files by `is_image`; `ignored` counts those that were excluded by their suffixes."""

    def __init__(self, only: Collection[str]) -> None:
        self._only = only
        self.ignored: Counter[str] = Counter()

    def __call__(self, path: Folders) -> bool:
        """Return whether the file of this path may be an image."""
        if is_image(path, self._only):
            return True
        if _is_wanted(path, self._only):
            self.ignored[path[-1][path[-1].rindex(".") :].lower()] += 1
        return False


def image_item(member: Member) -> Item:
    """Return the item of a file that may be an image."""
    name, folders = member.name, member.path[:-1]
    if member.unreadable == _LOOP:  # not an unreadable image: the files behind the link are read anyway
        return Item(name, folders, None, member.share, _LOOP)
    if member.unreadable:
        return Item(name, folders, Unreadable(member.unreadable), member.share)
    if not name.lower().endswith(SUFFIXES) and not looks_like_image(member.content):
        return Item(name, folders, None, member.share, _NO_IMAGE)
    return Item(name, folders, EncodedImage(member.content), member.share)
