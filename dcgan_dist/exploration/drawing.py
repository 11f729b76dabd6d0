"""Pictures in print quality: rows of images and plots below a title, at 300 dots per inch; and animations."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import features

from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.diversity import Metric
from dcgan_dist.training.sampling import make_grid

# Matplotlib is imported where it draws, so that what a figure measures can be computed without it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 300
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito, which colour-blind people can distinguish; lines also differ in style (`LINES`)."""
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-")

_EDGE = 0.2  # inches around everything
_LINE = 0.17  # height of a line of text
_CAPTION = 0.2  # between the caption of a panel and its images
_PLOT_LEFT, _PLOT_BELOW, _PLOT_ABOVE = 0.55, 0.5, 0.3  # margins of a plot for its labels
_MOST_SCALE = 0.03  # inches that a pixel of an image takes at most, so that small images do not fill the page


@dataclass(frozen=True)
class Panel:
    """Images in rows below a caption.

    Attributes:
        caption: what the images show, one line.
        images: uint8 (n, S, S, C), or (n, height, width, C).
        columns: images in a row; if None, as many as make the grid about square.
        marks: a short text for each image, written into its corner.
        gap: pixels between images.
    """

    caption: str
    images: Pixels
    columns: int | None = None
    marks: Sequence[str] | None = None
    gap: int = 2

    @property
    def grid(self) -> Pixels:
        """All images in one, uint8 (height, width, C)."""
        return make_grid(self.images, self.columns or math.ceil(math.sqrt(len(self.images))), self.gap)


class Canvas:
    """A picture that is filled from the top down and grows with its content.

    Args:
        title: what the figure shows, readable without a caption.
        subtitle: the run and the step.
        width: width in inches.

    Attributes:
        files: contents of further files by their suffix: ``{".gif": ..., ".html": ...}``.
    """

    def __init__(self, title: str, subtitle: str = "", width: float = 7.2) -> None:
        from matplotlib.figure import Figure

        self.title, self.width = title, width
        self.files: dict[str, bytes] = {}
        self.figure = Figure(figsize=(width, 1), dpi=DPI, facecolor="white")
        self._blocks: list[tuple[float, Callable[[float], None]]] = []  # height, and a function that sets its position
        self._write(title, 11, "bold", "black")
        if subtitle:
            self._write(subtitle, 7.5, "normal", "0.35")

    def _write(self, text: str, size: float, weight: str, colour: str) -> None:
        lines = _wrapped(text, self.width - 2 * _EDGE, size, weight)
        height = len(lines) * _LINE * size / 8

        def place(bottom: float) -> None:
            x, y = _EDGE / self.width, (bottom + height) / self.height
            # Not parsed as mathematics: a name may contain a dollar sign.
            self.figure.text(
                x, y, "\n".join(lines), size=size, weight=weight, color=colour, va="top", linespacing=1.25
            ).set_parse_math(False)

        self._blocks.append((height + 0.05, place))

    @property
    def height(self) -> float:
        """Height in inches."""
        return 2 * _EDGE + sum(height for height, _ in self._blocks)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._write(text, 8, "normal", "black")

    def images(self, *panels: Panel) -> None:
        """Add panels in a row; the pixels of all panels have the same size."""
        grids = [panel.grid for panel in panels]
        between = 0.25
        free = self.width - 2 * _EDGE - between * (len(panels) - 1)
        scale = min(free / sum(grid.shape[1] for grid in grids), _MOST_SCALE)
        captions = [_wrapped(panel.caption, grid.shape[1] * scale) for panel, grid in zip(panels, grids, strict=True)]
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
        """Add empty plots in a row and return them; the caller sets titles, and labels of the axes with units."""
        made = [self.figure.add_axes((0, 0, 1, 1), label=f"plot {len(self.figure.axes) + n}") for n in range(count)]
        for axes in made:
            axes.tick_params(labelsize=7)
            axes.xaxis.label.set_fontsize(7.5)
            axes.yaxis.label.set_fontsize(7.5)
            axes.spines[["top", "right"]].set_visible(False)
        wide = (self.width - 2 * _EDGE) / count

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

        self._blocks.append((height + _PLOT_BELOW + _PLOT_ABOVE, place))
        return made

    def png(self) -> bytes:
        """Return the picture as a PNG. Nothing can be added afterwards."""
        self.figure.set_size_inches(self.width, self.height)
        top = self.height - _EDGE
        for height, place in self._blocks:
            top -= height
            place(top)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "dcgan_dist"})
        return buffer.getvalue()


def _wrapped(text: str, width: float, size: float = 8, weight: str = "normal") -> list[str]:
    """Split a text into lines of at most `width` inches; a word that is wider is split too."""
    lines = [""]
    for word in text.split() or [""]:
        rest = word
        longer = f"{lines[-1]} {rest}".strip()
        if _width(longer, size, weight) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        while _width(rest, size, weight) > width and len(rest) > 1:
            fits = next(n for n in range(len(rest) - 1, 0, -1) if n == 1 or _width(rest[:n], size, weight) <= width)
            lines[-1], rest = rest[:fits], rest[fits:]
            lines.append("")
        lines[-1] = rest
    return lines


@lru_cache(maxsize=4096)
def _width(text: str, size: float, weight: str) -> float:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(weight=weight)))
    font.set_size(size, DPI)
    font.set_text(text, 0)
    return float(font.get_width_height()[0]) / 64 / DPI


def _mark(axes: Axes, panel: Panel) -> None:
    count, high, wide = panel.images.shape[:3]
    columns = panel.columns or math.ceil(math.sqrt(count))
    for number, mark in enumerate(panel.marks or ()):
        row, column = divmod(number, columns)
        axes.text(
            column * (wide + panel.gap) + 0.5, row * (high + panel.gap) + 0.5, mark, size=5, va="top", color="white",
            bbox={"facecolor": "black", "alpha": 0.65, "pad": 0.6, "linewidth": 0}, parse_math=False,
        )  # fmt: skip


def describe(
    axes: Axes,
    title: str,
    at: Literal["left", "center"] = "center",
    legend: dict[str, Any] | None = None,
    **others: Any,
) -> None:
    """Set the title of a plot, other properties such as `xlabel` or `ylim` (see `Axes.set`), and its legend."""
    axes.set_title(title, fontsize=8, loc=at)
    axes.set(**others)
    if legend is not None:
        axes.legend(frameon=False, **legend)


def errors(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Return how far the interval (low, high) of each value reaches down and up, (2, n), for `Axes.errorbar`."""
    middle, (low, high) = np.asarray(values), np.asarray(intervals).T
    return np.maximum([middle - low, high - middle], 0)


def line_with_intervals(
    axes: Axes, x: Sequence[float], y: Sequence[float], intervals: Sequence[Sequence[float]], name: str, number: int
) -> None:
    """Draw a line with a bar for the interval (low, high) of each point; `number` selects its colour and style."""
    axes.errorbar(
        x, y, errors(y, intervals), label=name,
        color=COLOURS[number % len(COLOURS)], linestyle=LINES[number % len(LINES)],
        marker="o", markersize=3, linewidth=1.3, elinewidth=0.8, capsize=2,
    )  # fmt: skip


def line_of_shares(axes: Axes, x: Sequence[float], shares: Sequence[Metric], name: str, number: int) -> None:
    """Draw a line of shares in percent, see `line_with_intervals`."""
    percents, ends = ([100 * share.value for share in shares], [[100 * end for end in share.ci95] for share in shares])
    line_with_intervals(axes, x, percents, ends, name, number)


Film = Literal["auto", "gif", "webp", "mp4", "none"]
"""Format of an animation; `auto` is a GIF, also a WebP if that is smaller, and an MP4 if ffmpeg is installed."""

_FILM_SIDE = 128  # side of a frame in pixels, about: small images are enlarged


def animation(frames: Pixels, seconds: float, scale: int = 3, form: Literal["gif", "webp"] = "gif") -> bytes:
    """Return an enlarged GIF or WebP that plays the frames forwards and backwards in a loop.

    Args:
        frames: uint8 (n, S, S, C).
        seconds: duration of one loop.
        scale: factor by which the frames are enlarged.
        form: format of the file.
    """
    from PIL import Image

    pictures = [
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        for pixels in enlarged(_there_and_back(frames), scale)
    ]
    buffer = io.BytesIO()
    each = max(20, round(1000 * seconds / len(pictures)))
    pictures[0].save(
        buffer, format=form.upper(), save_all=True, append_images=pictures[1:], duration=each, loop=0,
        **({"quality": 80, "method": 4} if form == "webp" else {}),
    )  # fmt: skip
    return buffer.getvalue()


def check_film(film: Film) -> None:
    """Check that an animation can be made on this machine.

    Raises:
        ConfigError: the format is mp4, and ffmpeg is not installed.
    """
    if film == "mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError("animation is 'mp4', which needs ffmpeg, and none is on the PATH: install it, or take gif")


def films(frames: Pixels, seconds: float, film: Film) -> dict[str, bytes]:
    """Return the animation files by suffix, as in `Canvas.files`.

    Args:
        frames: uint8 (n, S, S, C).
        seconds: duration from the first frame to the last.
        film: format.

    Raises:
        ConfigError: ffmpeg is missing or fails, or Pillow cannot write WebP.
    """
    check_film(film)
    scale = max(1, _FILM_SIDE // frames.shape[1])
    made: dict[str, bytes] = {}
    if film in ("auto", "gif"):
        made[".gif"] = animation(frames, 2 * seconds, scale)
    if film in ("auto", "webp") and features.check("webp"):
        webp = animation(frames, 2 * seconds, scale, "webp")
        if film == "webp" or len(webp) < len(made[".gif"]):
            made[".webp"] = webp
    elif film == "webp":
        raise ConfigError("animation is 'webp', which the installed Pillow cannot write: take gif")
    if film == "mp4" or (film == "auto" and shutil.which("ffmpeg") is not None):
        made[".mp4"] = _mp4(enlarged(_there_and_back(frames), scale), 2 * seconds)
    return made


def _there_and_back(frames: Pixels) -> Pixels:
    return np.concatenate((frames, frames[-2:0:-1]))


def enlarged(images: Pixels, scale: int) -> Iterator[Pixels]:
    """Yield images (n, height, width, C) with each pixel repeated `scale` times in both directions."""
    for frame in images:
        yield np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1)


def _mp4(frames: Iterable[Pixels], seconds: float) -> bytes:
    # yuv420p, because browsers play no other pixel format.
    pictures = [np.broadcast_to(frame, (*frame.shape[:2], 3)) for frame in frames]
    high, wide = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/film.mp4"  # an MP4 cannot be written into a pipe
        words = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{wide}x{high}",
                 "-framerate", f"{len(pictures) / seconds:.3f}", "-i", "-", "-pix_fmt", "yuv420p",
                 "-movflags", "+faststart", path]  # fmt: skip
        done = subprocess.run(
            words, input=b"".join(map(np.ndarray.tobytes, pictures)), capture_output=True, check=False
        )
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise ConfigError(f"animation is an MP4, which ffmpeg failed to make ({reason}): take gif")
        return Path(path).read_bytes()


__all__ = ["COLOURS", "LINES", "Canvas", "Film", "Panel", "animation", "check_film", "describe", "enlarged", "errors",
           "films", "line_of_shares", "line_with_intervals"]  # fmt: skip
