"""Grids of samples made small enough to be sent in a page: read with care, cut to fewer images, packed as WebP.

A grid is cut, not shrunk: fewer of the same images at their own size say more than all of them blurred. Nothing is
decoded whose header claims more pixels than a grid can have.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash
from PIL import Image

GAP = 2  # pixels between the images of a grid
MAX_SIDE = 10_000
MAX_PIXELS = 40_000_000
MAX_BYTES = 100_000_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Unreadable(Exception):
    """A file is no grid that could be shown; the message says why."""


@dataclass(frozen=True)
class Style:
    """How grids are cut and packed.

    Attributes:
        steps: most grids of one trial.
        cells: most images along a side of the grid.
        pixels: longest side of the result; what is larger is shrunk.
        quality: of WebP, 0 to 100.
    """

    steps: int
    cells: int
    pixels: int
    quality: int


# From lavish to frugal: a page takes the first with which its images fit.
STYLES = (
    Style(steps=12, cells=8, pixels=560, quality=76),
    Style(steps=12, cells=6, pixels=420, quality=72),
    Style(steps=10, cells=5, pixels=340, quality=66),
    Style(steps=8, cells=4, pixels=272, quality=60),
    Style(steps=6, cells=4, pixels=200, quality=50),
    Style(steps=4, cells=3, pixels=136, quality=40),
    Style(steps=2, cells=2, pixels=96, quality=30),
)
ROW = Style(steps=1, cells=4, pixels=112, quality=55)  # beside a trial's name


@dataclass(frozen=True)
class Thumbnail:
    """A packed image.

    Attributes:
        name: digest of the file it was made from and of its style, 16 hexadecimal digits and more.
        data: WebP.
        width: in pixels.
        height: in pixels.
        images: how many images of the grid it shows, 0 where that is unknown.
    """

    name: str
    data: bytes
    width: int
    height: int
    images: int


def png_size(content: bytes) -> tuple[int, int]:
    """Return the width and height that the header of a PNG states.

    Raises:
        Unreadable: it is no PNG, or larger than any grid.
    """
    if len(content) < 24 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        raise Unreadable("it is no PNG")
    width, height = struct.unpack(">II", content[16:24])
    if not width or not height:
        raise Unreadable("it has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise Unreadable(f"it claims {width:,} x {height:,} pixels, more than a grid of samples has")
    return width, height


def cut(width: int, height: int, cell: int | None, cells: int) -> tuple[int, int, int]:
    """Return width and height of what is kept of a grid, from its upper left, and how many images that shows.

    Args:
        width: of the grid in pixels.
        height: of the grid in pixels.
        cell: side of one of its images; None where that is unknown: all is kept.
        cells: most images along a side.
    """
    pitch = (cell or 0) + GAP
    if not cell or (width + GAP) % pitch or (height + GAP) % pitch:
        return width, height, 0
    columns, rows = min(cells, (width + GAP) // pitch), min(cells, (height + GAP) // pitch)
    return columns * pitch - GAP, rows * pitch - GAP, columns * rows


def make_thumbnail(content: bytes, cell: int | None, style: Style) -> Thumbnail:
    """Return a grid of samples, cut and packed.

    Args:
        content: of a PNG.
        cell: side of one of its images in pixels, where it is known.
        style: how.

    Raises:
        Unreadable: it is no PNG, too large, or damaged.
    """
    if len(content) > MAX_BYTES:
        raise Unreadable(f"it has {len(content):,} bytes, more than a grid of samples has")
    width, height = png_size(content)
    kept_width, kept_height, images = cut(width, height, cell, style.cells)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            image = picture.crop((0, 0, kept_width, kept_height)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"it is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error
    image.thumbnail((style.pixels, style.pixels), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=style.quality, method=3)
    return Thumbnail(name_of(content, cell, style), packed.getvalue(), *image.size, images)


def name_of(content: bytes, cell: int | None, style: Style) -> str:
    """Return the name of what `make_thumbnail` makes of the same, without making it."""
    return f"{xxhash.xxh3_64_hexdigest(content)}-{cell or 0}-{style.cells}x{style.pixels}q{style.quality}"


@dataclass
class Thumbnails:
    """Makes thumbnails, each once: also for grids with the same content under several names, and from page to page."""

    made: dict[str, Thumbnail] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    names: dict[tuple[object, ...], str] = field(default_factory=dict)

    def get(self, key: object, read: Callable[[], bytes | None], cell: int | None, style: Style) -> Thumbnail:
        """Return the thumbnail of a file.

        Args:
            key: identifies the file as it is now: the same key stands for the same content.
            read: returns its content, None where it is gone; called only if the key is new.
            cell: side of one of its images in pixels, where it is known.
            style: how.

        Raises:
            Unreadable: it is missing, no PNG, too large, or damaged.
        """
        place = (key, cell, style)
        if place not in self.names:
            content = read()
            if content is None:
                raise Unreadable("it is missing")
            name = self.names[place] = name_of(content, cell, style)
            if name not in self.made and name not in self.refused:
                try:
                    self.made[name] = make_thumbnail(content, cell, style)
                except Unreadable as error:
                    self.refused[name] = str(error)
        name = self.names[place]
        if name in self.refused:
            raise Unreadable(self.refused[name])
        return self.made[name]


def choose_steps(steps: list[int], most: int) -> list[int]:
    """Return at most `most` of the ascending steps: the first, the last, and evenly between them."""
    if len(steps) <= most or most < 2:
        return steps[-most:]
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
