"""Sets of shards for tests, written with webdataset's and the standard library's own tar tools."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
import xxhash
from PIL import Image

from dcgan_dist.data.manifest import RECORD, Manifest, Shard


@dataclass(frozen=True)
class ShardSet:
    """A set of shards on disk, and its content: image i has the label i."""

    folder: Path
    images: np.ndarray
    manifest: Manifest

    @property
    def tars(self) -> list[Path]:
        return [self.folder / shard.file for shard in self.manifest.shards]

    def record(self, shard: int, row: int) -> np.void:
        return np.fromfile(self.folder / self.manifest.shards[shard].index, dtype=RECORD)[row]


def random_images(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def encoded(image: np.ndarray, encoding: str) -> bytes:
    if encoding == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    picture.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[encoding])
    return buffer.getvalue()


def write_tar(path: Path, images: np.ndarray, first: int = 0, encoding: str = "png") -> None:
    """Write a plain WebDataset tar; the label of an image is its number, from `first` on."""
    with webdataset.TarWriter(str(path)) as writer:
        for number, image in enumerate(images, start=first):
            content = {encoding: encoded(image, encoding), "cls": str(number).encode()}
            writer.write({"__key__": f"{number:06d}", **content})


def make_set(
    folder: Path, sizes: list[int], *, encoding: str = "raw", size: int = 16, channels: int = 3, seed: int = 0
) -> ShardSet:
    folder.mkdir(parents=True)
    images = random_images(sum(sizes), size, channels, seed)
    shards, first = [], 0
    for number, samples in enumerate(sizes):
        tar, index = folder / f"set-{number:06d}.tar", folder / f"set-{number:06d}.index"
        write_tar(tar, images[first : first + samples], first, encoding)
        first += samples
        content = tar.read_bytes()
        with tarfile.open(tar) as archive:
            members = {member.name: member for member in archive.getmembers()}
        table = np.zeros(samples, dtype=RECORD)
        for row, name in enumerate(name for name in members if not name.endswith(".cls")):
            at, length = members[name].offset_data, members[name].size
            label = int(name.partition(".")[0])
            table[row] = (at, length, label, xxhash.xxh3_64_intdigest(content[at : at + length]), 0, 0)
        index.write_bytes(table.tobytes())
        digests = xxhash.xxh3_64_hexdigest(content), xxhash.xxh3_64_hexdigest(table.tobytes())
        shards.append(
            Shard(
                file=tar.name,
                samples=samples,
                bytes=len(content),
                digest=digests[0],
                index=index.name,
                index_digest=digests[1],
            )
        )
    manifest = Manifest(
        image_size=size,
        channels=channels,
        encoding=encoding,
        count=len(images),
        classes=tuple(map(str, range(len(images)))),
        shards=tuple(shards),
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    assert json.loads(manifest.to_json())["count"] == len(images)
    return ShardSet(folder, images, manifest)
