"""Image files below a folder or in an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dcgan_dist.data.sources.archives import (
    File,
    ImageFilter,
    files_of,
    identity_of,
    image_item,
    members,
    read_file,
)
from dcgan_dist.data.sources.base import Folders, Item, Source, Split, shuffled
from dcgan_dist.data.sources.remote_files import RemoteFile
from dcgan_dist.errors import DataError


@dataclass(frozen=True)
class FolderPart:
    """Some files of a folder, with their numbers in it; see `Part`."""

    folder: Path
    files: tuple[tuple[int, File], ...]

    @property
    def count(self) -> int:
        """See `Part`."""
        return len(self.files)

    def items(self) -> Iterator[tuple[int, Item]]:
        """See `Part`."""
        for position, (number, file) in enumerate(self.files, 1):
            yield number, image_item(read_file(self.folder, file, position / len(self.files)))


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """All images below a folder, or in a .zip, .tar or compressed tar; folder names become labels."""

    path: Path | RemoteFile

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        self.ignored.clear()
        return map(image_item, members(self.path, self._filter))

    @cached_property
    def _filter(self) -> ImageFilter:
        return ImageFilter(self.only)

    @property
    def ignored(self) -> Counter[str]:
        """See `Source`."""
        return self._filter.ignored

    @cached_property
    def _folder(self) -> Path | None:
        return self.path if isinstance(self.path, Path) and self.path.is_dir() else None

    @cached_property
    def _files(self) -> list[File]:
        return files_of(self._folder, self._filter) if self._folder else []

    def all_folders(self) -> Collection[Folders] | None:
        """See `Source`."""
        return {file.path[:-1] for file in self._files if not file.unreadable} if self._folder else None

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[FolderPart] | None:
        """See `Source`."""
        if self._folder is None:
            return None
        files = self._files[:count]
        order = shuffled(len(files), seed).tolist()
        cuts = [order[start : start + size] for start in range(0, len(order), size)]
        return [FolderPart(self._folder, tuple((number, files[number]) for number in cut)) for cut in cuts]


def folder_source(path: Path | RemoteFile, only: tuple[str, ...]) -> FolderSource:
    """Open a folder or archive of images."""
    return FolderSource(name="folder", where=str(path), identity=identity_of(path), only=only, path=path)


def imagenet_source(path: Path, split: Split, only: tuple[str, ...]) -> FolderSource:
    """Open a folder of class folders (``n01440764/*.JPEG``), or its parent folder with ``train`` and ``val``.

    The default size is 32x32, on which the paper trained.

    Raises:
        DataError: it is not such a folder.
    """
    if not path.is_dir():
        raise DataError(f"input {str(path)!r} is a file: imagenet takes a folder of class folders; or take folder")
    below = {"train": ("train",), "test": ("val", "test")}.get(split, ())
    root = next((path / name for name in below if (path / name).is_dir()), path)
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir()):
        raise DataError(f"{root} holds no class folders, such as n01440764: imagenet takes a folder of these")
    identity = identity_of(root) | {"split": split}
    return FolderSource(name="imagenet", where=str(root), identity=identity, image_size=32, only=only, path=root)
