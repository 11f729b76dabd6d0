"""The description of a set of shards: `manifest.json`, and an index of the records of each shard.

A set of shards is a folder with `NAME-000000.tar`, `NAME-000001.tar`, ... (plain WebDataset tars), an index
`NAME-000000.index` for each of them, and `manifest.json`. The manifest is written last: a folder without it is not
finished.

A keep-list, if there is one, says which images are used: the others stay in the tars, but are not streamed, and do not
count in the order or the number of images. It has one bit for each image, in the order of the shards and their records,
the lowest bit of a byte first.

An index is a NumPy array of `RECORD` entries in little-endian binary without a header, one for each sample in the order
of the tar: enough to seek to, label and verify any sample without reading the others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from dcgan_dist.errors import DataError

MANIFEST_NAME = "manifest.json"
KEEP_NAME = "keep.bits"
FORMAT = "dcgan_dist shards 1"

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes in the tar
        ("size", "<u4"),  # of the image in bytes
        ("label", "<i4"),  # index into the manifest's classes, -1 if there is none
        ("digest", "<u8"),  # xxh3_64 of the image's bytes
        ("json_offset", "<u8"),  # of the bytes of KEY.json in the tar; 0 if there is none
        ("json_size", "<u4"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of a set: its file, its number of samples and bytes, and the digests (xxh3_64, 16 hex digits)."""

    file: str
    samples: int
    bytes: int
    digest: str
    index: str
    index_digest: str


@dataclass(frozen=True, kw_only=True)
class KeepList:
    """The keep-list of a set: its file, the number of images that it keeps, and its digest (xxh3_64, 16 hex digits)."""

    file: str
    count: int
    digest: str


class LeftOut(TypedDict):
    """Damage in shards made elsewhere: where it begins, and how many bytes are no part of the set."""

    shard: str
    offset: int
    reason: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished set of shards.

    Attributes:
        image_size: side of the square images in pixels; None for shards made elsewhere with images of any size.
        channels: 1 (grey) or 3 (colour).
        encoding: `jpg`, `png` or `raw`; `mixed` for shards made elsewhere.
        count: number of images in the tars.
        classes: names of the labels; empty if the images have none.
        made_with: the settings that determine the content of the shards; equal settings give equal bytes.
        skipped: inputs that could not be decoded, as ``{"input": name, "reason": text}``.
        shards: the tars, in order.
        keep: which of the images are used; None for all.
        damage: parts that were found damaged when shards made elsewhere were indexed, and are left out, as
            ``{"shard": file, "offset": byte, "bytes": lost, "reason": text}``.
        single_class: name of the folder, if all images are in one; it is not a label, since all images have it.
        remarks: what was noticed while the images were converted; see `colours.Remarks`. Empty if there was nothing.
    """

    image_size: int | None
    channels: int
    encoding: str
    count: int
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    made_with: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[dict[str, str], ...] = ()
    keep: KeepList | None = None
    damage: tuple[LeftOut, ...] = ()
    single_class: str = ""
    remarks: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        content = {"format": FORMAT, **asdict(self)}
        for later in ("single_class", "remarks"):  # older versions refuse these names, so they are left out if empty
            if not content[later]:
                del content[later]
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Read the text of manifest.json; `where` names the file in errors.

        Raises:
            DataError: it is not a manifest of this format.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            kept = content.pop("keep", None)
            keep = None if kept is None else KeepList(**kept)
            names = [name for shard in shards for name in (shard.file, shard.index)] + ([keep.file] if keep else [])
            for name in names:
                if any(character in name for character in "/\\:\0"):
                    raise ValueError(f"the name {name!r} in it is not a plain file name")
            classes, skipped = tuple(content.pop("classes")), tuple(content.pop("skipped"))
            damage = tuple(content.pop("damage", ()))
            return cls(**content, classes=classes, skipped=skipped, shards=shards, keep=keep, damage=damage)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is not a manifest of shards ({error}): run prepare again") from error


def read_index(content: bytes, samples: int, where: str) -> npt.NDArray[np.void]:
    """Return the records of an index file.

    Raises:
        DataError: its length does not match the number of samples.
    """
    if len(content) != samples * RECORD.itemsize:
        raise DataError(f"{where} has {len(content)} bytes, not {samples * RECORD.itemsize}: run prepare again")
    return np.frombuffer(content, dtype=RECORD)


def pack_keep(kept: npt.NDArray[np.bool_]) -> bytes:
    """Return the content of a keep-list for `kept`, shape (count,)."""
    return np.packbits(kept, bitorder="little").tobytes()


def unpack_keep(content: bytes, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Return whether each of the images in [start, stop) is used; shape (stop - start,)."""
    part = np.frombuffer(content[start // 8 : -(-stop // 8)], dtype=np.uint8)
    bits = np.unpackbits(part, bitorder="little")[start % 8 :]
    return bits[: stop - start].astype(np.bool_)
