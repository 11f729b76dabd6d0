"""Files on storage elsewhere that are read through ranges, as archives are."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from dcgan_dist.errors import Unreachable
from dcgan_dist.storage.remote import download, read_range, remote_state, shown

_PIECE = 8 << 20  # bytes of a file that are asked for at a time


@dataclass(frozen=True)
class RemoteFile:
    """A file on storage elsewhere.

    Attributes:
        url: where it is.
        size: its length in bytes; None where the storage does not say.
        version: its ETag or date; "" where the storage does not say.
    """

    url: str
    size: int | None
    version: str

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def identity(self) -> dict[str, str | int]:
        """What tells it from others."""
        return {"input": self.name, "input_bytes": self.size or 0, "input_version": self.version}

    def open(self) -> IO[bytes]:
        """Open it to be read from any place; where its storage gives whole files only, a copy of it.

        Raises:
            DataError: there is no such file; also while reading.
            Unreachable: the storage was not reached; also while reading.
        """
        if self.size is not None and (self.size == 0 or read_range(self.url, 0, 1) is not None):
            return io.BufferedReader(_Ranges(self.url, self.size), _PIECE)
        copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 it is given to the caller
        try:
            download(self.url, copy, self.size, resume=False)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy


def remote_file(url: str) -> RemoteFile:
    """Return the file of a URL.

    Raises:
        DataError: there is no such file.
        Unreachable: the storage was not reached.
    """
    return RemoteFile(url, *remote_state(url))


class _Ranges(io.RawIOBase):
    """A remote file, read piece by piece."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._position = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        content = read_range(self._url, self._position, wanted)
        if not content:
            raise Unreachable(f"{shown(self._url)!r} gave nothing at byte {self._position}: run it again")
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
