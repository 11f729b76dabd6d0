"""Write one shard: its tar, its index and, last, a record that it is finished.

One process writes a shard from beginning to end, so that no image is sent between processes. The record has the shard's
entry of the later manifest. A run that continues an interrupted one uses the record, after comparing the files with
their digests. Records are removed when the set is finished.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import IO, Any, Protocol

import numpy as np
import xxhash

from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.images import Encoding, Fitting, Target, encode
from dcgan_dist.data.manifest import RECORD, Shard
from dcgan_dist.data.sources import Content, Folders, Part
from dcgan_dist.errors import DataError
from dcgan_dist.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that, together with the source, determine the content of a set of shards.

    Attributes:
        image_size: side of the square images in pixels.
        channels: 1 (grey) or 3 (colour).
        encoding: `jpg`, `png` or `raw`.
        shard_size: inputs per shard; the last shard has fewer, and unreadable inputs are missing.
        name: first part of the shards' file names.
        seed: of the distribution of the images over the shards.
        count: number of inputs to use, the first ones of the source; None for all.
        fit: how images are made square; see `images.fit`.
        white_value: the value of an image of more than 8 bits that becomes white; None for 65,535.
    """

    image_size: int
    channels: int = 3
    encoding: Encoding = "jpg"
    shard_size: int = 2000
    name: str = "images"
    seed: int = 0
    count: int | None = None
    fit: Fitting = "crop"
    white_value: float | None = None

    @property
    def target(self) -> Target:
        """The form that each image is converted to."""
        return Target(self.image_size, self.channels, self.fit, self.white_value)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as a shard stores it.

    Attributes:
        image: the encoded image.
        attributes: its attributes as JSON; empty if it has none.
        remarks: what was noticed while it was converted.
    """

    image: bytes
    attributes: bytes = b""
    remarks: Remarks = Remarks()  # noqa: RUF009 it is immutable


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its number in the source, which becomes the sample's key, and its label, -1 if it has none."""

    number: int
    label: int
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class Skipped:
    """An input that is left out, and why; a bad one may have been an image, others are not images."""

    name: str
    reason: str
    is_bad: bool

    def entry(self) -> dict[str, str]:
        """Return its entry in the manifest."""
        return {"input": self.name, "reason": self.reason}


class Samples(Protocol):
    """The content of one shard, small enough to be sent to a worker process."""

    def read(self) -> Iterator[Sample | Skipped]:
        """Yield the samples, in their order."""


@dataclass(frozen=True)
class PartSamples:
    """The inputs of one part of a source; they are read, decoded and encoded where `read` is called."""

    part: Part
    labels: dict[Folders, int]
    recipe: Recipe

    def read(self) -> Iterator[Sample | Skipped]:
        """See `Samples`."""
        for number, item in self.part.items():
            if item.content is None:
                yield Skipped(item.name, item.reason, is_bad=False)
                continue
            try:
                made = encoded(item.content, self.recipe)
            except DataError as error:
                yield Skipped(item.name, str(error), is_bad=True)
            else:
                yield Sample(number, self.labels[item.folders], made)


def encoded(content: Content, recipe: Recipe) -> Encoded:
    """Return an image as a shard stores it.

    Raises:
        DataError: it cannot be decoded.
    """
    image, attributes, remarks = content.picture(recipe.target)
    known = b"" if attributes is None else json.dumps(attributes, separators=(",", ":")).encode()
    return Encoded(encode(image, recipe.encoding), known, remarks)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result of writing one shard.

    Attributes:
        shard: its entry in the manifest; None if none of its inputs could be read.
        skipped: the inputs that were left out.
        bad: how many of these may have been images.
        remarks: what was noticed about the images in it.
        is_new: whether this run has written it, not a previous one.
    """

    shard: Shard | None
    skipped: tuple[dict[str, str], ...] = ()
    bad: int = 0
    remarks: Remarks = Remarks()  # noqa: RUF009 it is immutable
    is_new: bool = True

    @property
    def samples(self) -> int:
        """Number of its images."""
        return 0 if self.shard is None else self.shard.samples

    def to_json(self) -> str:
        """Return the text of its record."""
        content = {"skipped": self.skipped, "bad": self.bad, "remarks": asdict(self.remarks)}
        text = json.dumps({"shard": self.shard and asdict(self.shard), **content})
        return json.dumps({"finished": text, "digest": xxhash.xxh3_64_hexdigest(text.encode())}) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Finished:
        """Parse the record of a previous run.

        Raises:
            ValueError, KeyError, TypeError: it is not a record, or is damaged.
        """
        record: dict[str, Any] = json.loads(text)
        if xxhash.xxh3_64_hexdigest(record["finished"].encode()) != record["digest"]:
            raise ValueError("its digest differs")
        content = json.loads(record["finished"])
        shard = None if content["shard"] is None else Shard(**content["shard"])
        remarks = Remarks(**content["remarks"])
        return cls(shard=shard, skipped=tuple(content["skipped"]), bad=content["bad"], remarks=remarks, is_new=False)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be written.

    Attributes:
        name: of its files, without their suffixes.
        samples: its content.
        encoding: of its images.
        location: folder to write it to.
        has_record: whether a previous run has left a record of it.
    """

    name: str
    samples: Samples
    encoding: str
    location: Folder
    has_record: bool


def make_shard(task: ShardTask) -> Finished:
    """Write a shard, unless a previous run has left it complete.

    Raises:
        DataError: the source is damaged, or the location is unreachable.
        OSError: the disk is full or fails.
    """
    if task.has_record:
        found = _found(task)
        if found is not None:
            return found
        task.location.remove(record_name(task.name))
    return _write(task)


def record_name(name: str) -> str:
    """Return the name of the record of a finished shard."""
    return f"{name}.json"


def _found(task: ShardTask) -> Finished | None:
    """Return the record of a previous run if all its files exist and have their digests, else None."""
    try:
        found = Finished.from_json(task.location.read(record_name(task.name)))
        if found.shard is not None:
            for name, digest in ((found.shard.file, found.shard.digest), (found.shard.index, found.shard.index_digest)):
                with task.location.open(name) as content:
                    if xxhash.xxh3_64_hexdigest(content) != digest:
                        return None
    except (DataError, ValueError, KeyError, TypeError):
        return None
    return found


def _write(task: ShardTask) -> Finished:
    rows: list[tuple[int, int, int, int, int, int]] = []
    skipped: list[Skipped] = []
    tar_name, index_name = f"{task.name}.tar", f"{task.name}.index"
    shard, remarks = None, Remarks()
    samples = task.samples.read()
    first = _first_sample(samples, skipped)
    if first is not None:
        with task.location.new(tar_name) as file:
            tar = TarWriter(file)
            for sample in chain([first], samples):
                if isinstance(sample, Skipped):
                    skipped.append(sample)
                else:
                    rows.append(tar.add(sample, task.encoding))
                    remarks += sample.encoded.remarks
            tar.finish()
        index = np.array(rows, dtype=RECORD).tobytes()
        with task.location.new(index_name) as file:
            file.write(index)
        shard = Shard(
            file=tar_name,
            samples=len(rows),
            bytes=tar.position,
            digest=tar.digest.hexdigest(),
            index=index_name,
            index_digest=xxhash.xxh3_64_hexdigest(index),
        )
    bad = sum(entry.is_bad for entry in skipped)
    finished = Finished(shard=shard, skipped=tuple(entry.entry() for entry in skipped), bad=bad, remarks=remarks)
    with task.location.new(record_name(task.name)) as file:
        file.write(finished.to_json().encode())
    return finished


def _first_sample(samples: Iterator[Sample | Skipped], skipped: list[Skipped]) -> Sample | None:
    """Return the first sample; add the inputs before it to `skipped`. A shard without samples is not written."""
    for sample in samples:
        if isinstance(sample, Sample):
            return sample
        skipped.append(sample)
    return None


# --- tar --------------------------------------------------------------------------------------------------------------

# A USTAR header is 512 bytes: name (100), mode, user, group (8 each), size, time (12 each), checksum (8), kind (1), and
# fields that are empty for regular files without an owner, except for the name of the format.
_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"\0" + 11 * b"0" + b"\0"
_REST = b" 0" + bytes(100) + b"ustar\x0000" + bytes(247)
_NAME_SIZE = 100
# The checksum is computed with its own field as eight blanks, of which one is in _REST.
_FIXED_SUM = sum(_OWNER + _TIME + _REST) + 7 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """Return the tar header of a regular file: the same bytes as the standard library, 16 times as fast."""
    named, digits = name.encode("ascii"), b"%011o" % size
    assert len(named) < _NAME_SIZE
    checksum = _FIXED_SUM + sum(named) + sum(digits)
    return b"".join((named.ljust(_NAME_SIZE, b"\0"), _OWNER, digits, _TIME, b"%06o\0" % checksum, _REST))


class TarWriter:
    """Writes a plain tar whose bytes depend only on names and contents, and computes its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.position = 0
        self.digest = xxhash.xxh3_64()

    def add(self, sample: Sample, encoding: str) -> tuple[int, int, int, int, int, int]:
        """Write a sample and return its `manifest.RECORD`."""
        key, image, attributes = f"{sample.number:09d}", sample.encoded.image, sample.encoded.attributes
        offset = self.position + tarfile.BLOCKSIZE
        pieces = [tar_header(f"{key}.{encoding}", len(image)), image, _padding(image)]
        if sample.label >= 0:
            label = b"%d" % sample.label
            pieces += (tar_header(f"{key}.cls", len(label)), label, _padding(label))
        json_offset = 0
        if attributes:
            json_offset = self.position + sum(map(len, pieces)) + tarfile.BLOCKSIZE
            pieces += (tar_header(f"{key}.json", len(attributes)), attributes, _padding(attributes))
        self._write(b"".join(pieces))
        digest = xxhash.xxh3_64_intdigest(image)
        return offset, len(image), sample.label, digest, json_offset, len(attributes)

    def finish(self) -> None:
        """Write the end mark, and pad the tar to a multiple of tar's record size."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self.position + end) % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.position += len(content)


def _padding(content: bytes) -> bytes:
    return bytes(-len(content) % tarfile.BLOCKSIZE)
