"""The part of `data` on preparing: from an LMDB like LSUN's to shards, compared with PIL and webdataset's writer."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import simplejpeg
import webdataset
import webp
from PIL import Image

from benchmarks.measuring import Bench, Record, Way, alternate, each
from dcgan_dist.data.images import JPEG_QUALITY, Pixels
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import open_source
from dcgan_dist.parallel import LocalPool

SIZE = 64
_WIDTH, _HEIGHT = 341, 256  # the shorter side of LSUN's images is 256
_PICTURES = 200
_RECORDS = {"JPEG": 2000, "WEBP": 600}
_QUALITY = 75
_GRAIN = 6.0  # standard deviation of the noise, which makes the files as large as real ones


def make_lmdb(folder: Path, kind: str, records: int, pictures: int = _PICTURES) -> list[bytes]:
    """Write an LMDB like LSUN's: hashes as keys, images of 256 pixels as values; return the values."""
    values = [_encoded(picture, kind) for picture in _pictures(pictures)]
    with lmdb.open(str(folder), map_size=1 << 32) as environment, environment.begin(write=True) as transaction:
        for number in range(records):
            key = hashlib.sha1(str(number).encode(), usedforsecurity=False).hexdigest()
            transaction.put(key.encode(), values[number % len(values)])
    return [values[number % len(values)] for number in range(records)]


def _pictures(count: int) -> Iterator[Pixels]:
    """Yield images of 341x256 pixels: photographs of rooms if there are any, else procedural rooms."""
    grain = np.random.default_rng(0)
    for picture in _photographs(count) or (Image.fromarray(draw_room(0, number)[0]) for number in range(count)):
        large = np.asarray(picture.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = large + grain.normal(0.0, _GRAIN, large.shape)
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _photographs(count: int) -> list[Image.Image]:
    folder = os.environ.get("DCGAN_DIST_DATA")
    if not folder:
        return []
    pictures: list[Image.Image] = []
    with tarfile.open(Path(folder, "rooms_128.tar.gz")) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and len(pictures) < count:
                pictures.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
    return pictures


def _encoded(picture: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=_QUALITY)
    return buffer.getvalue()


def _ours(source: Path, scratch: Path) -> int:
    recipe = Recipe(image_size=SIZE, encoding="jpg", name="lsun")
    return write_shards(open_source("lsun", source), recipe, tempfile.mkdtemp(dir=scratch), pool=LocalPool(1)).count


def _stock(source: Path, scratch: Path) -> int:
    with (
        lmdb.open(str(source), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
        webdataset.ShardWriter(f"{tempfile.mkdtemp(dir=scratch)}/lsun-%06d.tar", maxcount=2000, verbose=0) as writer,
    ):
        for key, value in transaction.cursor():
            writer.write({"__key__": key.decode(), "jpg": _stock_image(value)})
        return int(environment.stat()["entries"])


def _stock_image(content: bytes) -> bytes:
    """Decode, crop the central square, resize and encode, all with PIL, as the same kind of JPEG as ours."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _decode_scaled(content: bytes) -> object:
    return simplejpeg.decode_jpeg(content, "RGB", min_height=SIZE, min_width=SIZE, min_factor=1)


def _decode_with_pil(content: bytes) -> object:
    return np.asarray(Image.open(io.BytesIO(content)))


def _decode_with_libwebp(content: bytes) -> object:
    return webp.WebPData.from_buffer(content).decode(webp.WebPColorMode.RGB)


_DECODERS = {
    "JPEG": {"simplejpeg with DCT scaling to the smallest size of at least 64": _decode_scaled},
    "WEBP": {"PIL": _decode_with_pil, "libwebp": _decode_with_libwebp},
}


def bench_sources(bench: Bench, scratch: Path) -> Iterator[Record]:
    """Measure how fast shards of 64x64 JPEGs are written from an LMDB of 256-pixel JPEGs, and from one of WebPs."""
    stock = "PIL decode, crop, resize and encode, webdataset.ShardWriter"
    for kind, goal in (("JPEG", 2.5), ("WEBP", None)):
        folder = scratch / kind
        source = folder / "room_train_lmdb"
        source.mkdir(parents=True)
        values = make_lmdb(source, kind, bench.size(_RECORDS[kind], 100), bench.size(_PICTURES, 20))
        decoders: dict[str, Way] = {
            f"limit: decode of these {kind}s alone, {name}": each(decode, values)
            for name, decode in _DECODERS[kind].items()
        }
        ways: dict[str, Way] = {
            "ours": partial(_ours, source, folder),
            stock: partial(_stock, source, folder),
            **decoders,
        }
        turns = alternate(ways, bench.rounds, warm_up=1)
        size = np.mean([len(value) for value in values]) / 1000
        yield bench.compare(
            f"LMDB of {len(values)} 256-pixel {kind}s ({size:.0f} kB) to 64-pixel shards",
            turns,
            "ours",
            stock,
            goal=goal,
        )
        yield from (bench.record(decoder, "images/s", turns[decoder]["images/s"]) for decoder in decoders)


__all__ = ["bench_sources", "make_lmdb"]
