"""What is known of a set of shards: `manifest.json`, and beside each shard an index of its records.

A set of shards is a folder with `NAME-000000.tar`, `NAME-000001.tar`, ... (plain WebDataset tars), for each of them
`NAME-000000.index`, and `manifest.json`, which is written last: a folder without it is not finished.

A keep-list, where there is one, says which of the images count: the others stay in the tars, but are no part of what
the stream shows, of its order or of the number of images. It has one bit for each image, in the order of the shards and
their records, the lowest bit of a byte first.

An index is a NumPy array of `RECORD` entries in little-endian binary with no header, one for each sample in the order
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
        ("label", "<i4"),  # index into the manifest's classes, -1 for none
        ("digest", "<u8"),  # xxh3_64 of the image's bytes
        ("json_offset", "<u8"),  # of the bytes of KEY.json in the tar; 0 where there is none
        ("json_size", "<u4"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of a set: its file, what is in it, and the digests (xxh3_64, 16 hex digits) to check it by."""

    file: str
    samples: int
    bytes: int
    digest: str
    index: str
    index_digest: str


@dataclass(frozen=True, kw_only=True)
class KeepList:
    """The keep-list of a set: its file, how many images it keeps, and its digest (xxh3_64, 16 hex digits)."""

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
        classes: names of the labels; empty where unlabelled.
        made_with: the settings that decide what is in the shards; the same settings make the same bytes.
        skipped: inputs that could not be decoded, as ``{"input": name, "reason": text}``.
        shards: the tars, in order.
        keep: which of the images count; None for all.
        damage: what was found damaged when shards made elsewhere were indexed, and is no part of the set, as
            ``{"shard": file, "offset": place, "bytes": lost, "reason": text}``.
        single_class: name of the only folder of images, which is no label, since it tells none from another.
        remarks: what was noticed while the images were made; see `colours.Remarks`. Empty where there was nothing.
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
        for later in ("single_class", "remarks"):  # which older versions do not know
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
                    raise ValueError(f"the name {name!r} in it is no plain file name")
            classes, skipped = tuple(content.pop("classes")), tuple(content.pop("skipped"))
            damage = tuple(content.pop("damage", ()))
            return cls(**content, classes=classes, skipped=skipped, shards=shards, keep=keep, damage=damage)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is no manifest of shards ({error}): run prepare again") from error


def read_index(content: bytes, samples: int, where: str) -> npt.NDArray[np.void]:
    """Return the records of an index file.

    Raises:
        DataError: its length does not fit the number of samples.
    """
    if len(content) != samples * RECORD.itemsize:
        raise DataError(f"{where} has {len(content)} bytes, not {samples * RECORD.itemsize}: run prepare again")
    return np.frombuffer(content, dtype=RECORD)


def pack_keep(kept: npt.NDArray[np.bool_]) -> bytes:
    """Return the content of a keep-list for `kept`, shape (count,)."""
    return np.packbits(kept, bitorder="little").tobytes()


def unpack_keep(content: bytes, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Return whether each of the images from `start` to before `stop` counts; shape (stop - start,)."""
    part = np.frombuffer(content[start // 8 : -(-stop // 8)], dtype=np.uint8)
    bits = np.unpackbits(part, bitorder="little")[start % 8 :]
    return bits[: stop - start].astype(np.bool_)
