"""`dedup`: the share of planted near-duplicates that de-duplication finds, and the share of falsely removed images.

Near-copies of a tenth of the images are added to a set of photographs (or of rooms, if there are none): encoded as JPEG
of quality 50, cropped by 2%, 5% brighter or darker, or shifted by a pixel, before they are resized to 64x64. A removed
image is a duplicate if the kept image of its group has the same origin. Photographs also have near-duplicates that were
not planted: these are recognised by their pixels, with a measure that is independent of the autoencoder.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.measuring import Bench, Record
from dcgan_dist.data.images import Pixels, decode, decode_stored, encode, fit
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.settings import DeduplicationConfig
from dcgan_dist.deduplication.autoencoder import SIDE, train_autoencoder
from dcgan_dist.deduplication.codes import pack_codes
from dcgan_dist.deduplication.groups import find_groups
from dcgan_dist.deduplication.removal import calibrate
from dcgan_dist.distributed import pick_device

DATA_VARIABLE = "DCGAN_DIST_DATA"
ARCHIVES = ("faces_64.tar.gz", "rooms_128.tar.gz", "tiny_imagenet_20k.tar.gz")
RADII = (0, 1, 2, 3, 4, 5, 6)

_STORED = 64  # side of the images in the shards
_MOST_ALIKE = 0.5  # largest `distance` of two images of the same picture
_ROOMS = 2000

Draws = np.random.Generator


def bench_deduplication(bench: Bench) -> Iterator[Record]:
    """Yield the recall of each kind and the removals for each set of images and radius; a round is a seed."""
    data = os.environ.get(DATA_VARIABLE)
    archives: list[Path | None] = [Path(data, name) for name in ARCHIVES] if data else [None]
    settings = bench.size(DeduplicationConfig(), DeduplicationConfig(steps=50, batch_size=64))
    for archive in archives[: bench.size(None, 1)]:
        images = read_images(archive, bench.size(None, 300))
        radii = bench.size(RADII, RADII[:2])
        seeds = [measure(images, settings, radii, seed=number) for number in range(bench.rounds)]
        for number, radius in enumerate(radii):
            what = f"{archive.name if archive else 'rooms'}, {len(images):,} images, radius {radius}: "
            for figure, unit in UNITS.items():
                yield bench.record(what + figure, unit, [figures[number][figure] for figures in seeds])


def read_images(archive: Path | None, most: int | None = None) -> list[Pixels]:
    """Return the JPEGs of a tar, shuffled by a fixed seed; rooms if `archive` is None."""
    if archive is None:
        return [draw_room(0, number, _STORED)[0] for number in range(most or _ROOMS)]
    found: list[bytes] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.lower().endswith((".jpg", ".jpeg")) else None
            if content is not None:
                found.append(content.read())
    chosen = np.random.default_rng(0).permutation(len(found))[:most]
    return [decode(found[number]) for number in chosen]


def as_jpeg(image: Pixels, _: Draws) -> Pixels:
    """Encode an image as JPEG of quality 50, and decode it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    return decode(buffer.getvalue())


def cropped(image: Pixels, draws: Draws) -> Pixels:
    """Crop 2% of each side's length, and enlarge the rest to the old size."""
    rows, columns = image.shape[:2]
    top, left = draws.random() * 0.02 * rows, draws.random() * 0.02 * columns
    box = (left, top, left + 0.98 * columns, top + 0.98 * rows)
    enlarged: Pixels = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, box=box))
    return enlarged


def relit(image: Pixels, draws: Draws) -> Pixels:
    """Make an image 5% brighter or darker."""
    lit: Pixels = np.clip(np.round(image * draws.choice([0.95, 1.05])), 0, 255).astype(np.uint8)
    return lit


def shifted(image: Pixels, draws: Draws) -> Pixels:
    """Resize an image to 64x64, and shift it by a pixel, up, down, left or right."""
    down, right = _STEPS[draws.integers(4)]
    small = fit(image, _STORED, 3)
    return np.ascontiguousarray(
        np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="edge")[1 + down :, 1 + right :][:_STORED, :_STORED]
    )


_STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
KINDS: dict[str, Callable[[Pixels, Draws], Pixels]] = {
    "jpeg_q50": as_jpeg,
    "crop_2%": cropped,
    "brightness_5%": relit,
    "shift_1px": shifted,
}


UNITS = {
    **dict.fromkeys(("recall", *(f"recall_{kind}" for kind in KINDS)), "share of the copies"),
    **{"removed": "images", "false": "images", "false_share": "share of the removed"},
}
"""What is measured at a radius, and in which unit."""


@dataclass(frozen=True)
class Planted:
    """Images with planted near-copies, in random order.

    Attributes:
        images: uint8, shape (n, 32, 32, 3), as the autoencoder sees them.
        origin: number of the original of each image, shape (n,).
        kind: index in `KINDS` of each copy, -1 for an original, shape (n,).
    """

    images: Pixels
    origin: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]


def plant(images: list[Pixels], seed: int) -> Planted:
    """Add a near-copy of a tenth of the images, with the kinds in turn, and shuffle all."""
    draws = np.random.default_rng(seed)

    def stored(image: Pixels) -> Pixels:
        return fit(decode_stored(encode(fit(image, _STORED, 3), "jpg"), "jpg", _STORED, 3), SIDE, 3)

    copied = draws.permutation(len(images))[: max(len(KINDS), len(images) // 10)]
    kinds = np.arange(len(copied)) % len(KINDS)
    change = list(KINDS.values())
    copies = [stored(change[kind](images[number], draws)) for number, kind in zip(copied, kinds, strict=True)]
    order = draws.permutation(len(images) + len(copied))
    return Planted(
        np.stack([*map(stored, images), *copies])[order],
        np.concatenate([np.arange(len(images)), copied])[order],
        np.concatenate([np.full(len(images), -1), kinds])[order],
    )


def distance(one: Pixels, other: Pixels) -> float:
    """Return the distance of two images (32, 32, 3) at their best alignment within two pixels.

    It is the root of the mean squared difference, in units of their contrast: 0 for the same picture at any brightness,
    about 1.4 for unrelated ones.
    """

    def normal(part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = (part - part.mean()) / (part.std() + 4)
        return result

    first, second = one.astype(np.float32), other.astype(np.float32)
    centre = normal(first[2:-2, 2:-2])
    return min(
        float(np.sqrt(np.square(centre - normal(second[y : y + SIDE - 4, x : x + SIDE - 4])).mean()))
        for y in range(5)
        for x in range(5)
    )


def measure(
    images: list[Pixels], settings: DeduplicationConfig, radii: tuple[int, ...], *, seed: int
) -> list[dict[str, float]]:
    """Train on images with planted near-copies, and return the figures at each radius."""
    planted = plant(images, seed)
    tensor = torch.from_numpy(planted.images)
    network, _ = train_autoencoder(tensor, settings, seed=seed, device=pick_device("auto"))
    figures = []
    for radius in radii:
        chosen = replace(settings, radius=radius)
        calibrate(network, tensor[:20_000], chosen, count=len(tensor), seed=seed)
        codes = pack_codes(torch.cat([network.bits(part) for part in tensor.split(4096)]).numpy())
        first = find_groups(codes, np.ones(len(codes), dtype=np.bool_), radius, settings.code_size)
        figures.append(judge(planted, first))
    return figures


def judge(planted: Planted, first: npt.NDArray[np.uint32]) -> dict[str, float]:
    """Return the recall of each kind, and the counts of removed and falsely removed images, of a set of groups."""
    position = np.empty(int(planted.origin.max()) + 1, dtype=np.int64)
    originals = np.flatnonzero(planted.kind < 0)
    position[planted.origin[originals]] = originals
    found = first == first[position[planted.origin]]
    recall = {name: float(found[planted.kind == kind].mean()) for kind, name in enumerate(KINDS)}
    removed = np.flatnonzero(first != np.arange(len(first)))
    unplanted = removed[planted.origin[removed] != planted.origin[first[removed]]]
    false = sum(
        distance(planted.images[number], planted.images[first[number]]) > _MOST_ALIKE for number in unplanted.tolist()
    )
    return {
        "recall": float(np.mean(list(recall.values()))),
        **{f"recall_{name}": value for name, value in recall.items()},
        "removed": len(removed),
        "false": false,
        "false_share": false / max(1, len(removed)),
    }
