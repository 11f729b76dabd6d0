"""What every figure has: settings, and a picture and the numbers behind it under `RUN/figures/`."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch

from dcgan_dist.config import Seed, Step, Weights
from dcgan_dist.exploration.drawing import Canvas
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.settings import Group, like, require
from dcgan_dist.storage.files import to_json
from dcgan_dist.storage.folder import folder_at

FOLDER = "figures"


_FILES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".html", ".json", ".mp4", ".txt")


@dataclass(frozen=True, kw_only=True)
class FigureConfig(Group):
    """Settings that every figure has."""

    run: str | None = None
    """Folder or URL of the run directory."""
    step: Step = "latest"
    """Which checkpoint to look into: `latest`, or a step."""
    weights: Weights = "auto"
    """Weights of the generator: their `average` over training, or `raw`; `auto` takes the average where the run has one
    (`training.average`)."""
    seed: Seed = 0
    """Of everything that is drawn; the ids of samples are those of `sample --seed` and of `explore sheet --seed`."""
    output: str | None = None
    """Folder or URL to write to. Left out, `figures` in the run directory, where the report finds them."""
    name: Annotated[str, like(r"[^./\\\x00][^/\\\x00]*", "a file name that does not start with a dot")] | None = None
    """Name of the files. Left out, that of the figure, so that a second one replaces the first."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes the GPU when there is one."""
    cache: str | None = None
    """Folder of what can be made again. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_folder = self.output is None or not self.output.lower().endswith(_FILES)
        require(self, is_folder, "output", "name a folder, and the files in it by --name")


@dataclass(frozen=True, kw_only=True)
class AllConfig(FigureConfig):
    """Settings of `explore all`: those that the figures share."""

    data: str | None = None
    """Images to look at. Left out, those that the run was trained on."""
    test_data: str | None = None
    """Images like those that the run was trained on which were not among them, for `neighbours`."""
    boxes: str | None = None
    """Boxes for `windows`, where the run is not of rooms."""
    label: str | None = None
    """Number or name of a class, for the figures that show one; conditional runs only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.name is None, "name", "of all figures each has its own, leave it out")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure, still in memory.

    Attributes:
        title: what it shows.
        finding: one sentence with the most telling numbers, for the terminal and the report page.
        canvas: the picture.
        numbers: what is behind it, for the JSON; NaN becomes null.
        files: what else belongs to it, by what follows its name: ``{".gif": ..., "-boxes.html": ...}``.
    """

    title: str
    finding: str
    canvas: Canvas
    numbers: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


def folder_of(config: FigureConfig, location: str) -> str:
    """Return the folder or URL that the figures of a run are written to."""
    return config.output or f"{location.rstrip('/')}/{FOLDER}"


def write_figure(drawn: Drawn, figure: str, config: FigureConfig, run: Trained, begun: float) -> list[str]:
    """Write a figure's PNG, JSON and other files, each whole or not at all, the JSON last.

    Args:
        drawn: the figure.
        figure: its name.
        config: its settings.
        run: the networks that it is of.
        begun: when its making began, as `time.perf_counter` gives it.

    Returns:
        Where they are.

    Raises:
        StorageError: they cannot be written.
    """
    name = config.name or figure
    pictures = {f"{name}.png": drawn.canvas.png()}
    others = {f"{name}{suffix}": content for suffix, content in drawn.files.items()}
    settings = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if key not in ("run", "output", "cache", "device", "name")
    }
    about = {
        "figure": figure,
        "title": drawn.title,
        "finding": drawn.finding,
        "files": [*pictures, *others],
        "step": run.step,
        "checkpoint_digest": run.digest,
        "weights": run.samples.weights,
        "images_seen": run.images_seen,
        "settings": settings,
        "numbers": drawn.numbers,
        "device": str(run.device) if run.device.type == "cpu" else torch.cuda.get_device_name(run.device),
        "seconds": round(time.perf_counter() - begun, 2),
    }
    contents = pictures | others | {f"{name}.json": to_json(about).encode() + b"\n"}
    folder = folder_at(folder_of(config, run.location))
    for file, content in contents.items():
        folder.write(file, content)
    return [folder.at(file) for file in contents]


__all__ = ["FOLDER", "AllConfig", "Drawn", "FigureConfig", "folder_of", "write_figure"]
