"""Image files below a URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

import xxhash

from dcgan_dist.data.sources.archives import MAX_FILE_BYTES, ImageFilter, Member, image_item, too_large
from dcgan_dist.data.sources.base import Folders, Item, Source, shuffled
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.storage.files import is_hidden
from dcgan_dist.storage.remote import Listed, list_tree, read_listed, shown

_REQUESTS = 8  # images that a process reads at the same time
_AHEAD = 4 * _REQUESTS


@dataclass(frozen=True)
class RemotePart:
    """Some files below a URL, with their numbers; see `Part`."""

    url: str
    files: tuple[tuple[int, Listed], ...]

    @property
    def count(self) -> int:
        """See `Part`."""
        return len(self.files)

    def items(self) -> Iterator[tuple[int, Item]]:
        """See `Part`."""
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for start in range(0, len(self.files), _AHEAD):
                some = self.files[start : start + _AHEAD]
                read = pool.map(lambda file: _read(self.url, file[1]), some)
                for position, ((number, _), member) in enumerate(zip(some, read, strict=True), start + 1):
                    yield number, image_item(replace(member, share=position / len(self.files)))


def _read(url: str, file: Listed) -> Member:
    content, unreadable = b"", ""
    if file.size is not None and file.size > MAX_FILE_BYTES:
        unreadable = too_large(file.size)
    else:
        try:
            content = read_listed(url, file)
        except Unreachable:
            raise
        except DataError as error:
            unreadable = str(error)
    return Member(file.name, file.path, 0, content, unreadable)


@dataclass(frozen=True, kw_only=True)
class RemoteFolderSource(Source):
    """All images below a URL; folder names become labels."""

    url: str
    files: tuple[Listed, ...]
    ignored_suffixes: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def ignored(self) -> Counter[str]:
        """See `Source`."""
        return self.ignored_suffixes

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        return (item for _, item in RemotePart(self.url, tuple(enumerate(self.files))).items())

    def all_folders(self) -> Collection[Folders]:
        """See `Source`."""
        return {file.path[:-1] for file in self.files}

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[RemotePart]:
        """See `Source`."""
        files = self.files[:count]
        order = shuffled(len(files), seed).tolist()
        cuts = [order[start : start + size] for start in range(0, len(order), size)]
        return [RemotePart(self.url, tuple((number, files[number]) for number in cut)) for cut in cuts]


def remote_folder_source(url: str, only: tuple[str, ...]) -> RemoteFolderSource:
    """Open the images below a URL.

    Raises:
        DataError: there are no files.
        Unreachable: the storage was not reached.
    """
    found = [file for file in list_tree(url) if not any(map(is_hidden, file.path))]
    if not found:
        raise DataError(f"input {shown(url)!r} does not exist, or holds no files")
    digest = xxhash.xxh3_64()
    for file in found:
        digest.update(f"{file.name}\0{file.size}\0{file.version}\0".encode("utf-8", "surrogateescape"))
    is_wanted = ImageFilter(only)
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return RemoteFolderSource(
        name="folder",
        where=shown(url),
        identity={"input": name, "input_files": len(found), "input_digest": digest.hexdigest()},
        only=only,
        url=url,
        files=tuple(file for file in found if is_wanted(file.path)),
        ignored_suffixes=is_wanted.ignored,
    )
