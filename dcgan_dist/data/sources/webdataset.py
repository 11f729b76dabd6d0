"""WebDataset tars made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import unquote, urlsplit

import xxhash

from dcgan_dist.data.braces import expand_braces
from dcgan_dist.data.images import SUFFIXES
from dcgan_dist.data.manifest import MANIFEST_NAME, Manifest
from dcgan_dist.data.sources.archives import MAX_FILE_BYTES, compared_bytes, digest_of_file, too_large
from dcgan_dist.data.sources.base import Content, EncodedImage, Item, Source, Unreadable
from dcgan_dist.data.sources.remote_files import RemoteFile, remote_file
from dcgan_dist.data.tar_index import (
    WHICH_IMAGE,
    Member,
    image_extensions,
    map_file,
    members,
    several_images,
    split_name,
)
from dcgan_dist.errors import DataError
from dcgan_dist.storage.cache import COPIES, cache_directory, map_copy, open_copy
from dcgan_dist.storage.remote import is_url, join_url, list_url, shown

_IMAGES = {suffix.removeprefix(".") for suffix in SUFFIXES}
_REQUESTS = 8  # at the same time, for the sizes of tars
_MAX_LABEL_BYTES = 1 << 16
_END = Member("\0.end", 0, 0)


@dataclass(frozen=True, kw_only=True)
class WebDatasetSource(Source):
    """The images of WebDataset tars: a sample is a sequence of members with the same key, of which one is an image.

    The image is the member with the extension `image_member` or, if that is None, with an extension of images. Its
    label is in ``KEY.cls``, or under "label" in ``KEY.json``. Other members are ignored; nothing is extracted or
    unpickled. A damaged tar is an error that names the byte, not a smaller set.
    """

    tars: tuple[Path | RemoteFile, ...]
    image_member: str | None = None

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for number, tar in enumerate(self.tars):
            archive = map_file(tar) if isinstance(tar, Path) else _map_copy(tar)
            for key, found in _samples(archive, str(tar)):
                item = _item(archive, tar, key, found, self.image_member)
                if item is not None and (not self.only or not set(self.only).isdisjoint(item.folders)):
                    share = max(member.offset + member.size for member in found.values()) / len(archive)
                    yield Item(item.name, item.folders, item.content, (number + share) / len(self.tars), item.reason)


def _map_copy(tar: RemoteFile) -> memoryview:
    """Map a remote tar into memory; download it into the cache first if necessary."""
    cache = cache_directory()
    name = xxhash.xxh3_128_hexdigest(f"{tar.url}\0{tar.size}\0{tar.version}".encode())
    return map_copy(open_copy(tar.url, cache / COPIES / f"{name}.tar", cache, size=tar.size))


def _samples(archive: memoryview, where: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the samples of a tar: the key, and the member of each extension."""
    key, found = "", dict[str, Member]()
    for member in chain(members(archive, where), [_END]):
        name = split_name(member.name)
        if name is None:
            continue
        if name[0] != key:
            if found:
                yield key, found
            key, found = name[0], {}
        extension = name[1]
        if extension in found:
            raise DataError(f"{where} has {member.name!r} twice, again at byte {member.offset}")
        found[extension] = member


def _item(
    archive: memoryview, tar: Path | RemoteFile, key: str, found: dict[str, Member], chosen: str | None
) -> Item | None:
    images = image_extensions(found, _IMAGES, chosen)
    if not images:
        return None
    image = found[images[0]]
    name = f"{tar.name}: {image.name}"
    if len(images) > 1:
        return Item(name, (), Unreadable(f"it {several_images(key, images)}: {WHICH_IMAGE}"), 0)
    is_large = image.size > MAX_FILE_BYTES
    content: Content = Unreadable(too_large(image.size)) if is_large else EncodedImage(_bytes(archive, image))
    try:
        label = _label(archive, found)
    except DataError as error:
        return Item(name, (), Unreadable(str(error)), 0)
    return Item(name, () if label is None else (label,), content, 0)


def _bytes(archive: memoryview, member: Member) -> bytes:
    return bytes(archive[member.offset : member.offset + member.size])


def _label(archive: memoryview, found: dict[str, Member]) -> str | None:
    for extension in ("cls", "json"):
        member = found.get(extension)
        if member is None:
            continue
        if member.size > _MAX_LABEL_BYTES:
            raise DataError(f"its label in {member.name!r} has {member.size} bytes")
        try:
            text = _bytes(archive, member).decode().strip()
            value = text if extension == "cls" else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"its label in {member.name!r} cannot be read ({type(error).__name__})") from error
        label = value.get("label") if isinstance(value, dict) else value
        if isinstance(label, int | str) and str(label):
            return str(label)
    return None


def is_list_of_tars(path: str) -> bool:
    """Return whether a path is a brace list of tars, such as ``faces-{000000..000009}.tar``."""
    return "{" in path and not Path(path).exists()


def webdataset_source(path: str, only: tuple[str, ...], image_member: str | None = None) -> WebDatasetSource:
    """Open a tar, the tars of a folder, or a brace list of them; see `WebDatasetSource`.

    Raises:
        DataError: there is no tar, or one of them is missing.
    """
    if is_url(path):
        return _remote_source(path, only, image_member)
    location = Path(path)
    if location.is_dir():
        tars = sorted(entry for entry in location.iterdir() if entry.name.lower().endswith(".tar") and entry.is_file())
    else:
        tars = [Path(name) for name in expand_braces(path)]
    if not tars:
        raise DataError(f"input {path!r} holds no .tar: webdataset takes a tar, a folder of them or a brace list")
    for tar in tars:
        if not tar.is_file():
            raise DataError(f"input {path!r} names {str(tar)!r}, which does not exist")
        if not tar.name.lower().endswith(".tar"):
            raise DataError(f"input {str(tar)!r} is of an unknown kind: webdataset takes .tar, not compressed ones")
    for manifest in sorted({tar.parent / MANIFEST_NAME for tar in tars}):
        if manifest.exists() and Manifest.from_json(manifest.read_bytes(), str(manifest)).keep is not None:
            raise DataError(
                f"input {path!r} is a de-duplicated set, whose keep-list would be lost: prepare its own source with "
                f"the settings you want, or move {manifest.name} away to take all of its images"
            )
    digest = xxhash.xxh3_64()
    for tar in tars:
        digest.update(f"{tar.name}\0{digest_of_file(tar, compared_bytes(len(tars)))}\0".encode())
    identity: dict[str, str | int] = {
        "input": location.name,
        "input_files": len(tars),
        "input_digest": digest.hexdigest(),
    }
    return _source(path, tuple(tars), identity, only, image_member)


def _remote_source(url: str, only: tuple[str, ...], image_member: str | None) -> WebDatasetSource:
    urls = expand_braces(url)
    if len(urls) == 1 and not urlsplit(url).path.lower().endswith(".tar"):
        urls = [join_url(url, name) for name in sorted(list_url(url)) if name.lower().endswith(".tar")]
    if not urls:
        raise DataError(f"input {shown(url)!r} holds no .tar: webdataset takes a tar, a folder of them or a brace list")
    with ThreadPoolExecutor(_REQUESTS) as pool:
        tars = tuple(pool.map(remote_file, urls))
    digest = xxhash.xxh3_64("".join(f"{tar.name}\0{tar.size}\0{tar.version}\0" for tar in tars).encode())
    identity: dict[str, str | int] = {
        "input": unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]),
        "input_files": len(tars),
        "input_digest": digest.hexdigest(),
    }
    return _source(shown(url), tars, identity, only, image_member)


def _source(
    where: str,
    tars: tuple[Path | RemoteFile, ...],
    identity: dict[str, str | int],
    only: tuple[str, ...],
    image_member: str | None,
) -> WebDatasetSource:
    if image_member is not None:
        identity["image_member"] = image_member
        where += f" (members .{image_member})"
    return WebDatasetSource(
        name="webdataset", where=where, identity=identity, only=only, tars=tars, image_member=image_member
    )
