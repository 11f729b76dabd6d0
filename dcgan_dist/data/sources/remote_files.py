"""Remote files that are read by range requests, such as archives."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from dcgan_dist.errors import Unreachable
from dcgan_dist.storage.remote import download, read_range, remote_state, shown

_RANGE = 8 << 20  # bytes per request


@dataclass(frozen=True)
class RemoteFile:
    """A file on remote storage.

    Attributes:
        url: of the file.
        size: its length in bytes; None if the storage does not report it.
        version: its ETag or date; "" if the storage does not report one.
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
        """Values that identify it; see `Source`."""
        return {"input": self.name, "input_bytes": self.size or 0, "input_version": self.version}

    def open(self) -> IO[bytes]:
        """Open it as a seekable file; if its storage serves whole files only, download a copy and open that.

        Raises:
            DataError: there is no such file. Reading can raise it as well.
            Unreachable: the storage was not reached. Reading can raise it as well.
        """
        if self.size is not None and (self.size == 0 or read_range(self.url, 0, 1) is not None):
            return io.BufferedReader(_Ranges(self.url, self.size), _RANGE)
        copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 the caller closes it
        try:
            download(self.url, copy, self.size, resume=False)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy


def remote_file(url: str) -> RemoteFile:
    """Return the remote file of a URL, with its size and version.

    Raises:
        DataError: there is no such file.
        Unreachable: the storage was not reached.
    """
    return RemoteFile(url, *remote_state(url))


class _Ranges(io.RawIOBase):
    """A remote file, read by range requests."""

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
