"""The list of figures, in the order of the paper: the settings of each, and the functions that are its three parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcgan_dist.exploration import arithmetic, boxes, evolution, filters, neighbours, sheet, turn, walk, windows
from dcgan_dist.exploration.drawing import Canvas
from dcgan_dist.exploration.figure import FigureConfig


@dataclass(frozen=True)
class Figure:
    """A figure that `explore` can draw.

    Attributes:
        about: what it shows, one line for the list of figures.
        settings: class of its settings.
        measure: function of its settings and a run's networks that returns a `Measured`.
        draw: function of what was measured that returns the picture.
        finding: function of what was measured that returns one sentence with the most important numbers.
        is_tool: whether it only prepares another figure; `explore all` leaves it out.
    """

    about: str
    settings: type[FigureConfig]
    measure: Callable[[Any, Any], Any]
    draw: Callable[[Any], Canvas]
    finding: Callable[[Any], str]
    is_tool: bool = False


FIGURES: dict[str, Figure] = {
    "walk": Figure(
        "samples along a path through the space of z (Fig. 4)", walk.WalkConfig, walk.measure, walk.draw, walk.finding
    ),
    "filters": Figure(
        "what features of D respond to, by guided backpropagation (Fig. 5)",
        filters.FiltersConfig,
        filters.measure,
        filters.draw,
        filters.finding,
    ),
    "windows": Figure(
        "a generator that forgets windows, or another thing (Fig. 6)",
        windows.WindowsConfig,
        windows.measure,
        windows.draw,
        windows.finding,
    ),
    "arithmetic": Figure(
        "sums and differences of the z of concepts (Fig. 7)",
        arithmetic.ArithmeticConfig,
        arithmetic.measure,
        arithmetic.draw,
        arithmetic.finding,
    ),
    "turn": Figure(
        "samples turned by a vector in the space of z (Fig. 8)", turn.TurnConfig, turn.measure, turn.draw, turn.finding
    ),
    "neighbours": Figure(
        "samples next to their nearest training images",
        neighbours.NeighboursConfig,
        neighbours.measure,
        neighbours.draw,
        neighbours.finding,
    ),
    "evolution": Figure(
        "samples of the same z and filters of G over training",
        evolution.EvolutionConfig,
        evolution.measure,
        evolution.draw,
        evolution.finding,
    ),
    "sheet": Figure(
        "samples with their numbers, to pick exemplars from by eye",
        sheet.SheetConfig,
        sheet.measure,
        sheet.draw,
        sheet.finding,
    ),
    "boxes": Figure(
        "a page to draw boxes over samples by hand, for the figure windows",
        boxes.BoxesConfig,
        boxes.measure,
        boxes.draw,
        boxes.finding,
        True,
    ),
}

__all__ = ["FIGURES", "Figure"]
