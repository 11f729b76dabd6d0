"""Pictures that could go into a paper: rows of images and plots below a title, at 300 dots an inch."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcgan_dist.data.images import Pixels
from dcgan_dist.training.sampling import make_grid

DPI = 300
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito, which colour-blind people can tell apart; after the first, lines also differ in style."""
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-")

_EDGE = 0.2  # inches around everything
_LINE = 0.17  # height of a line of text
_CAPTION = 0.2  # between the caption of a panel and its images
_PLOT_LEFT, _PLOT_BELOW, _PLOT_ABOVE = 0.55, 0.5, 0.3  # room of a plot for its labels
_LETTERS_PER_INCH = 15.5  # of the text of size 8
_MOST_SCALE = 0.03  # inches that a pixel of an image takes at most: small images are not blown up


@dataclass(frozen=True)
class Panel:
    """Images in rows below a caption.

    Attributes:
        caption: what is to be seen, a line.
        images: uint8 (n, S, S, C), or (n, height, width, C).
        columns: images in a row; left out, as square as can be.
        marks: a short text for each image, written into its corner.
    """

    caption: str
    images: Pixels
    columns: int | None = None
    marks: Sequence[str] | None = None
    gap: int = 2

    @property
    def grid(self) -> Pixels:
        """All images as one."""
        return make_grid(self.images, self.columns or math.ceil(math.sqrt(len(self.images))), self.gap)


class Canvas:
    """A picture that is filled from the top down, and is as high as what it holds.

    Args:
        title: what the figure shows, readable without a caption.
        subtitle: of which run, at which step.
        width: inches.
    """

    def __init__(self, title: str, subtitle: str = "", width: float = 7.2) -> None:
        self.width = width
        self.figure = Figure(figsize=(width, 1), dpi=DPI, facecolor="white")
        self._blocks: list[tuple[float, Callable[[float], None]]] = []  # height, and what places it by its bottom
        self._write(title, 11, "bold", "black")
        if subtitle:
            self._write(subtitle, 7.5, "normal", "0.35")

    def _write(self, text: str, size: float, weight: str, colour: str) -> None:
        letters = int((self.width - 2 * _EDGE) * _LETTERS_PER_INCH * 8 / size)
        lines = textwrap.wrap(text, letters) or [""]
        height = len(lines) * _LINE * size / 8

        def place(bottom: float) -> None:
            x, y = _EDGE / self.width, (bottom + height) / self.height
            # Not parsed: a dollar sign in a name is no formula.
            self.figure.text(
                x, y, "\n".join(lines), size=size, weight=weight, color=colour, va="top", linespacing=1.25
            ).set_parse_math(False)

        self._blocks.append((height + 0.05, place))

    @property
    def height(self) -> float:
        """Inches."""
        return 2 * _EDGE + sum(height for height, _ in self._blocks)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._write(text, 8, "normal", "black")

    def images(self, *panels: Panel) -> None:
        """Add panels side by side, all pixels of the same size."""
        grids = [panel.grid for panel in panels]
        between = 0.25
        free = self.width - 2 * _EDGE - between * (len(panels) - 1)
        scale = min(free / sum(grid.shape[1] for grid in grids), _MOST_SCALE)
        captions = [
            textwrap.wrap(panel.caption, max(8, int(grid.shape[1] * scale * _LETTERS_PER_INCH)))
            for panel, grid in zip(panels, grids, strict=True)
        ]
        above = max(map(len, captions)) * _LINE
        height = max(grid.shape[0] for grid in grids) * scale + above + 0.12
        placed = []
        for panel, grid in zip(panels, grids, strict=True):
            axes = self.figure.add_axes((0, 0, 1, 1), label=f"images {len(self.figure.axes)}")
            axes.imshow(grid[:, :, 0] if grid.shape[2] == 1 else grid, cmap="gray", vmin=0, vmax=255,
                        interpolation="nearest", aspect="auto")  # fmt: skip
            axes.set_axis_off()
            _mark(axes, panel)
            placed.append((axes, grid.shape[1] * scale, grid.shape[0] * scale))

        def place(bottom: float) -> None:
            x, top = _EDGE, bottom + height
            for (axes, wide, high), lines in zip(placed, captions, strict=True):
                self.figure.text(
                    x / self.width, top / self.height, "\n".join(lines), size=8, va="top", linespacing=1.25
                ).set_parse_math(False)
                low = top - above - 0.04 - high
                axes.set_position((x / self.width, low / self.height, wide / self.width, high / self.height))
                x += wide + between

        self._blocks.append((height, place))

    def plots(self, count: int = 1, height: float = 2.0) -> list[Axes]:
        """Add empty plots side by side, to be drawn into; give each a title and name its axes with their units."""
        made = [self.figure.add_axes((0, 0, 1, 1), label=f"plot {len(self.figure.axes) + n}") for n in range(count)]
        for axes in made:
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_fontsize(7.5)
            axes.yaxis.label.set_fontsize(7.5)
            axes.title.set_fontsize(8)
            axes.spines[["top", "right"]].set_visible(False)
        wide = (self.width - 2 * _EDGE) / count
        total = height + _PLOT_BELOW + _PLOT_ABOVE

        def place(bottom: float) -> None:
            for number, axes in enumerate(made):
                axes.set_position(
                    (
                        (_EDGE + number * wide + _PLOT_LEFT) / self.width,
                        (bottom + _PLOT_BELOW) / self.height,
                        (wide - _PLOT_LEFT - 0.1) / self.width,
                        height / self.height,
                    )
                )

        self._blocks.append((total, place))
        return made

    def png(self) -> bytes:
        """Return the picture as a PNG; nothing can be added after that."""
        self.figure.set_size_inches(self.width, self.height)
        top = self.height - _EDGE
        for height, place in self._blocks:
            top -= height
            place(top)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "dcgan_dist"})
        return buffer.getvalue()


def _mark(axes: Axes, panel: Panel) -> None:
    count, high, wide = panel.images.shape[:3]
    columns = panel.columns or math.ceil(math.sqrt(count))
    for number, mark in enumerate(panel.marks or ()):
        row, column = divmod(number, columns)
        axes.text(
            column * (wide + panel.gap) + 0.5, row * (high + panel.gap) + 0.5, mark, size=5, va="top", color="white",
            bbox={"facecolor": "black", "alpha": 0.65, "pad": 0.6, "linewidth": 0}, parse_math=False,
        )  # fmt: skip


def line_with_intervals(
    axes: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Sequence[float]], name: str, number: int
) -> None:
    """Draw line `number` of a plot, by its colour and style, with a bar for the interval (low, high) of each point."""
    middle, (low, high) = np.asarray(y), np.asarray(intervals).T
    axes.errorbar(
        x, middle, [np.maximum(middle - low, 0), np.maximum(high - middle, 0)], label=name,
        color=COLOURS[number % len(COLOURS)], linestyle=LINES[number % len(LINES)],
        marker="o", markersize=3, linewidth=1.3, elinewidth=0.8, capsize=2,
    )  # fmt: skip


def animation(frames: Pixels, seconds: float, scale: int = 3) -> bytes:
    """Return frames, uint8 (n, S, S, C), as a GIF that goes there and back without end, enlarged."""
    from PIL import Image

    there_and_back = [*frames, *frames[-2:0:-1]]
    pictures = []
    for frame in there_and_back:
        pixels = np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)
        pictures.append(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    each = max(20, round(1000 * seconds / len(there_and_back)))
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=each, loop=0)
    return buffer.getvalue()


__all__ = ["COLOURS", "LINES", "Canvas", "Panel", "animation", "line_with_intervals"]
