"""Upload of the small files of a run, which is written on this host first, to object storage."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from dcgan_dist.errors import StorageError
from dcgan_dist.storage.folder import Folder


class Uploader:
    """Keeps a copy of the small files of a local folder on object storage up to date."""

    def __init__(self, folder: Path, mirror: Folder, patterns: Sequence[str]) -> None:
        self._folder = folder
        self._mirror = mirror
        self._patterns = patterns
        self._sent: dict[str, tuple[int, int]] = {}
        self._mutex = threading.Lock()

    def _present(self) -> dict[str, tuple[int, int]]:
        """Return the time of change and the size of every matching file, by name."""
        found = {}
        for pattern in self._patterns:
            for path in sorted(self._folder.glob(pattern)):
                try:
                    details = path.stat()
                except FileNotFoundError:
                    continue  # the writing thread has just removed it
                found[path.relative_to(self._folder).as_posix()] = (details.st_mtime_ns, details.st_size)
        return found

    def download(self) -> None:
        """Download the files from the storage.

        Raises:
            StorageError: the storage does not answer.
        """
        for name in sorted(self._mirror.names()):
            if any(Path(name).match(pattern) for pattern in self._patterns):
                self._mirror.fetch(name, self._folder / name)
        self._sent = self._present()

    def sync(self) -> None:
        """Upload files that have changed since the last call, then remove those that do not exist any more.

        Raises:
            StorageError: the storage does not answer, even after retries.
        """
        with self._mutex:
            present = self._present()
            for name, version in present.items():
                if self._sent.get(name) == version:
                    continue
                try:
                    # Read completely first: a file that grows during the upload is sent as it was at one moment.
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
