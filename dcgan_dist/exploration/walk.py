"""`walk` (Fig. 4): the samples along a path through the space of z, and whether they change smoothly.

A generator that has memorised images goes from one to the next with sharp transitions; one that has learned what
varies in them changes them bit by bit (section 6.1). How far an image is from the next one of the path is measured in
the fixed feature space `random-conv-v1`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from msgspec import Meta
from torch import Tensor

from dcgan_dist.data.images import Pixels
from dcgan_dist.evaluation.diversity import Floats
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import Array, fitted
from dcgan_dist.evaluation.tasks import Z95
from dcgan_dist.exploration.drawing import COLOURS, Canvas, Panel, check_film, films
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.settings import require

PAIRS = 64
"""Random pairs of samples that the steps of the path are compared with."""
PARTS = 16
"""Finer steps that the largest step is cut into."""

_LARGEST = 0.05  # share of the steps, the largest, whose share of the path is told
_SECONDS = 2.0  # of the animation from one random z to the next


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
    animation: Literal["auto", "gif", "webp", "mp4", "none"] = "auto"
    """What the path is also shown in: `gif`, `webp`, `mp4` (needs ffmpeg), `none`, or `auto`: a GIF, a WebP where it is
    smaller, and an MP4 where there is ffmpeg."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.frames > self.between, "frames", f"between is {self.between}, take more frames than that")
        check_film(self.animation)


def interpolate(start: Tensor, end: Tensor, parts: Tensor, distribution: Literal["uniform", "normal"]) -> Tensor:
    """Return the z at `parts` (n,) of the way from one z to another, (n, z_dim); at 0 and 1 exactly these.

    In the cube of uniform z the way is straight; for normal z it follows the sphere that nearly all of it lies on.
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
        mean_step: mean distance of an image to the next, over the mean distance of two random samples.
        ci95: of `mean_step`, for the randomness of the pairs of samples; the path is taken as it is.
        jump: the largest step over the mean step.
        largest_steps: share of the length of the whole path that its largest 5% of steps take.
        cut_step: when the largest step is cut into `PARTS` equal steps of z, the share of their sum that the largest of
            them takes: 1 / `PARTS` at best; 1 where the image changes at once, however small the step of z is.
        n: steps.
    """

    mean_step: float
    ci95: tuple[float, float]
    jump: float
    largest_steps: float
    cut_step: float
    n: int

    @property
    def jumps(self) -> bool:
        """Whether the largest step is made at once, as by a generator that has memorised images."""
        return self.cut_step > 0.5


def measure_smoothness(
    steps: Floats, random_pairs: Floats, path: Callable[[int, Floats], Array]
) -> tuple[Smoothness, Floats]:
    """Measure how evenly images change.

    Args:
        steps: distance of each image of the path to the next, (stretches, steps).
        random_pairs: distances of random pairs of samples, (n,).
        path: gives for the number of a stretch and places in [0, 1] on it, (n,), the features there, (n, d).

    Returns:
        The measures, and the distances of the steps that the largest one was cut into, (PARTS,).
    """
    lengths = steps.ravel()
    stretch, number = np.unravel_index(lengths.argmax(), steps.shape)
    parts = (number + np.linspace(0, 1, PARTS + 1)) / steps.shape[1]
    cut = distances(path(int(stretch), parts))
    mean, typical = float(lengths.mean()), float(random_pairs.mean())
    error = Z95 * float(random_pairs.std(ddof=1)) / np.sqrt(len(random_pairs))
    largest = np.sort(lengths)[-max(1, round(_LARGEST * len(lengths))) :]
    measured = Smoothness(
        mean_step=_share(mean, typical),
        ci95=(_share(mean, typical + error), _share(mean, max(typical - error, 0.0))),
        jump=_share(float(lengths.max()), mean),
        largest_steps=_share(float(largest.sum()), float(lengths.sum())),
        cut_step=_share(float(cut.max()), float(cut.sum())),
        n=len(lengths),
    )
    return measured, cut


def distances(features: Array) -> Floats:
    """Return the Euclidean distance of each row (n, d) to the next, (n - 1,)."""
    steps: Floats = np.linalg.norm(np.diff(features.astype(np.float64), axis=0), axis=1)
    return steps


def _share(part: float, whole: float) -> float:
    """Return a share, NaN of nothing: of a generator whose images are all the same."""
    return part / whole if whole > 0 else float("nan")


@dataclass(frozen=True)
class Path:
    """The way through random z, stretch by stretch, and the samples on it.

    Attributes:
        run: whose samples they are.
        points: the random z, (points, z_dim).
        label: of all samples; left out, each stretch of a conditional run has the next class.
    """

    run: Trained
    points: Tensor
    label: str | None = None

    @property
    def stretches(self) -> int:
        """How many ways from one random z to the next there are."""
        return len(self.points) - 1

    def images(self, stretch: int, parts: Floats) -> Pixels:
        """Return the samples at places in [0, 1] on a stretch, uint8 (n, S, S, C)."""
        places = torch.from_numpy(parts).float()
        start, end = self.points[stretch], self.points[stretch + 1]
        z = interpolate(start, end, places, self.run.model.z_distribution)
        y = self.run.y(1, self.label, first=stretch)
        return self.run.generate(z, y.expand(len(z), -1))


def draw_walk(config: WalkConfig, run: Trained) -> Drawn:
    """Draw samples along a path, and the size of each of its steps.

    Raises:
        ConfigError: no such class.
        RunDirectoryError: the samples are not finite.
    """
    path = Path(run, run.draw_z("walk", config.points), config.label)
    rows = [path.images(number, np.linspace(0, 1, config.between + 2)) for number in range(path.stretches)]
    frames = [path.images(number, np.linspace(0, 1, config.frames + 1)) for number in range(path.stretches)]

    extractor = RandomConv(str(run.device))

    def features(images: Pixels) -> Array:
        return extractor(fitted(images, extractor.image_size, extractor.channels))

    pairs = run.generate(run.draw_z("walk/pairs", 2 * PAIRS), _labels_of_pairs(run, config.label))
    steps = np.stack([distances(features(stretch)) for stretch in frames])
    random_pairs = distances(features(pairs))[::2]
    measured, cut = measure_smoothness(
        steps, random_pairs, lambda stretch, parts: features(path.images(stretch, parts))
    )
    title = "A walk through the space of z"
    canvas = Canvas(title, run.subtitle)
    of_classes = ", the class is another in each row" if run.classes and config.label is None else ""
    canvas.images(
        Panel(
            "Each row goes from one random z (first image) to the next (last image), which the row below starts from"
            + of_classes,
            np.concatenate(rows),
            config.between + 2,
        )
    )
    (axes,) = canvas.plots(1, 1.5)
    _plot(axes, steps, random_pairs)
    film = np.concatenate([*(stretch[: None if run.classes else -1] for stretch in frames[:-1]), frames[-1]])
    return Drawn(
        title=title,
        finding=_finding(measured),
        canvas=canvas,
        numbers={
            **asdict(measured),
            "ci95": list(measured.ci95),
            "jumps": measured.jumps,
            "feature_space": extractor.key,
            "interpolation": "linear" if run.model.z_distribution == "uniform" else "spherical",
            "label": config.label,
            "steps": steps.tolist(),
            "cut": cut.tolist(),
            "random_pairs": random_pairs.tolist(),
        },
        files=films(film, _SECONDS * path.stretches, config.animation),
    )


def _labels_of_pairs(run: Trained, label: str | None) -> Tensor:
    """Return the labels of random pairs, the same for both images of a pair as for two images of the path."""
    return run.y(PAIRS, label).repeat_interleave(2, dim=0)


def _plot(axes: Axes, steps: Floats, random_pairs: Floats) -> None:
    count, each = steps.shape
    edges = np.arange(count * each + 1) / each
    axes.stairs(steps.ravel(), edges, fill=True, color=COLOURS[0], label="from an image to the next")
    axes.axhline(float(random_pairs.mean()), color=COLOURS[1], linestyle="--", linewidth=1,
                 label=f"mean of {len(random_pairs)} random pairs of samples")  # fmt: skip
    axes.set_title(f"How far the image moves, in {each} steps a row", fontsize=8)
    axes.set_xlabel("place on the path, rows")
    axes.set_ylabel("distance of features")
    axes.set_xticks(range(count + 1))
    axes.set_xlim(0, count)
    axes.set_ylim(0, 1.35 * max(float(steps.max()), float(random_pairs.mean())) or 1.0)
    axes.legend(fontsize=6.5, frameon=False, loc="upper left", ncols=2)


def _finding(measured: Smoothness) -> str:
    if not np.isfinite(measured.jump):
        return "All images of the path are the same: the generator has collapsed."
    kind = (
        "The image jumps: it has sharp transitions, as of memorised images"
        if measured.jumps
        else "The image changes smoothly"
    )
    return (
        f"{kind}: the largest of {measured.n} steps is {measured.jump:.1f} times the mean step, the largest 5% take "
        f"{measured.largest_steps:.0%} of the way, a step is {measured.mean_step:.0%} of the distance of two random "
        f"samples, and of the largest step, cut into {PARTS}, one part takes {measured.cut_step:.0%} (evenly: "
        f"{1 / PARTS:.0%}, at once: 100%)."
    )


__all__ = ["PARTS", "Path", "Smoothness", "WalkConfig", "distances", "draw_walk", "interpolate", "measure_smoothness"]
