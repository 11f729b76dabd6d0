"""The small files of a run that is written here, kept the same on object storage."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from dcgan_dist.errors import StorageError
from dcgan_dist.storage.folder import Folder


class Uploader:
    """Keeps the small files of a local folder the same on object storage."""

    def __init__(self, folder: Path, mirror: Folder, patterns: Sequence[str]) -> None:
        self._folder = folder
        self._mirror = mirror
        self._patterns = patterns
        self._sent: dict[str, tuple[int, int]] = {}
        self._mutex = threading.Lock()

    def _present(self) -> dict[str, tuple[int, int]]:
        """Name, and time of change and size, of every file to be kept."""
        found = {}
        for pattern in self._patterns:
            for path in sorted(self._folder.glob(pattern)):
                try:
                    details = path.stat()
                except FileNotFoundError:
                    continue  # removed at this moment by the thread that writes
                found[path.relative_to(self._folder).as_posix()] = (details.st_mtime_ns, details.st_size)
        return found

    def download(self) -> None:
        """Fetch the files from the storage.

        Raises:
            StorageError: the storage does not answer.
        """
        for name in sorted(self._mirror.names()):
            if any(Path(name).match(pattern) for pattern in self._patterns):
                self._mirror.fetch(name, self._folder / name)
        self._sent = self._present()

    def sync(self) -> None:
        """Upload what changed since the last time, then remove what is gone.

        Raises:
            StorageError: the storage does not answer, even when tried again.
        """
        with self._mutex:
            present = self._present()
            for name, version in present.items():
                if self._sent.get(name) == version:
                    continue
                try:
                    # Read whole: a file that grows during the upload is sent as it was at one moment.
                    content = (self._folder / name).read_bytes()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise StorageError(f"cannot read {self._folder / name}: {error.strerror or error}") from error
                self._mirror.write(name, content)
                self._sent[name] = version
            gone = [name for name in self._sent if name not in present]
            self._mirror.remove(*gone)
            for name in gone:
                del self._sent[name]
