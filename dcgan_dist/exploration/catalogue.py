"""The list of figures, in the order of the paper: the settings of each, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcgan_dist.exploration.arithmetic import ArithmeticConfig, draw_arithmetic
from dcgan_dist.exploration.boxes import BoxesConfig, draw_boxes
from dcgan_dist.exploration.evolution import EvolutionConfig, draw_evolution
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.filters import FiltersConfig, draw_filters
from dcgan_dist.exploration.neighbours import NeighboursConfig, draw_neighbours
from dcgan_dist.exploration.sheet import SheetConfig, draw_sheet
from dcgan_dist.exploration.turn import TurnConfig, draw_turn
from dcgan_dist.exploration.walk import WalkConfig, draw_walk
from dcgan_dist.exploration.windows import WindowsConfig, draw_windows


@dataclass(frozen=True)
class Figure:
    """A figure that `explore` can draw.

    Attributes:
        about: what it shows, one line for the list of figures.
        settings: class of its settings.
        draw: function that draws it, given its settings and a run's networks.
        is_tool: whether it only prepares another figure; `explore all` leaves it out.
    """

    about: str
    settings: type[FigureConfig]
    draw: Callable[[Any, Any], Drawn]
    is_tool: bool = False


FIGURES: dict[str, Figure] = {
    "walk": Figure("samples along a path through the space of z (Fig. 4)", WalkConfig, draw_walk),
    "filters": Figure("what features of D respond to, by guided backpropagation (Fig. 5)", FiltersConfig, draw_filters),
    "windows": Figure("a generator that forgets windows, or another thing (Fig. 6)", WindowsConfig, draw_windows),
    "arithmetic": Figure("sums and differences of the z of concepts (Fig. 7)", ArithmeticConfig, draw_arithmetic),
    "turn": Figure("samples turned by a vector in the space of z (Fig. 8)", TurnConfig, draw_turn),
    "neighbours": Figure("samples next to their nearest training images", NeighboursConfig, draw_neighbours),
    "evolution": Figure("samples of the same z and filters of G over training", EvolutionConfig, draw_evolution),
    "sheet": Figure("samples with their numbers, to pick exemplars from by eye", SheetConfig, draw_sheet),
    "boxes": Figure("a page to draw boxes over samples by hand, for the figure windows", BoxesConfig, draw_boxes, True),
}

__all__ = ["FIGURES", "Figure"]
