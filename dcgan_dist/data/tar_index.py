"""Find the members of a tar by its bare headers, checking each one.

The tar reader of the standard library takes a damaged header for the end of the archive, and so loses the rest of a
shard without a word. This one stops at the first thing that is not as it should be, naming the place. It reads
headers alone: nothing is extracted, and links, devices and names that lead elsewhere are refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcgan_dist.errors import DataError

BLOCK = 512

_ZEROS = bytes(BLOCK)
_REGULAR, _DIRECTORY, _LONG_NAME, _PAX, _PAX_OF_ALL = b"0\0", b"5", b"L", b"x", b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def map_file(path: Path) -> memoryview:
    """Return the bytes of a file as read-only memory, which is let go of with the last reference.

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


def members(archive: memoryview, where: str) -> Iterator[Member]:
    """Go through the files of a tar in order.

    Args:
        archive: all bytes of the tar, such as a memory map.
        where: name of the tar in errors.

    Raises:
        DataError: a damaged header, an end that is missing or not the end, or a member that is no plain file; the
            message gives the offset.
    """
    position = 0
    name: str | None = None
    size: int | None = None
    while True:
        header = bytes(archive[position : position + BLOCK])
        if len(header) < BLOCK:
            raise DataError(f"{where} is cut off at byte {len(archive)}: make or copy it again")
        if header == _ZEROS:
            break
        _check(header, position, where)
        stored = _number(header[124:136], position, where)
        kind = header[156:157]
        data = position + BLOCK
        length = stored if size is None or kind not in _REGULAR else size
        if data + length > len(archive):
            raise DataError(f"{where} is cut off at byte {len(archive)}: its member at byte {position} is longer")
        if kind == _LONG_NAME:
            name = _text(bytes(archive[data : data + length]))
        elif kind == _PAX:
            fields = _pax(bytes(archive[data : data + length]), position, where)
            name, size = fields.get("path", name), _pax_size(fields, position, where)
        elif kind in _REGULAR:
            yield Member(_plain(name or _header_name(header), position, where), data, length)
            name = size = None
        elif kind == _DIRECTORY:
            name = size = None
        elif kind != _PAX_OF_ALL:
            raise DataError(f"{where} has a link or device at byte {position}: shards hold plain files alone")
        position = data + -(-length // BLOCK) * BLOCK
    # A header that was wiped to zeros must not pass for the end.
    rest = archive[position:]
    for start in range(0, len(rest), 1 << 20):
        if bytes(rest[start : start + (1 << 20)]).strip(b"\0"):
            raise DataError(f"{where} has bytes after its end at byte {position}: make or copy it again")


def _check(header: bytes, position: int, where: str) -> None:
    expected = _number(header[148:156], position, where)
    # The checksum is taken with its own field as eight blanks; some old tars summed signed characters.
    found = sum(header) - sum(header[148:156]) + 8 * 0x20
    signed = found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if expected not in (found, signed):
        raise DataError(f"{where} has a damaged header at byte {position}: make or copy it again")


def _number(field: bytes, position: int, where: str) -> int:
    if field[0] == 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise DataError(f"{where} has a damaged header at byte {position}: make or copy it again")
    return int(digits or b"0", 8)


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _plain(name: str, position: int, where: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{where} has a member named {name!r} at byte {position}: names must not lead out of it")
    return name


def _pax(content: bytes, position: int, where: str) -> dict[str, str]:
    """Read the records ``LENGTH KEY=VALUE`` of a pax header, each of which ends in a newline."""
    fields: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : max(length - 1, 0)].partition(b"=")
        if not equals or length > len(content) or content[length - 1 : length] != b"\n":
            raise DataError(f"{where} has a damaged pax header at byte {position}: make or copy it again")
        fields[_text(key)] = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return fields


def _pax_size(fields: dict[str, str], position: int, where: str) -> int | None:
    if "size" not in fields:
        return None
    if not fields["size"].isdecimal():
        raise DataError(f"{where} has a damaged pax header at byte {position}: make or copy it again")
    return int(fields["size"])
