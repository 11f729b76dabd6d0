"""Shards made elsewhere: WebDataset tars without a manifest, indexed on first use.

A sample is a sequence of consecutive members with the same key: one image (``KEY.jpg``, ``.png``, ``.webp``, …, or
``.raw`` for plain uint8 values of one square size; of ``KEY.png`` and ``KEY.mask.png`` the plain one, unless
`image_member` names another), and optionally a label in ``KEY.cls`` or under "label" in ``KEY.json``. Other members are
ignored. Nothing is unpickled or executed.

Damaged samples are left out and recorded in the manifest; those before and after them are kept. A sample that may have
lost its label because of the damage is left out too, if other samples of the set have labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.config import IMAGE_SIZES, is_whole
from dcgan_dist.data.images import SUFFIXES, decode
from dcgan_dist.data.manifest import MANIFEST_NAME, RECORD, LeftOut, Manifest, Shard
from dcgan_dist.data.tar_index import (
    WHICH_IMAGE,
    Fault,
    Member,
    image_extensions,
    scan,
    several_images,
    split_name,
)
from dcgan_dist.errors import DataError
from dcgan_dist.storage.cache import one_at_a_time

_IMAGES = {suffix.removeprefix(".") for suffix in SUFFIXES}
_RAW = "raw"
# Increased when the index of the same tars changes.
_REVISION = 3
_PROBED = 16  # images that are decoded to find the size and the channels of the set
_MOST_CLASSES = 1 << 16
_MOST_FAULTS = 100  # recorded for a tar

Label = int | str | None


@dataclass(frozen=True)
class Tar:
    """A tar to be indexed.

    Attributes:
        location: its path or URL.
        name: of its file.
        state: values of JSON types that change when the tar does.
        content: returns its bytes; may be called more than once.
    """

    location: str
    name: str
    state: tuple[int | str | None, ...]
    content: Callable[[], memoryview]


@dataclass
class _Sample:
    key: str
    image: Member
    is_raw: bool
    label: Label = None
    attributes: Member | None = None
    doubt: str = ""  # the reason if its label may be lost


def index_tars(tars: Sequence[Tar], cache: Path, image_member: str | None = None) -> tuple[Manifest, tuple[Path, ...]]:
    """Return a manifest of tars that have none, and the index file of each; both are cached for each state of the tars.

    The manifest's image size is None, unless the images are raw; `made_with` has the original size of the images
    (`own_size`), if it is the same for all and supported by models.

    Raises:
        DataError: no images, or raw images among others or of several sizes.
    """
    states = [_REVISION, image_member, *((tar.location, *tar.state) for tar in tars)]
    key = xxhash.xxh3_128_hexdigest(json.dumps(states).encode())
    folder = cache / "foreign" / key
    indexes = tuple(folder / f"{number:06d}.index" for number in range(len(tars)))
    manifest = folder / MANIFEST_NAME
    with one_at_a_time(cache, key):
        if not manifest.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = _make(tars, indexes, image_member)
            part = manifest.with_suffix(".part")
            part.write_text(made.to_json(), encoding="utf-8")
            part.rename(manifest)
    return Manifest.from_json(manifest.read_bytes(), str(manifest)), indexes


def _make(tars: Sequence[Tar], indexes: Sequence[Path], image_member: str | None) -> Manifest:
    shards: list[Shard] = []
    tables: list[npt.NDArray[np.void]] = []
    labels: list[list[Label]] = []
    faults: list[list[Fault]] = []
    doubts: list[dict[int, str]] = []  # by row: the reason if its label may be lost
    raw_sizes: set[int] = set()
    others = 0
    for tar, index in zip(tars, indexes, strict=True):
        archive = tar.content()
        samples, found = _read(archive, image_member)
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
        faults.append(found)
        doubts.append({row: sample.doubt for row, sample in enumerate(samples) if sample.doubt})
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
    if any(label is not None for of_shard in labels for label in of_shard):
        for shard, rows in enumerate(doubts):
            gone = [row for row in rows if labels[shard][row] is None]
            for row in gone:
                record = tables[shard][row]
                faults[shard].append(Fault(int(record["offset"]), int(record["size"]), rows[row]))
            tables[shard] = np.delete(tables[shard], gone)
            labels[shard] = [label for row, label in enumerate(labels[shard]) if row not in set(gone)]
            shards[shard] = replace(shards[shard], samples=len(tables[shard]))
    damage = [entry for tar, found in zip(tars, faults, strict=True) for entry in _entries(tar.name, found)]
    count = sum(map(len, tables))
    named = f"{tars[0].location!r}" + (f" and {len(tars) - 1} more" if len(tars) > 1 else "")
    if not count:
        first = f"; damage at byte {damage[0]['offset']}: it {damage[0]['reason']}" if damage else ""
        members = "members such as KEY.jpg or KEY.png" if image_member is None else f"members KEY.{image_member}"
        raise DataError(f"{named}: no images ({members}) are in there{first}")
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
        own_size, channels = _probe(tars, tables, named)
    return Manifest(
        image_size=size,
        channels=channels,
        encoding="raw" if size else "mixed",
        count=count,
        classes=classes,
        shards=tuple(shards),
        made_with={"own_size": own_size},
        damage=tuple(damage),
    )


def _entries(shard: str, faults: Sequence[Fault]) -> list[LeftOut]:
    """Return the manifest's entries of the faults of a tar."""
    entries: list[LeftOut] = [
        {"shard": shard, "offset": fault.offset, "bytes": fault.size, "reason": f"{fault.reason}: {fault.advice}"}
        for fault in sorted(faults, key=lambda fault: fault.offset)
    ]
    if len(entries) > _MOST_FAULTS:
        rest = entries[_MOST_FAULTS:]
        reason, lost = f"has {len(rest)} more faults like these", sum(fault["bytes"] for fault in rest)
        entries[_MOST_FAULTS:] = [{"shard": shard, "offset": rest[0]["offset"], "bytes": lost, "reason": reason}]
    return entries


def _read(archive: memoryview, image_member: str | None) -> tuple[list[_Sample], list[Fault]]:
    """Return the samples of a tar that have an image, and the faults of the tar."""
    samples: list[_Sample] = []
    faults: list[Fault] = []
    if not len(archive):
        return [], [Fault(0, 0, "is empty")]
    key: str | None = None
    found: dict[str, Member] = {}
    nearby: Fault | None = None  # damage in this sample or directly before it
    for part in chain(scan(archive), [Member("\0.end", 0, 0)]):
        if isinstance(part, Fault):
            faults.append(part)
            nearby = part
            continue
        name = split_name(part.name)
        if name is None:
            continue
        if name[0] != key:
            if key is not None and found:
                _add_sample(samples, faults, key, found, archive, nearby, image_member)
            # A damaged member between two samples may belong to either of them.
            last = max((member.offset for member in found.values()), default=0)
            nearby = nearby if nearby is not None and nearby.offset >= last else None
            key, found = name[0], {}
        extension = name[1]
        if extension in found:
            faults.append(Fault(part.offset, part.size, f"has {part.name!r} twice, again at byte {part.offset}"))
        else:
            found[extension] = part
    return samples, faults


def _add_sample(
    samples: list[_Sample],
    faults: list[Fault],
    key: str,
    found: dict[str, Member],
    archive: memoryview,
    nearby: Fault | None,
    image_member: str | None,
) -> None:
    """Add a sample, unless it has no image or several, to `samples`, and its problems to `faults`."""
    images = image_extensions(found, _IMAGES | {_RAW}, image_member)
    if not images:
        return
    image = found[images[0]]
    if len(images) > 1 or image.size >= 1 << 32:
        lost = sum(found[extension].size for extension in images)
        if len(images) > 1:
            faults.append(Fault(image.offset, lost, several_images(key, images), WHICH_IMAGE))
        else:
            faults.append(Fault(image.offset, lost, f"has an image of {image.size} bytes at byte {image.offset}"))
        return
    sample = _Sample(key, image, images[0].endswith(_RAW), attributes=found.get("json"))
    if nearby is not None:
        sample.doubt = f"has an image at byte {image.offset} without its label, next to damage at byte {nearby.offset}"
    if member := sample.attributes:
        try:
            content = json.loads(bytes(archive[member.offset : member.offset + member.size]))
        except (ValueError, RecursionError):
            faults.append(Fault(member.offset, member.size, f"has no JSON in {member.name!r}"))
            sample.attributes, sample.doubt = None, f"has an image at byte {image.offset} without its label"
            content = None
        label = content.get("label") if isinstance(content, dict) else None
        sample.label = label if isinstance(label, int | str) else None
    if member := found.get("cls"):
        text = bytes(archive[member.offset : member.offset + member.size]).decode("utf-8", "replace").strip()
        sample.label = int(text) if is_whole(text) else text
    samples.append(sample)


def _classes(labels: Iterator[Label]) -> tuple[tuple[str, ...], dict[Label, int]]:
    """Return the names of the classes, and the class of each label."""
    known = {label for label in labels if label is not None}
    numbers = [int(label) for label in known if isinstance(label, int)]
    if len(numbers) == len(known) and all(0 <= number < _MOST_CLASSES for number in numbers):
        return tuple(map(str, range(max(numbers, default=-1) + 1))), {number: number for number in numbers}
    names = sorted({str(label) for label in known})
    order = {name: number for number, name in enumerate(names)}
    return tuple(names), {label: order[str(label)] for label in known}


def _raw_shape(length: int, named: str) -> tuple[int, int]:
    for size in IMAGE_SIZES:
        for channels in (1, 3):
            if size * size * channels == length:
                return size, channels
    raise DataError(f"{named}: {length} bytes are no raw square image of {', '.join(map(str, IMAGE_SIZES))} pixels")


def _probe(tars: Sequence[Tar], tables: Sequence[npt.NDArray[np.void]], named: str) -> tuple[int | None, int]:
    """Return size and channels of some images spread over the set; the size is None unless all have a supported one."""
    ends = np.cumsum([len(table) for table in tables])
    shapes: set[tuple[int, ...]] = set()
    grey = True
    for item in np.unique(np.linspace(0, ends[-1] - 1, _PROBED).astype(int)):
        shard = int(np.searchsorted(ends, item, side="right"))
        record = tables[shard][item - ends[shard]]
        offset = int(record["offset"])
        content = bytes(tars[shard].content()[offset : offset + int(record["size"])])
        try:
            image = decode(content, 3)
        except DataError:
            continue  # reported later, when the images are streamed
        shapes.add(image.shape[:2])
        grey = grey and bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())
    if not shapes:
        raise DataError(f"{named}: none of the images looked at can be decoded")
    sides = set(shapes.pop()) if len(shapes) == 1 else set()
    side = sides.pop() if len(sides) == 1 else None
    return (side if side in IMAGE_SIZES else None), (1 if grey else 3)
