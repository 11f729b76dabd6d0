"""`sheet`: a run's samples with their numbers, to pick exemplars from by eye (Figs. 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained


@dataclass(frozen=True, kw_only=True)
class SheetConfig(FigureConfig):
    """Settings of `explore sheet`."""

    count: Annotated[int, Meta(ge=1, le=1000)] = 200
    """How many samples; further sheets begin at another `first`."""
    first: Annotated[int, Meta(ge=0, lt=2**40)] = 0
    """Number of the first."""
    columns: Annotated[int, Meta(ge=1, le=40)] = 10
    """Samples in a row."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only. Left out, the classes in turn."""


def draw_sheet(config: SheetConfig, run: Trained) -> Drawn:
    """Draw samples with their numbers and, where they differ, their classes.

    Raises:
        ConfigError: there is no such class.
        RunDirectoryError: the samples are not finite.
    """
    ids = range(config.first, config.first + config.count)
    y = run.y(config.count, config.label, config.first)
    classes = [run.samples.class_names[label] for label in y.argmax(dim=1)] if run.classes else []
    names = sorted(set(classes), key=classes.index)
    in_turn = len(names) > 1
    marks = [f"{number} ({name})" for number, name in zip(ids, classes, strict=True)] if in_turn else map(str, ids)
    title = f"Samples {ids[0]} to {ids[-1]}"
    kind = " and class" if in_turn else f"; all are of class {names[0]}" if names else ""
    canvas = Canvas(title, run.subtitle)
    caption = f"with the numbers by which exemplars are picked for the figures arithmetic and turn{kind}"
    columns = min(config.columns, config.count)
    canvas.images(Panel(caption, run.generate(run.z(ids), y), columns, list(marks)))
    return Drawn(
        title=title,
        finding=f"Samples {ids[0]} to {ids[-1]} of seed {config.seed}, to pick exemplars from for arithmetic and turn.",
        canvas=canvas,
        numbers={"ids": list(ids), "classes": classes or None},
    )


__all__ = ["SheetConfig", "draw_sheet"]
