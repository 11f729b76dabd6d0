"""Open a set of shards by its path: what it contains, and where each file is.

A path is a folder of shards (local, ``http(s)://``, ``s3://`` or another scheme that fsspec knows), one ``.tar``, a
brace list of tars (``faces-{000000..000009}.tar``), or ``rooms:N``, the first N procedural rooms, which are created in
the cache on first use.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.config import IMAGE_SIZES, is_whole
from dcgan_dist.data.braces import expand_braces
from dcgan_dist.data.foreign import Tar, index_tars
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, Manifest, read_index, unpack_keep
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.remote_tars import copy_name, index_remote
from dcgan_dist.data.shards import Recipe, made_with, write_shards
from dcgan_dist.data.sources import room_source
from dcgan_dist.data.tar_index import BLOCK, map_file
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.parallel import LocalPool, usable_cores
from dcgan_dist.paths import expanded
from dcgan_dist.storage.cache import COPIES, cache_directory, map_copy, one_at_a_time, open_copy
from dcgan_dist.storage.remote import check_scheme, is_url, join_url, read_range, read_url, shown

DEFAULT_IMAGE_SIZE = 64
_ROOMS_FOR_PROCESSES = 5_000  # fewer are drawn faster than processes start
_MOST_MAKERS = 8  # processes that draw rooms
_ROOMS_SEED = "rooms_seed"  # in a manifest's `made_with`

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A set of shards, ready to be read; a small object that can be sent to other processes of the host.

    Attributes:
        path: as the user gave it, without secrets.
        manifest: of the shards.
        tars: path or URL of each shard.
        indexes: path or URL of the index of each shard.
        keep: path or URL of the keep-list; None if all images are used.
        cache: folder of this host's copies of remote files; unused if all files are local.
        cache_gib: maximum GiB of copies; None leaves a tenth of the disk free.
        image_size: side in pixels of the images as they are read.
        channels: 1 (grey) or 3 (colour).
    """

    path: str
    manifest: Manifest
    tars: tuple[str, ...]
    indexes: tuple[str, ...]
    keep: str | None = None
    cache: Path
    cache_gib: float | None = None
    image_size: int
    channels: int

    @property
    def count(self) -> int:
        """Number of images."""
        return self.manifest.count if self.manifest.keep is None else self.manifest.keep.count

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the images have none."""
        return self.manifest.classes

    @property
    def rooms_seed(self) -> int | None:
        """Seed of procedural rooms, whose attributes are known, in any folder; None for other images."""
        return self.manifest.made_with.get(_ROOMS_SEED)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of images in each shard, without those that the keep-list leaves out.

        Raises:
            DataError: the keep-list is missing, damaged, or remote and unreachable.
        """
        if self.keep is None:
            return tuple(shard.samples for shard in self.manifest.shards)
        return tuple(int(self._kept(shard).sum()) for shard in range(len(self.tars)))

    @property
    def fitted(self) -> bool:
        """Whether the stored images have different sizes, and are fitted to `image_size` when read."""
        return self.manifest.image_size is None

    @cached_property
    def digest(self) -> str:
        """Digest of the content, independent of its location and file names: 32 hex digits."""
        content = [
            self.image_size,
            self.channels,
            self.classes,
            [(shard.samples, shard.index_digest) for shard in self.manifest.shards],
        ]
        if self.manifest.keep is not None:
            content.append(self.manifest.keep.digest)
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())

    def describe(self) -> str:
        """Return one line for people."""
        colours = "grey" if self.channels == 1 else "colour"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        shards = f"{len(self.tars)} shard{'s' * (len(self.tars) != 1)}"
        size = f"{self.image_size}x{self.image_size}"
        text = f"{self.path}: {self.count:,} {colours} images of {size} pixels in {shards}{classes}"
        if damage := self.manifest.damage:
            parts, first = f"{len(damage)} damaged part{'s' * (len(damage) != 1)}", damage[0]
            lost = sum(part["bytes"] for part in damage)
            text += f"; {parts} ({lost:,} bytes) left out, first in {first['shard']!r} at byte {first['offset']}"
        return text

    def is_remote(self, shard: int) -> bool:
        """Return whether a shard is read from a copy in the cache."""
        return is_url(self.tars[shard])

    def tar(self, shard: int) -> Path:
        """Return the path of a shard on this host; download it first if necessary.

        Raises:
            DataError: it is remote and unreachable.
        """
        if not self.is_remote(shard):
            return Path(self.tars[shard])
        with self.open_tar(shard) as copy:
            return Path(str(copy.name))

    def open_tar(self, shard: int) -> FileIO:
        """Open a shard; download it first if necessary. While it is open or mapped, it stays on this host.

        Raises:
            DataError: it is missing, or remote and unreachable.
        """
        about = self.manifest.shards[shard]
        return self._open(self.tars[shard], copy_name(about), about.bytes, about.digest)

    def content(self, shard: int) -> memoryview:
        """Map a shard into read-only memory; download it first if necessary.

        Raises:
            DataError: it is missing, empty, or remote and unreachable.
        """
        return map_copy(self.open_tar(shard))

    def is_on_host(self, shard: int) -> bool:
        """Return whether a shard can be read without a download."""
        about = self.manifest.shards[shard]
        copy = self.cache / COPIES / copy_name(about)
        return not self.is_remote(shard) or copy.exists() or copy.with_name(copy.name + ".damaged").exists()

    def read_remote(self, shard: int, start: int, size: int) -> bytes | None:
        """Return `size` bytes of a remote shard from `start` on; None if its storage serves whole files only.

        Raises:
            DataError: there is no such shard, or it is unreachable.
        """
        return read_range(self.tars[shard], start, size)

    def open_index(self, shard: int) -> FileIO:
        """Open the index of a shard; download it first if necessary.

        Raises:
            DataError: it is missing, or remote and unreachable.
        """
        about = self.manifest.shards[shard]
        size = about.samples * RECORD.itemsize
        return self._open(self.indexes[shard], f"{about.index_digest}.index", size, about.index_digest)

    def records(self, shard: int) -> npt.NDArray[np.void]:
        """Return the `manifest.RECORD` entries of a shard's images, those left out excepted, in the order of the tar.

        Raises:
            DataError: the index is missing, damaged, or remote and unreachable.
        """
        records = self._all_records(shard)
        return records if self.keep is None else records[self._kept(shard)]

    def extents(self, shard: int) -> npt.NDArray[np.int64]:
        """Return a byte range of the tar for each image that contains all members of its sample.

        The range is from the end of the previous image (even if that one is left out) to the header of the next image.

        Returns:
            First byte and end, shape (n, 2), in the order of `records`.

        Raises:
            DataError: the index is missing, damaged, or remote and unreachable.
        """
        records = self._all_records(shard)
        images = records["offset"].astype(np.int64)
        ends = images + -(-records["size"].astype(np.int64) // BLOCK) * BLOCK
        starts = np.concatenate([[0], ends[:-1]])
        stops = np.concatenate([images[1:] - BLOCK, [self.manifest.shards[shard].bytes]])
        extents = np.stack([starts, stops], axis=1)
        return extents if self.keep is None else extents[self._kept(shard)]

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the label of every image in the order of the shards, -1 if it has none; shape (count,).

        Raises:
            DataError: an index is missing or damaged.
        """
        return np.concatenate([self.records(shard)["label"] for shard in range(len(self.tars))]).astype(np.int64)

    def _all_records(self, shard: int) -> npt.NDArray[np.void]:
        about = self.manifest.shards[shard]
        with self.open_index(shard) as file:
            path, content = str(file.name), file.readall()
        if xxhash.xxh3_64_hexdigest(content) != about.index_digest:
            raise DataError(f"the index {str(path)!r} is damaged: copy it or run prepare again")
        return read_index(content, about.samples, repr(str(path)))

    @cached_property
    def _keep_list(self) -> bytes:
        about = self.manifest.keep
        assert about is not None
        assert self.keep is not None
        with self._open(self.keep, f"{about.digest}.bits", -(-self.manifest.count // 8), about.digest) as file:
            path, content = str(file.name), file.readall()
        if xxhash.xxh3_64_hexdigest(content) != about.digest:
            raise DataError(f"the keep-list {str(path)!r} is damaged: copy it again, or run prepare --dedup again")
        return content

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *itertools.accumulate(shard.samples for shard in self.manifest.shards))

    def _kept(self, shard: int) -> npt.NDArray[np.bool_]:
        return unpack_keep(self._keep_list, self._starts[shard], self._starts[shard + 1])

    def _open(self, location: str, name: str, size: int, digest: str) -> FileIO:
        if is_url(location):
            limit = None if self.cache_gib is None else int(self.cache_gib * 2**30)
            return open_copy(location, self.cache / COPIES / name, self.cache, size=size, digest=digest, limit=limit)
        try:
            return FileIO(location)
        except OSError as error:
            raise DataError(f"{location!r} cannot be read ({error.strerror}): copy it, or run prepare again") from error


def open_dataset(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    cache: str | Path | None = None,
    cache_gib: float | None = None,
    on_damage: Literal["skip", "fail"] = "skip",
    image_member: str | None = None,
) -> Dataset:
    """Open a set of shards by its path, and check that it has the requested kind of images.

    Args:
        path: folder, URL, tar, brace list of tars, or ``rooms:N`` (see the module).
        image_size: side of the images in pixels; None for the set's own, else 64.
        channels: 1 or 3; None for the set's own.
        cache: folder for created and downloaded files; None for the host's.
        cache_gib: maximum GiB of downloaded shards; None leaves a tenth of the disk free.
        on_damage: what to do with damage found while tars made elsewhere are indexed: `skip` leaves out the damaged
            samples and records them in the manifest; `fail` raises.
        image_member: extension of the images in tars made elsewhere; see `index_tars`.

    Raises:
        DataError: it does not exist, is damaged or unfinished, or has other images than requested.
        StorageError: the cache's disk is full.
    """
    text = str(path).removeprefix("file://")
    scheme, colon, rest = text.partition(":")
    if scheme == "rooms" and colon and not is_url(text):
        return _open_rooms(text, rest, image_size, channels, cache_directory(cache))
    if is_url(text):
        check_scheme(text)
    elif colon and scheme.isidentifier() and not Path(text).exists() and "/" not in scheme:
        raise DataError(f"data.path is {text!r}: {scheme}: is no known scheme; take a path, a URL or rooms:N")
    tars = [text] if Path(text).exists() else expand_braces(text)
    if len(tars) > 1 or _is_tar(text):
        return _open_foreign(
            text, tars, image_size, channels, cache_directory(cache), cache_gib, on_damage, image_member
        )
    if is_url(text):
        return _open_remote(text, image_size, channels, cache_directory(cache), cache_gib)
    return _open_folder(text, image_size, channels, cache, on_damage, image_member)


def _open_folder(
    text: str,
    image_size: int | None,
    channels: int | None,
    cache: str | Path | None,
    on_damage: Literal["skip", "fail"] = "skip",
    image_member: str | None = None,
) -> Dataset:
    folder = expanded(text).absolute()
    if not folder.is_dir():
        what = "is a file, not shards" if folder.exists() else "does not exist"
        raise DataError(f"{text!r} {what}: give a folder of shards (prepare makes them), a .tar, a URL or rooms:N")
    manifest_path = folder / MANIFEST_NAME
    if manifest_path.exists():
        try:
            content = manifest_path.read_bytes()
        except OSError as error:
            raise DataError(f"{str(manifest_path)!r} cannot be read ({error.strerror})") from error
        manifest = Manifest.from_json(content, repr(str(manifest_path)))
        names = {entry.name for entry in os.scandir(folder)}
        if manifest.shards and not any(shard.file in names for shard in manifest.shards):
            raise DataError(f"{text!r} has a manifest, but none of its shards: copy them too, or run prepare again")
        return _dataset(text, manifest, str(folder), folder, image_size, channels)
    tars = sorted(str(entry) for entry in folder.iterdir() if _is_tar(entry.name))
    if not tars:
        raise DataError(f"{text!r} has no {MANIFEST_NAME} and no .tar: give a folder of shards, which prepare makes")
    if any(Path(tar).with_suffix(".index").exists() for tar in tars):
        raise DataError(f"{text!r} has shards, but no {MANIFEST_NAME}: prepare did not finish there, run it again")
    return _open_foreign(text, tars, image_size, channels, cache_directory(cache), None, on_damage, image_member)


def _open_remote(
    url: str, image_size: int | None, channels: int | None, cache: Path, cache_gib: float | None
) -> Dataset:
    manifest_url = join_url(url, MANIFEST_NAME)
    copy = cache / "manifests" / f"{xxhash.xxh3_128_hexdigest(url.encode())}.json"
    try:
        content = read_url(manifest_url)
    except Unreachable as error:
        if not copy.exists():
            raise
        _log.warning("%s; using the copy in the cache", error)
        content = copy.read_bytes()
    manifest = Manifest.from_json(content, repr(shown(manifest_url)))
    with one_at_a_time(cache, copy.stem):
        copy.parent.mkdir(exist_ok=True)
        part = copy.with_suffix(".part")
        part.write_bytes(content)
        part.replace(copy)
    return _dataset(url, manifest, url, cache, image_size, channels, cache_gib)


def _of_rooms(made_with: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made_with.items() if key == _ROOMS_SEED}


def _dataset(
    path: str,
    manifest: Manifest,
    folder: str,
    cache: Path,
    image_size: int | None,
    channels: int | None,
    cache_gib: float | None = None,
) -> Dataset:
    def locate(name: str) -> str:
        return join_url(folder, name) if is_url(folder) else f"{folder}/{name}"

    return _checked(
        Dataset(
            path=shown(path),
            # Without the entries that only `prepare` needs, so that the object is small to send to processes.
            manifest=replace(manifest, made_with=_of_rooms(manifest.made_with), skipped=()),
            tars=tuple(locate(shard.file) for shard in manifest.shards),
            indexes=tuple(locate(shard.index) for shard in manifest.shards),
            keep=None if manifest.keep is None else locate(manifest.keep.file),
            cache=cache,
            cache_gib=cache_gib,
            image_size=manifest.image_size or image_size or DEFAULT_IMAGE_SIZE,
            channels=manifest.channels,
        ),
        image_size,
        channels,
    )


def _open_foreign(
    path: str,
    locations: Sequence[str],
    image_size: int | None,
    channels: int | None,
    cache: Path,
    cache_gib: float | None,
    on_damage: Literal["skip", "fail"],
    image_member: str | None,
) -> Dataset:
    if is_url(locations[0]):
        manifest, indexes = index_remote(locations, cache, cache_gib, image_member)
    else:
        tars = [_local_tar(location) for location in locations]
        locations = [tar.location for tar in tars]
        manifest, indexes = index_tars(tars, cache, image_member)
    if manifest.damage and on_damage == "fail":
        first, more = manifest.damage[0], len(manifest.damage) - 1
        rest = f" (and {more} more)" if more else ""
        raise DataError(
            f"shard {first['shard']!r} is damaged at byte {first['offset']}{rest}: it {first['reason']}, or set "
            f"data.on_damage to skip"
        )
    # Images of different sizes are fitted, and colour images can become grey ones, but not the other way round.
    fits_grey = channels == 1 and manifest.image_size is None
    dataset = Dataset(
        path=shown(path),
        manifest=manifest,
        tars=tuple(locations),
        indexes=tuple(map(str, indexes)),
        cache=cache,
        cache_gib=cache_gib,
        image_size=manifest.image_size or image_size or manifest.made_with["own_size"] or DEFAULT_IMAGE_SIZE,
        channels=1 if fits_grey else manifest.channels,
    )
    return _checked(dataset, image_size, channels)


def _local_tar(location: str) -> Tar:
    path = expanded(location).absolute()
    if not path.is_file():
        raise DataError(f"there is no file {location!r}")
    about = path.stat()
    return Tar(
        location=str(path),
        name=path.name,
        state=(about.st_size, about.st_mtime_ns),
        content=lambda: map_file(path) if about.st_size else memoryview(b""),
    )


def _open_rooms(path: str, number: str, image_size: int | None, channels: int | None, cache: Path) -> Dataset:
    if not is_whole(number) or int(number) < 1:
        raise DataError(f"data.path is {path!r}: take a number of rooms, as in rooms:20000")
    size = image_size or DEFAULT_IMAGE_SIZE
    if size not in IMAGE_SIZES:
        raise DataError(f"rooms cannot have {size} pixels: take one of {', '.join(map(str, IMAGE_SIZES))}")
    source = room_source(int(number))
    recipe = Recipe(image_size=size, channels=channels or 3, name="rooms")
    # Another version may draw or store rooms differently: those are another set, in another folder.
    version = xxhash.xxh3_64_hexdigest(json.dumps(made_with(source, recipe), sort_keys=True).encode())
    name = f"rooms-{int(number)}-{size}-{version}"
    folder = cache / "made" / name
    workers = min(usable_cores(), _MOST_MAKERS) if int(number) >= _ROOMS_FOR_PROCESSES else 1
    with one_at_a_time(cache, name):
        progress = ProgressLine(f"drawing {path}")
        write_shards(source, recipe, folder, pool=LocalPool(workers), report=progress)
        progress.close()
    return replace(_open_folder(str(folder), image_size, channels, cache), path=path)


def _checked(dataset: Dataset, image_size: int | None, channels: int | None) -> Dataset:
    """Return a dataset after checking that it has the requested images."""
    has, path = dataset.image_size, dataset.path
    if image_size is not None and has != image_size:
        raise DataError(
            f"{path!r}: the shards have {has}x{has} images, model.image_size is {image_size}: "
            f"prepare them again with --image-size {image_size}"
        )
    if channels == 3 and dataset.channels == 1:
        raise DataError(f"{path!r}: the shards have grey images, model.channels is 3: set it to 1")
    if channels == 1 and dataset.channels == 3:
        raise DataError(f"{path!r}: the shards have colour images, model.channels is 1: prepare them again with --grey")
    if not dataset.count:
        left_out = "its keep-list leaves out all of them" if dataset.manifest.keep else "its manifest lists none"
        raise DataError(f"{path!r} has no images: {left_out}, so prepare it again")
    if sum(dataset.sizes) != dataset.count:
        raise DataError(f"{path!r}: its shards have {sum(dataset.sizes)} images, its manifest says {dataset.count}")
    return dataset


def _is_tar(name: str) -> bool:
    return name.partition("?")[0].endswith(".tar") if is_url(name) else name.endswith(".tar")
