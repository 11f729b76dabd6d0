"""`walk` (Fig. 4): the samples along a path through the space of z."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dcgan_dist.errors import ConfigError
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained


@dataclass(frozen=True, kw_only=True)
class WalkConfig(FigureConfig):
    """Settings of `explore walk`."""

    points: int = 9
    """Random z that the path goes through (9 in the paper)."""
    between: int = 8
    """Steps from one of them to the next."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            raise ConfigError(f"points is {self.points}: take 2 or more")
        if self.between < 1:
            raise ConfigError(f"between is {self.between}: take 1 or more")


def interpolate(start: Tensor, end: Tensor, parts: Tensor, distribution: Literal["uniform", "normal"]) -> Tensor:
    """Return the z at `parts` (n,) of the way from one z to another, (n, z_dim).

    In the cube of uniform z the way is straight; for normal z it follows the sphere that nearly all of it lies on.
    """
    t = parts[:, None]
    if distribution == "uniform":
        return torch.lerp(start, end, t)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle.sin() < 1e-6:
        return torch.lerp(start, end, t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / angle.sin()


def draw_walk(config: WalkConfig, run: Trained) -> Drawn:
    """Draw the walk."""
    points = run.draw_z("walk", config.points)
    parts = torch.arange(config.between) / config.between
    path = torch.cat(
        [
            *(interpolate(a, b, parts, run.model.z_distribution) for a, b in pairwise(points)),
            points[-1:],
        ]
    )
    images = run.generate(path, run.y(len(path), config.label or ("0" if run.classes else None)))
    canvas = Canvas("A walk through the space of z", run.subtitle)
    canvas.images(Panel("from left to right, row by row", images, config.between))
    return Drawn(title="A walk through the space of z", finding="", canvas=canvas, numbers={})


__all__ = ["WalkConfig", "draw_walk", "interpolate"]
