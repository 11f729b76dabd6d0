"""Which figures there are: each with its settings and what draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcgan_dist.exploration.arithmetic import ArithmeticConfig, draw_arithmetic
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.sheet import SheetConfig, draw_sheet
from dcgan_dist.exploration.turn import TurnConfig, draw_turn
from dcgan_dist.exploration.walk import WalkConfig, draw_walk


@dataclass(frozen=True)
class Figure:
    """A figure that can be asked for.

    Attributes:
        about: what it shows, a line for the list of figures.
        settings: class of its settings.
        draw: makes it of its settings and a run's networks.
    """

    about: str
    settings: type[FigureConfig]
    draw: Callable[[Any, Any], Drawn]


FIGURES: dict[str, Figure] = {
    "walk": Figure("samples along a path through the space of z (Fig. 4)", WalkConfig, draw_walk),
    "sheet": Figure("samples with their numbers, to pick exemplars from by eye", SheetConfig, draw_sheet),
    "arithmetic": Figure("sums and differences of the z of concepts (Fig. 7)", ArithmeticConfig, draw_arithmetic),
    "turn": Figure("samples turned by a vector in the space of z (Fig. 8)", TurnConfig, draw_turn),
}

__all__ = ["FIGURES", "Figure"]
