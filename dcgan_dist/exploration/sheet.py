"""`sheet`: a run's samples with their numbers, to pick exemplars from by eye (Figs. 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from dcgan_dist.data.images import Pixels
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured
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


@dataclass(frozen=True, kw_only=True)
class Sheet(Measured):
    """Samples with their numbers.

    Attributes:
        ids: numbers of n samples.
        classes: names of their classes; None for an unconditional run.
        images: the samples, uint8 (n, S, S, C).
        config: the settings.
    """

    ids: range
    classes: list[str] | None
    images: Pixels = field(metadata=SHOWN)
    config: SheetConfig = field(metadata=SHOWN)


def measure(config: SheetConfig, run: Trained) -> Sheet:
    """Return the samples that the settings ask for.

    Raises:
        ConfigError: there is no such class.
        RunDirectoryError: the samples are not finite.
    """
    ids = range(config.first, config.first + config.count)
    y = run.y(config.count, config.label, config.first)
    return Sheet(
        subtitle=run.subtitle,
        ids=ids,
        classes=[run.samples.class_names[label] for label in y.argmax(dim=1)] if run.classes else None,
        images=run.generate(run.z(ids), y),
        config=config,
    )


def draw(sheet: Sheet) -> Canvas:
    """Draw samples with their numbers and, where they differ, their classes."""
    names = list(dict.fromkeys(sheet.classes or ()))
    marks, kind = [str(number) for number in sheet.ids], f"; all are of class {names[0]}" if names else ""
    if len(names) > 1:
        marks, kind = [f"{mark} ({name})" for mark, name in zip(marks, sheet.classes or (), strict=True)], " and class"
    canvas = Canvas(f"Samples {sheet.ids[0]} to {sheet.ids[-1]}", sheet.subtitle)
    caption = f"with the numbers by which exemplars are picked for the figures arithmetic and turn{kind}"
    canvas.images(Panel(caption, sheet.images, min(sheet.config.columns, len(marks)), marks))
    return canvas


def finding(sheet: Sheet) -> str:
    """Return what the samples are for."""
    first, last = sheet.ids[0], sheet.ids[-1]
    return f"Samples {first} to {last} of seed {sheet.config.seed}, to pick exemplars from for arithmetic and turn."


__all__ = ["Sheet", "SheetConfig", "draw", "finding", "measure"]
