"""Thumbnails of sample grids for the page: cut to fewer images, and compressed as JPEG.

A grid is cut and not shrunk, because a few images at their own size show more than all of them blurred. A file is not
decoded if its header states more pixels than a grid can have.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import xxhash
from PIL import Image

from dcgan_dist.storage.files import write_atomically

GAP = 2  # pixels between the images of a grid
MAX_SIDE = 10_000
MAX_PIXELS = 40_000_000
MAX_BYTES = 100_000_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Unreadable(Exception):
    """A file that cannot be shown; the message says why."""


@dataclass(frozen=True)
class Style:
    """How grids are cut and compressed.

    Attributes:
        steps: grids of one trial, at most.
        cells: images along a side of the grid, at most.
        pixels: longest side of the result in pixels; larger ones are shrunk.
        quality: JPEG quality, 0 to 100.
        figure: width of a figure in pixels; 0 leaves figures out.
    """

    steps: int
    cells: int
    pixels: int
    quality: int
    figure: int = 0

    @property
    def of_figures(self) -> Style:
        """The style of figures: not cut, and wide enough for their text."""
        return Style(steps=1, cells=0, pixels=self.figure, quality=80)


# From large to small: a page takes the first style with which its images fit.
STYLES = (
    Style(steps=12, cells=8, pixels=560, quality=72, figure=1080),
    Style(steps=12, cells=6, pixels=420, quality=68, figure=1080),
    Style(steps=10, cells=5, pixels=340, quality=62, figure=800),
    Style(steps=8, cells=4, pixels=272, quality=56, figure=800),
    Style(steps=6, cells=4, pixels=200, quality=48),
    Style(steps=4, cells=3, pixels=136, quality=40),
    Style(steps=2, cells=2, pixels=96, quality=30),
)
ROW = Style(steps=1, cells=4, pixels=112, quality=55)  # next to a trial's name in the leaderboard


@dataclass(frozen=True)
class Thumbnail:
    """A compressed image.

    Attributes:
        name: identifies the content and the style: digest of the file, and the numbers of the style.
        data: the JPEG; empty if it was written to a folder.
        width: width in pixels.
        height: height in pixels.
        images: number of images of the grid that it shows, 0 if unknown.
    """

    name: str
    data: bytes
    width: int
    height: int
    images: int


def png_size(content: bytes) -> tuple[int, int]:
    """Return the width and height that the header of a PNG states.

    Raises:
        Unreadable: it is not a PNG, or larger than any grid.
    """
    if len(content) < 24 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        raise Unreadable("it is no PNG")
    width, height = struct.unpack(">II", content[16:24])
    if not width or not height:
        raise Unreadable("it has no pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise Unreadable(f"its header states {width:,} x {height:,} pixels, more than a grid of samples has")
    return width, height


def cut(width: int, height: int, cell: int | None, cells: int) -> tuple[int, int, int]:
    """Return width and height of the upper left part of a grid to keep, and the number of images in it.

    Args:
        width: width of the grid in pixels.
        height: height of the grid in pixels.
        cell: side of one of its images in pixels; None if unknown, then the whole grid is kept.
        cells: images along a side to keep, at most.
    """
    pitch = (cell or 0) + GAP
    if not cell or (width + GAP) % pitch or (height + GAP) % pitch:
        return width, height, 0
    columns, rows = min(cells, (width + GAP) // pitch), min(cells, (height + GAP) // pitch)
    return columns * pitch - GAP, rows * pitch - GAP, columns * rows


def make_thumbnail(content: bytes, cell: int | None, style: Style, name: str = "") -> Thumbnail:
    """Return the thumbnail of a sample grid.

    Args:
        content: content of the PNG.
        cell: side of one of its images in pixels; None if unknown.
        style: how to cut and compress it.
        name: name of the thumbnail.

    Raises:
        Unreadable: it is not a PNG, too large, or damaged.
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
    # A figure (cells is 0) is limited in width only, because it may be higher than wide.
    image.thumbnail((style.pixels, style.pixels if style.cells else MAX_SIDE), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=style.quality, optimize=True)
    return Thumbnail(name, packed.getvalue(), *image.size, images)


@dataclass
class Thumbnails:
    """Thumbnails, each made once: also for equal files under several names, and for one page after another.

    It can be used by several threads.

    Attributes:
        folder: folder where they are kept as files `NAME.jpg`; None keeps them in memory.
    """

    folder: Path | None = None
    _made: dict[str, Thumbnail] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _digests: dict[Hashable, str] = field(default_factory=dict)
    _makers: dict[str, Lock] = field(default_factory=dict)

    def get(self, key: Hashable, read: Callable[[], bytes | None], cell: int | None, style: Style) -> Thumbnail:
        """Return the thumbnail of a file.

        Args:
            key: identifies the current content of the file: equal keys mean equal content.
            read: function that returns the content, None if the file is gone; only called for a new key or style.
            cell: side of one of its images in pixels; None if unknown.
            style: how to cut and compress it.

        Raises:
            Unreadable: the file is missing, not a PNG, too large, or damaged.
            StorageError: the folder cannot be written to.
        """
        content = None
        if key not in self._digests:
            content = _existing(read())
            self._digests[key] = xxhash.xxh3_64_hexdigest(content)
        name = f"{self._digests[key]}-{cell or 0}-{style.cells}x{style.pixels}q{style.quality}"
        with self._makers.setdefault(name, Lock()):  # only one of several threads makes it
            if name in self._refused:
                raise Unreadable(self._refused[name])
            if name not in self._made or (self.folder is not None and self._made[name].data):
                try:
                    self._made[name] = self._keep(make_thumbnail(_existing(content or read()), cell, style, name))
                except Unreadable as error:
                    self._refused[name] = str(error)
                    raise
            return self._made[name]

    def _keep(self, thumbnail: Thumbnail) -> Thumbnail:
        if self.folder is None:
            return thumbnail
        write_atomically(self.folder / f"{thumbnail.name}.jpg", thumbnail.data, durable=False)
        return replace(thumbnail, data=b"")


def _existing(content: bytes | None) -> bytes:
    if content is None:
        raise Unreadable("it is missing")
    return content


def choose_steps(steps: list[int], most: int) -> list[int]:
    """Return at most `most` of the ascending steps: the first, the last, and evenly spaced ones between them."""
    if len(steps) <= most or most < 2:
        return steps[-most:]
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]
