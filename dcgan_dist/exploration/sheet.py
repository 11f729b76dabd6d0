"""`sheet`: a run's samples with their numbers, to pick exemplars from by eye (Figs. 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass

from dcgan_dist.errors import ConfigError
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained

_MOST = 1000


@dataclass(frozen=True, kw_only=True)
class SheetConfig(FigureConfig):
    """Settings of `explore sheet`."""

    count: int = 200
    """How many samples."""
    first: int = 0
    """Number of the first."""
    columns: int = 10
    """Samples in a row."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only. Left out, the classes in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= _MOST:
            raise ConfigError(f"count is {self.count}: take 1 to {_MOST:,}, and further sheets with --first")
        if not 0 <= self.first < 2**40:
            raise ConfigError(f"first is {self.first}: take 0 or more, below 2**40")
        if not 1 <= self.columns <= 40:
            raise ConfigError(f"columns is {self.columns}: take 1 to 40")


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
