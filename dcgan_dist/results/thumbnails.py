"""Grids of samples made small enough to be sent in a page: read with care, cut to fewer images, packed as JPEG.

A grid is cut, not shrunk: fewer of the same images at their own size say more than all of them blurred. Nothing is
decoded whose header claims more pixels than a grid can have.
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
    """A file is no grid that could be shown; the message says why."""


@dataclass(frozen=True)
class Style:
    """How grids are cut and packed.

    Attributes:
        steps: most grids of one trial.
        cells: most images along a side of the grid.
        pixels: longest side of the result; what is larger is shrunk.
        quality: of JPEG, 0 to 100.
        figure: width of a figure in pixels; 0 leaves figures out.
    """

    steps: int
    cells: int
    pixels: int
    quality: int
    figure: int = 0

    @property
    def of_figures(self) -> Style:
        """How figures are packed: whole, and as wide as their text needs."""
        return Style(steps=1, cells=0, pixels=self.figure, quality=80)


# From lavish to frugal: a page takes the first with which its images fit.
STYLES = (
    Style(steps=12, cells=8, pixels=560, quality=72, figure=1080),
    Style(steps=12, cells=6, pixels=420, quality=68, figure=1080),
    Style(steps=10, cells=5, pixels=340, quality=62, figure=800),
    Style(steps=8, cells=4, pixels=272, quality=56, figure=800),
    Style(steps=6, cells=4, pixels=200, quality=48),
    Style(steps=4, cells=3, pixels=136, quality=40),
    Style(steps=2, cells=2, pixels=96, quality=30),
)
ROW = Style(steps=1, cells=4, pixels=112, quality=55)  # beside a trial's name


@dataclass(frozen=True)
class Thumbnail:
    """A packed image.

    Attributes:
        name: says what it was made of: digest of the file, and style.
        data: JPEG.
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


def make_thumbnail(content: bytes, cell: int | None, style: Style, name: str = "") -> Thumbnail:
    """Return a grid of samples, cut and packed.

    Args:
        content: of a PNG.
        cell: side of one of its images in pixels, where it is known.
        style: how.
        name: of the result.

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
    # A figure, of which nothing is cut, may be higher than wide.
    image.thumbnail((style.pixels, style.pixels if style.cells else MAX_SIDE), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=style.quality, optimize=True)
    return Thumbnail(name, packed.getvalue(), *image.size, images)


@dataclass
class Thumbnails:
    """Makes thumbnails, each once: also for grids with the same content under several names, and from page to page.

    Any thread may ask for them.

    Attributes:
        folder: where they are kept, as files `NAME.jpg`; None keeps them in memory.
    """

    folder: Path | None = None
    _made: dict[str, Thumbnail] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _digests: dict[Hashable, str] = field(default_factory=dict)
    _makers: dict[str, Lock] = field(default_factory=dict)

    def get(self, key: Hashable, read: Callable[[], bytes | None], cell: int | None, style: Style) -> Thumbnail:
        """Return the thumbnail of a file.

        Args:
            key: identifies the file as it is now: the same key stands for the same content.
            read: returns its content, None where it is gone; called only if the key is new, or the style.
            cell: side of one of its images in pixels, where it is known.
            style: how.

        Raises:
            Unreadable: it is missing, no PNG, too large, or damaged.
            StorageError: the folder cannot be written to.
        """
        content = None
        if key not in self._digests:
            content = _existing(read())
            self._digests[key] = xxhash.xxh3_64_hexdigest(content)
        name = f"{self._digests[key]}-{cell or 0}-{style.cells}x{style.pixels}q{style.quality}"
        with self._makers.setdefault(name, Lock()):  # several threads may ask for the same one
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
    """Return at most `most` of the ascending steps: the first, the last, and evenly between them."""
    if len(steps) <= most or most < 2:
        return steps[-most:]
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
