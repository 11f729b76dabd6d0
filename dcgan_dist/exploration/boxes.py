"""`boxes`: a page on which a person draws boxes over samples, as for the windows of Fig. 6, and the file that it saves.

`explore windows --boxes FILE` reads this file.
"""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jinja2
import torch
from msgspec import Meta

from dcgan_dist.data.images import Pixels, encode
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured
from dcgan_dist.exploration.networks import Ids, Trained
from dcgan_dist.exploration.room_judge import Box
from dcgan_dist.settings import FormerNames, like

_SIDE = 192  # pixels that the side of an image has on the page, about
_MOST_SAMPLES = 2000  # on a page
RegionName = Annotated[
    str, like(r"(?=.*[^\W_])(?:[^\W_]|[ -]){1,40}", "a few letters that say what the boxes hold, such as window")
]
_MOST_BYTES = 1 << 24  # of a file of boxes; a larger one is refused before it fills the memory
_SHOWN = 400  # samples in the PNG, at most

Boxes = dict[int, list[Box]]
"""The boxes of each sample, by the sample's number, in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, kw_only=True)
class BoxesConfig(FigureConfig):
    """Settings of `explore boxes`."""

    count: Annotated[int, Meta(ge=1, le=_MOST_SAMPLES)] = 150
    """How many samples are on the page (150 in the paper)."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only."""
    region_name: RegionName = "window"
    """What the boxes are drawn around; the texts use it."""

    FORMER_NAMES: ClassVar[FormerNames] = {"samples": "count"}


def samples_of(run: Trained, ids: Ids, label: str | None) -> Pixels:
    """Return samples by their numbers, uint8 (n, S, S, C); sample i is the i-th that `sample --seed` draws.

    Samples of a conditional run are of the class `label`, or of the classes in turn if it is None.

    Raises:
        ConfigError: there is no such class.
    """
    return run.generate(run.z(ids), torch.cat([run.y(1, label, first=number) for number in ids]))


def listed(boxes: Boxes) -> list[dict[str, Any]]:
    """Return boxes as a list of their samples' numbers and places, as files have them."""
    return [{"id": number, "box": list(box)} for number, found in boxes.items() for box in found]


def boxes_content(run: Trained, boxes: Boxes, label: str | None) -> dict[str, Any]:
    """Return the content of a file of boxes: the boxes, and which samples of which checkpoint they belong to."""
    return {
        "seed": run.seed,
        "step": run.step,
        "checkpoint_digest": run.digest,
        "weights": run.samples.weights,
        "image_size": run.image_size,
        "label": label,
        "boxes": listed(boxes),
    }


def read_boxes(path: str, run: Trained, label: str | None) -> Boxes:
    """Read a file of boxes that the page saved.

    Raises:
        ConfigError: the boxes belong to other samples: of another seed, checkpoint, weights, size or class.
        DataError: the file cannot be read, holds no boxes, or has a box outside the image.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        content = json.loads(text) if len(text) <= _MOST_BYTES else None
    except OSError as error:
        raise DataError(
            f"boxes is {path!r}, which cannot be read ({error.strerror}): draw them with explore boxes"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"boxes is {path!r}, which is no JSON: draw them with explore boxes") from error
    if not isinstance(content, dict) or not isinstance(content.get("boxes"), list):
        raise DataError(f"boxes is {path!r}, which holds no boxes: draw them with explore boxes")
    ours = boxes_content(run, {}, label)
    for key, setting in (
        ("checkpoint_digest", "--step"),
        ("weights", "--weights"),
        ("seed", "--seed"),
        ("image_size", "--run"),
        ("label", "--label"),
    ):
        # Files of earlier versions, which had no averaged weights, do not name the weights.
        if content.get(key, "raw" if key == "weights" else None) != ours[key]:
            raise ConfigError(
                f"boxes is {path!r}, drawn over samples of {key} {content.get(key)!r}, but the samples here have "
                f"{ours[key]!r}: give the {setting} that the boxes were drawn with, or draw them again"
            )
    boxes: Boxes = {}
    for entry in content["boxes"]:
        number, box = _parsed(entry, run.image_size, path)
        boxes.setdefault(number, []).append(box)
    if not boxes:
        raise DataError(f"boxes is {path!r}, which has no box: draw some with explore boxes")
    return boxes


def _parsed(entry: Any, size: int, path: str) -> tuple[int, Box]:
    about = entry if isinstance(entry, dict) else {}
    number, box = about.get("id"), about.get("box")
    values = [number, *box] if isinstance(box, list) else []
    if len(values) != 5 or any(type(value) is not int for value in values) or not 0 <= values[0] < 2**31:
        raise DataError(
            f"boxes is {path!r}, where {entry!r:.80} is no box: write {{'id': 3, 'box': [left, top, right, bottom]}}"
        )
    number, left, top, right, bottom = values
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise DataError(
            f"boxes is {path!r}, where the box {box} of sample {number} is not inside the image of {size}x{size} "
            "pixels: draw it again"
        )
    return number, (left, top, right, bottom)


def boxes_page(run: Trained, images: Pixels, region: str, label: str | None) -> str:
    """Return the page as one self-contained HTML file; image i of (n, S, S, C) is sample i."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcgan_dist.exploration"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("boxes.html").render(
        about=boxes_content(run, {}, label),
        region=region,
        subtitle=run.subtitle,
        run=run.location,
        file=f"{region.replace(' ', '-')}-boxes.json",
        side=max(1, round(_SIDE / run.image_size)) * run.image_size,
        urls=[f"data:image/png;base64,{base64.b64encode(encode(image, 'png')).decode()}" for image in images],
    )


@dataclass(frozen=True, kw_only=True)
class BoxesPage(Measured):
    """A page to draw boxes on, and the samples that it shows.

    Attributes:
        samples: number of samples.
        region_name: what the boxes are to be drawn around.
        label: class of all samples, if one was asked for.
        page: the page, HTML.
        name: name of its file, without the suffix.
        images: the first samples, uint8 (n, S, S, C).
    """

    samples: int
    region_name: str
    label: str | None
    page: str = field(metadata=SHOWN)
    name: str = field(metadata=SHOWN)
    images: Pixels = field(metadata=SHOWN)


def measure(config: BoxesConfig, run: Trained) -> BoxesPage:
    """Make the page.

    Raises:
        ConfigError: there is no such class.
    """
    images = samples_of(run, range(config.count), config.label)
    return BoxesPage(
        subtitle=run.subtitle,
        samples=config.count,
        region_name=config.region_name,
        label=config.label,
        page=boxes_page(run, images, config.region_name, config.label),
        name=config.name or "boxes",
        images=images[:_SHOWN],
    )


def draw(made: BoxesPage) -> Canvas:
    """Draw the samples with their numbers; the page is a further file."""
    canvas = Canvas(f"Samples to draw boxes over, around each {made.region_name}", made.subtitle)
    canvas.images(Panel("with their numbers", made.images, 10, [str(number) for number in range(len(made.images))]))
    canvas.files[".html"] = made.page.encode()
    return canvas


def finding(made: BoxesPage) -> str:
    """Return what to do with the page."""
    return (
        f"{made.name}.html has {made.samples} samples: open it in a browser, draw a box around each "
        f"{made.region_name}, save, and give the file to explore windows --boxes."
    )


__all__ = ["Boxes", "BoxesConfig", "BoxesPage", "RegionName", "boxes_content", "boxes_page", "draw", "finding",
           "listed", "measure", "read_boxes", "samples_of"]  # fmt: skip
