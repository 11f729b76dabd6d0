"""Find the members of a tar from its headers, and check each header.

The tar reader of the standard library treats a damaged header as the end of the archive, and so loses the rest of a
shard silently. This one reports every damaged position, and either stops there (`members`) or continues at the next
intact header (`scan`). It only reads headers: nothing is extracted, and links, devices and names that point outside the
archive are refused.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.errors import DataError

BLOCK = 512

_ZEROS = bytes(BLOCK)
_COMPRESSED = {  # first bytes of compressed files: the format, and the program that decompresses it
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\3\4": ("zip", "unzip"),
}
_CHUNK = 1 << 20  # a multiple of a block
_DIGESTED = 1 << 18  # bytes read at a time, few enough to stay in a core's L2 cache
_OCTAL = 8 ** np.arange(5, -1, -1, dtype=np.int32)
_MAGIC, _MAGIC_AT = b"ustar", 257
_REGULAR, _DIRECTORY, _LONG_NAME, _PAX, _PAX_OF_ALL = b"0\0", b"5", b"L", b"x", b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, and the offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


# Names are split as webdataset does it: the key ends at the first dot of the file's name, and files below a folder
# __NAME__ are ignored. Unlike there, hidden files in folders (`._1.jpg`, which macOS adds to tars) are ignored as well.
_SAMPLE_NAME = re.compile(r"^(?!__[^/]*__/)((?:.*/)?[^./]+)\.([^/]*)$", re.DOTALL)


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the extension (lower case, without its dot) of a WebDataset member; None if it is not one."""
    match = _SAMPLE_NAME.match(name)
    return None if match is None else (match[1], match[2].lower())


def image_extensions(extensions: Iterable[str], image_types: Collection[str], chosen: str | None) -> list[str]:
    """Return the extensions of a sample that may be its image: `chosen` if given, else all of an image type.

    If there are plain ones (`png`) among these, compound ones (`mask.png`) are left out.
    """
    if chosen is not None:
        return [extension for extension in extensions if extension == chosen]
    images = [extension for extension in extensions if extension.rpartition(".")[2] in image_types]
    return [extension for extension in images if "." not in extension] or images


def several_images(key: str, extensions: Sequence[str]) -> str:
    """Return the description of a sample with several members that may be its image."""
    named = ", ".join(extensions[:3]) + (", …" if len(extensions) > 3 else "")
    return f"has {len(extensions)} images of the key {key!r} ({named})"


WHICH_IMAGE = (
    "choose one by image_member, such as png; or rename the files, since WebDataset ends a key at the first dot of a "
    "name (img.0001.png has the key 'img'), or prepare them with --source folder"
)


@dataclass(frozen=True)
class Fault:
    """A damaged or refused part of a tar: its offset, the number of bytes lost, and the reason.

    `advice` says what a person can do about it, or why a member is left out on purpose.
    """

    offset: int
    size: int
    reason: str
    advice: str = "make or copy it again"


class _Damaged(DataError):
    """A header with a wrong checksum or impossible values."""


def map_file(path: Path) -> memoryview:
    """Map a file into memory, read-only, until the last reference to the memory is gone.

    Raises:
        DataError: it is missing, unreadable or empty.
    """
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is empty: make or copy it again") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def digest_of(file: int) -> str:
    """Return the xxh3_64 of all bytes of an open file as 16 hex digits."""
    digest, buffer, position = xxhash.xxh3_64(), memoryview(bytearray(_DIGESTED)), 0
    while count := os.preadv(file, [buffer], position):
        digest.update(buffer[:count])
        position += count
    return digest.hexdigest()


def members(archive: memoryview, where: str) -> Iterator[Member]:
    """Yield the files of a tar in order.

    Args:
        archive: all bytes of the tar, such as a memory map.
        where: name of the tar in errors.

    Raises:
        DataError: a damaged header, a missing end mark, bytes after the end mark, or a member that is not a regular
            file; the message gives the offset.
    """
    for found in scan(archive):
        if isinstance(found, Fault):
            raise DataError(f"{where} {found.reason}: {found.advice}")
        yield found


def scan(archive: memoryview) -> Iterator[Member | Fault]:
    """Yield the files of a tar in order; after damage, yield a `Fault` and continue at the next intact header.

    Args:
        archive: all bytes of the tar, such as a memory map.
    """
    for magic, (kind, tool) in _COMPRESSED.items():
        if archive[: len(magic)] == magic:
            yield Fault(0, len(archive), f"is compressed ({kind})", f"run `{tool}` on it, and name what that makes")
            return
    yield from _walk(archive)


def _walk(archive: memoryview) -> Iterator[Member | Fault]:
    walk = _Walk(archive)
    while not walk.ended:
        found = walk.step()
        if found is not None:
            yield found


def sample_at(part_of_tar: memoryview, offset: int, start: int) -> tuple[str, dict[str, Member]]:
    """Return the key of the sample that has a member at `offset`, and its members by extension.

    Args:
        part_of_tar: begins with a header and contains the whole sample; it may end inside the next one.
        offset: of the member's content in the part.
        start: offset of the part in the tar.

    Raises:
        DataError: there is damage in the sample or next to it, where one of its members may have been.
    """
    key: str | None = None
    found: dict[str, Member] = {}
    damage: Fault | None = None  # in this sample or directly before it
    latest: Fault | None = None  # after the last member
    for part in _walk(part_of_tar):
        if isinstance(part, Fault):
            # Members left out on purpose are no damage, nor is the missing end mark of the part.
            if part.size and part.advice == Fault.advice:
                latest = latest or part
            continue
        name = split_name(part.name)
        if name is None:
            continue
        if name[0] != key:
            if any(member.offset == offset for member in found.values()):
                break
            key, found, damage = name[0], {}, None
        damage, latest = damage or latest, None
        found.setdefault(name[1], part)
    damage = damage or latest
    if damage is not None:
        raise DataError(f"the tar is damaged next to it, at byte {start + damage.offset}")
    if key is None or all(member.offset != offset for member in found.values()):
        raise DataError("there is no header in front of its image")
    return key, found


class _Walk:
    """The state of reading a tar: the current position, and what extended headers say about the next file."""

    def __init__(self, archive: memoryview) -> None:
        self.ended = False
        self._archive = archive
        self._position = 0
        self._forget()

    def step(self) -> Member | Fault | None:
        """Read the next header; return the file or the fault found there, None for other kinds of members."""
        archive, position = self._archive, self._position
        header = bytes(archive[position : position + BLOCK])
        if len(header) < BLOCK:
            self.ended = True
            return Fault(position, len(header), f"is cut off at byte {len(archive)}")
        if header == _ZEROS:
            # A header that was overwritten with zeros looks like the end mark, but more follows.
            rest = _first_not_zero(archive, position)
            if rest is None:
                self.ended = True
                return None
            return self._skip(f"has bytes after its end at byte {position}", rest)
        try:
            check_header(header, position)
            return self._read(header)
        except _Damaged as error:
            return self._skip(str(error), position + BLOCK)

    def _skip(self, reason: str, start: int) -> Fault:
        """Continue at the first intact header from `start` on."""
        position, following = self._position, _next_header(self._archive, start)
        self._forget()
        self.ended = following is None
        self._position = len(self._archive) if following is None else following
        return Fault(position, self._position - position, reason)

    def _forget(self) -> None:
        self._name: str | None = None
        self._size: int | None = None
        self._nameless = False  # the extended header with the next file's name is damaged

    def _read(self, header: bytes) -> Member | Fault | None:
        """Read the member of a header, and move to the next one.

        Raises:
            _Damaged: its length is damaged or exceeds the tar; the state is unchanged then.
        """
        archive, position, kind = self._archive, self._position, header[156:157]
        data = position + BLOCK
        stored = _number(header[124:136], position)
        length = stored if self._size is None or kind not in _REGULAR else self._size
        if data + length > len(archive):
            raise _Damaged(f"is cut off at byte {len(archive)}: its member at byte {position} is longer")
        following = self._position = min(data + -(-length // BLOCK) * BLOCK, len(archive))
        content = archive[data : data + length]
        if kind in (_LONG_NAME, _PAX, _PAX_OF_ALL):
            return self._read_about_next(kind, content, position)
        name, nameless = self._name or _header_name(header), self._nameless
        self._forget()
        if kind == _DIRECTORY:
            return None
        if kind not in _REGULAR:
            reason, advice = f"has a link or device at byte {position}", "shards hold plain files alone"
        elif nameless:
            reason, advice = f"has a file at byte {position} whose name is damaged", Fault.advice
        elif not name or name.startswith("/") or ".." in name.split("/"):
            reason, advice = f"has a member named {name!r} at byte {position}", "names must not lead out of it"
        else:
            return Member(name, data, length)
        return Fault(position, following - position, reason, advice)

    def _read_about_next(self, kind: bytes, content: memoryview, position: int) -> Fault | None:
        """Read a member with the name or size of the next one."""
        try:
            if kind == _LONG_NAME:
                self._name = _text(bytes(content))
            elif kind == _PAX:
                fields = _pax(bytes(content), position)
                self._name, self._size = fields.get("path", self._name), _pax_size(fields, position)
        except _Damaged as error:
            self._nameless = True
            return Fault(position, self._position - position, str(error))
        return None


def check_header(header: bytes, position: int) -> None:
    """Check a tar header (512 bytes) against the checksum in it.

    Raises:
        DataError: it is damaged.
    """
    expected = _number(header[148:156], position)
    # The checksum is taken with its own field as eight blanks; some old tars summed signed characters.
    found = sum(header) - sum(header[148:156]) + 8 * 0x20
    signed = found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if expected not in (found, signed):
        raise _Damaged(f"has a damaged header at byte {position}")


def damaged_headers(headers: npt.NDArray[np.uint8]) -> list[int]:
    """Return the rows of tar headers, shape (n, 512), whose checksum is wrong."""
    written = (headers[:, 148:154].astype(np.int32) - 0x30) @ _OCTAL
    sums = headers.sum(axis=1, dtype=np.int32) - headers[:, 148:156].sum(axis=1, dtype=np.int32) + 8 * 0x20
    # Nearly all checksums are six octal digits; headers with another form are checked one by one.
    return [row for row in np.flatnonzero(written != sums).tolist() if not _is_whole(headers[row].tobytes())]


def _is_whole(header: bytes) -> bool:
    try:
        check_header(header, 0)
    except _Damaged:
        return False
    return True


def _first_not_zero(archive: memoryview, start: int) -> int | None:
    """Return the offset of the block from `start` on that has the first byte other than zero; None if all are zero."""
    for chunk in range(start, len(archive), _CHUNK):
        content = bytes(archive[chunk : chunk + _CHUNK])
        if rest := content.lstrip(b"\0"):
            return chunk + (len(content) - len(rest)) // BLOCK * BLOCK
    return None


def _next_header(archive: memoryview, start: int) -> int | None:
    """Return the offset of the first intact header from `start` on, in whole blocks; None if there is none."""
    for chunk in range(start, len(archive) - BLOCK + 1, _CHUNK):
        content = bytes(archive[chunk : chunk + _CHUNK])
        magic = content.find(_MAGIC)
        while magic >= 0:
            block = magic - _MAGIC_AT
            header = content[block : block + BLOCK] if block >= 0 and block % BLOCK == 0 else b""
            if len(header) == BLOCK and _is_whole(header):
                return chunk + block
            magic = content.find(_MAGIC, magic + 1)
    return None


def _number(field: bytes, position: int) -> int:
    if field[0] == 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise _Damaged(f"has a damaged header at byte {position}")
    return int(digits or b"0", 8)


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(content: bytes, position: int) -> dict[str, str]:
    """Read the records ``LENGTH KEY=VALUE`` of a pax header, each of which ends in a newline."""
    fields: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : max(length - 1, 0)].partition(b"=")
        if not equals or length > len(content) or content[length - 1 : length] != b"\n":
            raise _Damaged(f"has a damaged pax header at byte {position}")
        fields[_text(key)] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return fields


def _pax_size(fields: dict[str, str], position: int) -> int | None:
    if "size" not in fields:
        return None
    if not fields["size"].isdecimal():
        raise _Damaged(f"has a damaged pax header at byte {position}")
    return int(fields["size"])
