"""Shards that someone else made: WebDataset tars with no manifest, indexed on first use.

A sample is a run of members with the same key: one image (``KEY.jpg``, ``.png``, ``.webp``, …, or ``.raw`` for plain
uint8 values of one square size), and a label in ``KEY.cls`` or under "label" in ``KEY.json`` where there is one.
Members of other kinds are passed over. Nothing is unpickled or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.config import IMAGE_SIZES
from dcgan_dist.data.cache import one_at_a_time
from dcgan_dist.data.images import SUFFIXES, decode
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, Manifest, Shard
from dcgan_dist.data.tar_index import Member, map_file, members
from dcgan_dist.errors import DataError

_IMAGES = {suffix.removeprefix(".") for suffix in SUFFIXES}
_RAW = "raw"
# As webdataset splits names: the key ends at the first dot of the file's name.
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)
_LOOKED_AT = 16  # images whose size and colours tell what the set is
_MOST_CLASSES = 1 << 16

Label = int | str | None


@dataclass
class _Sample:
    key: str
    image: Member
    is_raw: bool
    label: Label = None
    attributes: Member | None = None


def index_tars(tars: Sequence[Path], cache: Path) -> tuple[Manifest, tuple[Path, ...]]:
    """Return a manifest of tars that have none, and the index file of each; made once for each state of the tars.

    The manifest's image size is None, unless the images are raw; `made_with` has the size that the images have of
    themselves (`own_size`), if it is one size that models take.

    Raises:
        DataError: damage, no images, two images of one key, or raw images among others or of several sizes.
    """
    states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in tars]
    key = xxhash.xxh3_128_hexdigest(json.dumps(states).encode())
    folder = cache / "foreign" / key
    indexes = tuple(folder / f"{number:06d}.index" for number in range(len(tars)))
    manifest = folder / MANIFEST_NAME
    with one_at_a_time(cache, key):
        if not manifest.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = _make(tars, indexes)
            part = manifest.with_suffix(".part")
            part.write_text(made.to_json(), encoding="utf-8")
            part.rename(manifest)
    return Manifest.from_json(manifest.read_bytes(), str(manifest)), indexes


def _make(tars: Sequence[Path], indexes: Sequence[Path]) -> Manifest:
    shards: list[Shard] = []
    tables: list[npt.NDArray[np.void]] = []
    labels: list[list[Label]] = []
    raw_sizes: set[int] = set()
    others = 0
    for tar, index in zip(tars, indexes, strict=True):
        archive = map_file(tar)
        samples = list(_samples(archive, repr(str(tar))))
        table = np.zeros(len(samples), dtype=RECORD)
        for row, sample in enumerate(samples):
            image, attributes = sample.image, sample.attributes
            digest = xxhash.xxh3_64_intdigest(archive[image.offset : image.offset + image.size])
            where = (attributes.offset, attributes.size) if attributes else (0, 0)
            table[row] = (image.offset, image.size, -1, digest, *where)
        raw_sizes |= {sample.image.size for sample in samples if sample.is_raw}
        others += sum(not sample.is_raw for sample in samples)
        tables.append(table)
        labels.append([sample.label for sample in samples])
        shards.append(
            Shard(
                file=tar.name,
                samples=len(samples),
                bytes=len(archive),
                digest=xxhash.xxh3_64_hexdigest(archive),
                index=index.name,
                index_digest="",
            )
        )
    count = sum(map(len, tables))
    named = f"{str(tars[0])!r}" + (f" and {len(tars) - 1} more" if len(tars) > 1 else "")
    if not count:
        raise DataError(f"{named}: no images (members such as KEY.jpg or KEY.png) are in there")
    if raw_sizes and (others or len(raw_sizes) > 1):
        raise DataError(f"{named}: raw images are mixed with others, or of several sizes; prepare them as shards")

    classes, numbers = _classes(label for of_shard in labels for label in of_shard)
    for row, (table, of_shard, index) in enumerate(zip(tables, labels, indexes, strict=True)):
        table["label"] = [numbers.get(label, -1) for label in of_shard]
        content = table.tobytes()
        index.write_bytes(content)
        shards[row] = replace(shards[row], index_digest=xxhash.xxh3_64_hexdigest(content))
    size, channels = _raw_shape(raw_sizes.pop(), named) if raw_sizes else (None, None)
    own_size = size
    if channels is None:
        own_size, channels = _look_at(tars, tables, named)
    return Manifest(
        image_size=size,
        channels=channels,
        encoding="raw" if size else "mixed",
        count=count,
        classes=classes,
        shards=tuple(shards),
        made_with={"own_size": own_size},
    )


def _samples(archive: memoryview, where: str) -> Iterator[_Sample]:
    """Go through the samples of a tar that have an image."""
    key: str | None = None
    found: dict[str, Member] = {}
    for member in chain(members(archive, where), [Member("\0.end", 0, 0)]):
        match = _NAME.match(member.name)
        if match is None:
            continue
        if match[1] != key:
            if key is not None and (sample := _sample(key, found, archive, where)):
                yield sample
            key, found = match[1], {}
        extension = match[2].lower()
        if extension in found:
            raise DataError(f"{where} has {member.name!r} twice, again at byte {member.offset}")
        found[extension] = member


def _sample(key: str, found: dict[str, Member], archive: memoryview, where: str) -> _Sample | None:
    images = [extension for extension in found if extension.rpartition(".")[2] in _IMAGES | {_RAW}]
    if not images:
        return None
    if len(images) > 1:
        raise DataError(f"{where} has {len(images)} images of the key {key!r}: a sample has one")
    sample = _Sample(key, found[images[0]], images[0].endswith(_RAW), attributes=found.get("json"))
    if sample.image.size >= 1 << 32:
        raise DataError(f"{where} has an image of {sample.image.size} bytes at byte {sample.image.offset}")
    if attributes := sample.attributes:
        try:
            content = json.loads(bytes(archive[attributes.offset : attributes.offset + attributes.size]))
        except ValueError as error:
            raise DataError(f"{where} has no JSON in {attributes.name!r} at byte {attributes.offset}") from error
        label = content.get("label") if isinstance(content, dict) else None
        sample.label = label if isinstance(label, int | str) else None
    if member := found.get("cls"):
        text = bytes(archive[member.offset : member.offset + member.size]).decode("utf-8", "replace").strip()
        sample.label = int(text) if text.isdecimal() else text
    return sample


def _classes(labels: Iterator[Label]) -> tuple[tuple[str, ...], dict[Label, int]]:
    """Return the names of the classes, and the number of each label."""
    known = {label for label in labels if label is not None}
    numbers = [int(label) for label in known if isinstance(label, int)]
    if len(numbers) == len(known) and all(0 <= number < _MOST_CLASSES for number in numbers):
        return tuple(map(str, range(max(numbers, default=-1) + 1))), {number: number for number in numbers}
    names = sorted({str(label) for label in known})
    place = {name: number for number, name in enumerate(names)}
    return tuple(names), {label: place[str(label)] for label in known}


def _raw_shape(length: int, named: str) -> tuple[int, int]:
    for size in IMAGE_SIZES:
        for channels in (1, 3):
            if size * size * channels == length:
                return size, channels
    raise DataError(f"{named}: {length} bytes are no raw square image of {', '.join(map(str, IMAGE_SIZES))} pixels")


def _look_at(tars: Sequence[Path], tables: Sequence[npt.NDArray[np.void]], named: str) -> tuple[int | None, int]:
    """Return the size that some images from all over the set have, if it is one that models take, and the channels."""
    ends = np.cumsum([len(table) for table in tables])
    shapes: set[tuple[int, ...]] = set()
    grey = True
    for item in np.unique(np.linspace(0, ends[-1] - 1, _LOOKED_AT).astype(int)):
        shard = int(np.searchsorted(ends, item, side="right"))
        record = tables[shard][item - ends[shard]]
        offset = int(record["offset"])
        content = bytes(map_file(tars[shard])[offset : offset + int(record["size"])])
        try:
            image = decode(content, 3)
        except DataError:
            continue  # met again, and reported, when the images are streamed
        shapes.add(image.shape[:2])
        grey = grey and bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    if not shapes:
        raise DataError(f"{named}: none of the images looked at can be decoded")
    sides = set(shapes.pop()) if len(shapes) == 1 else set()
    side = sides.pop() if len(sides) == 1 else None
    return (side if side in IMAGE_SIZES else None), (1 if grey else 3)
