"""`walk` (Fig. 4): the samples along a path through the space of z, and whether they change smoothly.

A generator that has memorised images goes from one to the next with sharp transitions; one that has learned a
representation changes them gradually (section 6.1). The distance of successive images on the path is measured in the
fixed feature space `random-conv-v1`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from dcgan_dist.data.images import Pixels
from dcgan_dist.evaluation.diversity import Floats
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import Array, fitted
from dcgan_dist.evaluation.tasks import Z95
from dcgan_dist.exploration.drawing import COLOURS, Canvas, Film, Panel, check_film, describe, films
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.settings import require

PAIRS = 64
"""Random pairs of samples; the steps of the path are compared with their distances."""
PARTS = 16
"""Finer steps into which the largest step is cut."""

_LARGEST = 0.05  # `largest_steps` is the share of the path that this share of the steps takes
_SECONDS = 2.0  # duration of the animation from one random z to the next


@dataclass(frozen=True, kw_only=True)
class WalkConfig(FigureConfig):
    """Settings of `explore walk`."""

    points: Annotated[int, Meta(ge=2, le=100)] = 9
    """Random z that the path goes through (9 in the paper)."""
    between: Annotated[int, Meta(ge=0, le=40)] = 8
    """Images between one of them and the next, in the picture."""
    frames: Annotated[int, Meta(ge=1, le=200)] = 27
    """Steps from one of them to the next in the animation, and where smoothness is measured."""
    label: str | None = None
    """Number or name of the class of all samples; conditional runs only. Left out, each row has the next class."""
    animation: Film = "auto"
    """What the path is also shown in: `gif`, `webp`, `mp4` (needs ffmpeg), `none`, or `auto`: a GIF, a WebP where it is
    smaller, and an MP4 where there is ffmpeg."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.frames > self.between, "frames", f"between is {self.between}, take more frames than that")
        check_film(self.animation)


def interpolate(start: Tensor, end: Tensor, parts: Tensor, distribution: Literal["uniform", "normal"]) -> Tensor:
    """Return the z at the fractions `parts` (n,) of the way from one z to another, (n, z_dim); exact at 0 and 1.

    The path is a straight line for uniform z, which fill a cube, and an arc for normal z, which lie close to a sphere.
    """
    t = parts[:, None]
    angle = torch.arccos(torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-1, 1))
    if distribution == "uniform" or angle.sin() < 1e-6:
        return torch.lerp(start, end, t)
    return torch.sin((1 - t) * angle) / angle.sin() * start + torch.sin(t * angle) / angle.sin() * end


@dataclass(frozen=True)
class Smoothness:
    """How evenly images change along a path.

    Attributes:
        mean_step: mean distance from an image to the next, divided by the mean distance of two random samples.
        ci95: interval of `mean_step` for the randomness of the pairs of samples; the path is taken as fixed.
        jump: the largest step, divided by the mean step.
        largest_steps: share of the length of the whole path that the largest 5% of the steps take.
        cut_step: after the largest step is cut into `PARTS` equal steps of z, the share of their sum that the largest
            of them takes: 1 / `PARTS` at best; 1 if the image changes at once, however small the step of z is.
        jumps: whether most of the largest step happens at once, as in a generator that has memorised images.
        n: number of steps.
    """

    mean_step: float
    ci95: tuple[float, float]
    jump: float
    largest_steps: float
    cut_step: float
    jumps: bool
    n: int


def measure_smoothness(
    steps: Floats, random_pairs: Floats, path: Callable[[int, Floats], Array]
) -> tuple[Smoothness, Floats]:
    """Measure how evenly images change.

    Args:
        steps: distance of each image of the path to the next, (stretches, steps).
        random_pairs: distances of random pairs of samples, (n,).
        path: function of the index of a stretch and positions in [0, 1] on it, (n,), that returns features, (n, d).

    Returns:
        The measures, and the distances of the finer steps into which the largest one was cut, (PARTS,).
    """
    lengths = steps.ravel()
    stretch, number = np.unravel_index(lengths.argmax(), steps.shape)
    parts = (number + np.linspace(0, 1, PARTS + 1)) / steps.shape[1]
    cut = distances(path(int(stretch), parts))
    mean, typical = float(lengths.mean()), float(random_pairs.mean())
    error = Z95 * float(random_pairs.std(ddof=1)) / np.sqrt(len(random_pairs))
    largest = np.sort(lengths)[-max(1, round(_LARGEST * len(lengths))) :]
    cut_step = _share(float(cut.max()), float(cut.sum()))
    measured = Smoothness(
        mean_step=_share(mean, typical),
        ci95=(_share(mean, typical + error), _share(mean, max(typical - error, 0.0))),
        jump=_share(float(lengths.max()), mean),
        largest_steps=_share(float(largest.sum()), float(lengths.sum())),
        cut_step=cut_step,
        jumps=cut_step > 0.5,
        n=len(lengths),
    )
    return measured, cut


def distances(features: Array) -> Floats:
    """Return the Euclidean distances of successive rows of (n, d), (n - 1,)."""
    return np.asarray(np.linalg.norm(np.diff(features.astype(np.float64), axis=0), axis=1))


def _share(part: float, whole: float) -> float:
    """Return a share; NaN if the whole is 0, as for a generator whose images are all the same."""
    return part / whole if whole > 0 else float("nan")


@dataclass(frozen=True)
class Path:
    """A path through random z, in stretches from one to the next, and the samples on it.

    Attributes:
        run: the run.
        points: the random z, (points, z_dim).
        label: class of all samples; if None, each stretch of a conditional run has the next class.
    """

    run: Trained
    points: Tensor
    label: str | None = None

    @property
    def stretches(self) -> int:
        """Number of stretches."""
        return len(self.points) - 1

    def images(self, stretch: int, parts: Floats) -> Pixels:
        """Return the samples at positions in [0, 1] on a stretch, uint8 (n, S, S, C)."""
        positions = torch.from_numpy(parts).float()
        start, end = self.points[stretch], self.points[stretch + 1]
        z = interpolate(start, end, positions, self.run.model.z_distribution)
        y = self.run.y(1, self.label, first=stretch)
        return self.run.generate(z, y.expand(len(z), -1))


@dataclass(frozen=True, kw_only=True)
class Walk(Smoothness, Measured):
    """How evenly the images of a path change.

    Attributes:
        feature_space: name of the features whose distances are measured.
        interpolation: how z goes from one random z to the next, `linear` or `spherical`.
        label: class of all samples, if one was asked for.
        steps: distance of each image of the path to the next, (stretches, steps).
        cut: distances of the finer steps into which the largest one was cut, (PARTS,).
        random_pairs: distances of random pairs of samples, (PAIRS,).
        rows: images of each stretch for the picture, uint8 (stretches, images, S, S, C).
        frames: images of each stretch for the animation, uint8 (stretches, steps + 1, S, S, C).
        has_classes: whether each stretch has another class.
        animation: format of the animation.
    """

    feature_space: str
    interpolation: str
    label: str | None
    steps: Floats
    cut: Floats
    random_pairs: Floats
    rows: Pixels = field(metadata=SHOWN)
    frames: Pixels = field(metadata=SHOWN)
    has_classes: bool = field(metadata=SHOWN)
    animation: Film = field(metadata=SHOWN)


def measure(config: WalkConfig, run: Trained) -> Walk:
    """Measure the steps of a path through random z.

    Raises:
        ConfigError: there is no such class.
        RunDirectoryError: the samples are not finite.
    """
    path = Path(run, run.draw_z("walk", config.points), config.label)
    rows, frames = (
        np.stack([path.images(number, np.linspace(0, 1, steps + 1)) for number in range(path.stretches)])
        for steps in (config.between + 1, config.frames)
    )
    extractor = RandomConv(str(run.device))

    def features(images: Pixels) -> Array:
        return extractor(fitted(images, extractor.image_size, extractor.channels))

    # Both samples of a pair have the same class, like two samples of a stretch.
    labels = run.y(PAIRS, config.label).repeat_interleave(2, dim=0)
    random_pairs = distances(features(run.generate(run.draw_z("walk/pairs", 2 * PAIRS), labels)))[::2]
    steps = np.stack([distances(features(stretch)) for stretch in frames])
    smoothness, cut = measure_smoothness(
        steps, random_pairs, lambda stretch, parts: features(path.images(stretch, parts))
    )
    return Walk(
        **vars(smoothness),
        subtitle=run.subtitle,
        feature_space=extractor.key,
        interpolation="linear" if run.model.z_distribution == "uniform" else "spherical",
        label=config.label,
        steps=steps,
        cut=cut,
        random_pairs=random_pairs,
        rows=rows,
        frames=frames,
        has_classes=bool(run.classes),
        animation=config.animation,
    )


def draw(walk: Walk) -> Canvas:
    """Draw the samples along the path, and the size of each step; the animation is a further file.

    Raises:
        ConfigError: the animation cannot be made.
    """
    canvas = Canvas("A walk through the space of z", walk.subtitle)
    caption = "Each row goes from one random z (first image) to the next (last image), which the row below starts from"
    of_classes = ", the class is another in each row" if walk.has_classes and walk.label is None else ""
    canvas.images(Panel(caption + of_classes, np.concatenate(walk.rows), walk.rows.shape[1]))
    (axes,) = canvas.plots(1, 1.5)
    count, each = walk.steps.shape
    typical = float(walk.random_pairs.mean())
    axes.stairs(walk.steps.ravel(), np.arange(count * each + 1) / each, fill=True, color=COLOURS[0],
                label="from an image to the next")  # fmt: skip
    axes.axhline(typical, color=COLOURS[1], linestyle="--", linewidth=1,
                 label=f"mean of {len(walk.random_pairs)} random pairs of samples")  # fmt: skip
    describe(
        axes,
        f"How far the image moves, in {each} steps a row",
        xlabel="position on the path, in rows",
        ylabel="distance of features",
        xticks=range(count + 1),
        xlim=(0, count),
        ylim=(0, 1.35 * max(float(walk.steps.max()), typical) or 1.0),
        legend={"fontsize": 6.5, "loc": "upper left", "ncols": 2},
    )
    # A stretch begins where the one before ends: show that frame once, unless the class changes there.
    film = [*(stretch[: None if walk.has_classes else -1] for stretch in walk.frames[:-1]), walk.frames[-1]]
    canvas.files |= films(np.concatenate(film), _SECONDS * count, walk.animation)
    return canvas


def finding(walk: Smoothness) -> str:
    """Return whether the images change smoothly."""
    if not np.isfinite(walk.jump):
        return "All images of the path are the same: the generator has collapsed."
    kind = (
        "The image jumps: it has sharp transitions, as of memorised images"
        if walk.jumps
        else "The image changes smoothly"
    )
    return (
        f"{kind}: the largest of {walk.n} steps is {walk.jump:.1f} times the mean step, the largest 5% take "
        f"{walk.largest_steps:.0%} of the way, a step is {walk.mean_step:.0%} of the distance of two random "
        f"samples, and of the largest step, cut into {PARTS}, one part takes {walk.cut_step:.0%} (evenly: "
        f"{1 / PARTS:.0%}, at once: 100%)."
    )


__all__ = ["PARTS", "Path", "Smoothness", "Walk", "WalkConfig", "distances", "draw", "finding", "interpolate",
           "measure", "measure_smoothness"]  # fmt: skip
