"""What all figures share: their common settings, the base of what they measure, and how they are written.

A figure has three parts: `measure` returns a dataclass; from that `draw` makes the picture, `finding` the sentence, and
`Measured.numbers` the JSON.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch

from dcgan_dist.config import Seed, Step, Weights
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.exploration.drawing import Canvas
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.settings import Group, like, require
from dcgan_dist.storage.files import to_json
from dcgan_dist.storage.folder import folder_at

FOLDER = "figures"
SHOWN = {"shown": True}
"""Metadata of fields that only the picture or the finding needs; the JSON does not hold them."""
IF_KNOWN = {"if_known": True}
"""Metadata of fields that the JSON does not hold where they are None."""

Batch = TypeVar("Batch")

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
class Measured:
    """What a figure measures, and the images that it shows.

    Attributes:
        subtitle: a line that names the run, the step, the weights and the seed.
    """

    subtitle: str = field(metadata=SHOWN)

    @property
    def numbers(self) -> dict[str, Any]:
        """What the JSON holds: the fields as mappings and lists, without those that are only `SHOWN`."""
        return dict(plain(self))


def plain(value: Any) -> Any:
    """Return a value as mappings, lists, numbers and texts; dataclasses become mappings of their fields."""
    if dataclasses.is_dataclass(value):
        pairs = ((entry, getattr(value, entry.name)) for entry in dataclasses.fields(value))
        kept = ((entry, part) for entry, part in pairs if "shown" not in entry.metadata)
        return {entry.name: plain(part) for entry, part in kept if part is not None or "if_known" not in entry.metadata}
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple | range) else value


@contextmanager
def counted(
    batches: Iterable[Batch],
    total: int,
    what: str,
    size: Callable[[Batch], int] = len,  # type: ignore[assignment]
) -> Iterator[Iterator[Batch]]:
    """Give an iterator of batches, and show the progress of what is done with them until the context is closed.

    Args:
        batches: of images or other things.
        total: number of images in all batches.
        what: text of the progress line.
        size: function that returns the number of images of a batch.
    """
    with closing(ProgressLine(what)) as line:

        def each() -> Iterator[Batch]:
            done = 0
            for batch in batches:
                yield batch
                done += size(batch)
                line(done, done / total, 0)

        yield each()


def folder_of(config: FigureConfig, location: str) -> str:
    """Return the folder or URL that the figures of a run are written to."""
    return config.output or f"{location.rstrip('/')}/{FOLDER}"


def write_figure(
    figure: str,
    measured: Measured,
    canvas: Canvas,
    finding: str,
    config: FigureConfig,
    run: Trained,
    begun: float,
) -> list[str]:
    """Write a figure's PNG, JSON and other files, each atomically.

    The JSON is written last: whoever finds it, finds the files that it lists.

    Args:
        figure: name of the figure.
        measured: what it measured.
        canvas: the picture.
        finding: one sentence with the most important numbers, for the terminal and the report page.
        config: its settings.
        run: the networks that it shows.
        begun: `time.perf_counter` at the start, from which `seconds` is counted.

    Returns:
        The paths or URLs of the files.

    Raises:
        StorageError: a file cannot be written.
    """
    name = config.name or figure
    pictures = {f"{name}.png": canvas.png()}
    others = {f"{name}{suffix}": content for suffix, content in canvas.files.items()}
    settings = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if key not in ("run", "output", "cache", "device", "name")
    }
    about = {
        "figure": figure,
        "title": canvas.title,
        "finding": finding,
        "files": [*pictures, *others],
        "step": run.step,
        "checkpoint_digest": run.digest,
        "weights": run.samples.weights,
        "images_seen": run.images_seen,
        "settings": settings,
        "numbers": measured.numbers,
        "device": str(run.device) if run.device.type == "cpu" else torch.cuda.get_device_name(run.device),
        "seconds": round(time.perf_counter() - begun, 2),
    }
    contents = pictures | others | {f"{name}.json": to_json(about).encode() + b"\n"}
    folder = folder_at(folder_of(config, run.location))
    for file, content in contents.items():
        folder.write(file, content)
    return [folder.at(file) for file in contents]


__all__ = ["FOLDER", "IF_KNOWN", "SHOWN", "AllConfig", "FigureConfig", "Measured", "counted", "folder_of", "plain",
           "write_figure"]  # fmt: skip
