"""Labelled images for scores: shards, procedural rooms, or a source from which shards are made in the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from dcgan_dist.config import is_rooms
from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.manifest import MANIFEST_NAME
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.rooms import BED_COLOURS, VIEWS, WALL_HUES
from dcgan_dist.data.shards import Recipe, made_with, write_shards
from dcgan_dist.data.sources import Source, Split, open_source, room_source
from dcgan_dist.errors import DataError
from dcgan_dist.paths import expanded
from dcgan_dist.storage.cache import one_at_a_time
from dcgan_dist.storage.remote import is_url

Labels = npt.NDArray[np.int64]

SCORED_ROOMS = 2000
SCORED_ROOMS_SEED = 1
"""Seed of the rooms for scores when no data is given; runs are trained on rooms of another seed."""

ROOM_ATTRIBUTES: dict[str, tuple[object, ...]] = {
    "window": (False, True),
    "bed_colour": tuple(BED_COLOURS),
    "lamp_on": (False, True),
    "view": VIEWS,
    "wall_hue": WALL_HUES,
    "night": (False, True),
    "rug": (False, True),
    "picture": (False, True),
}
"""The attributes of a room that scores use, each with its values."""


def open_labelled(
    path: str | None,
    task: str,
    *,
    image_size: int,
    channels: int,
    cache: Path,
    split: Literal["train", "test"] = "train",
    image_member: str | None = None,
) -> Dataset:
    """Open the images of a task.

    Args:
        path: shards (folder, URL, tars, ``rooms:N``), or a source for `prepare`: a folder or archive of class folders,
            or the files of CIFAR-10, SVHN or MNIST. None for the rooms of the task `rooms`.
        task: `cifar10`, `svhn`, `folder`, `rooms` or `mnist`.
        image_size: side in pixels that the discriminator takes; shards of sources are made at this size.
        channels: channels that the discriminator takes.
        cache: folder of the shards that are made.
        split: part of CIFAR-10, SVHN or MNIST, if the path has both.
        image_member: extension of the images in tars of other tools.

    Raises:
        DataError: there are no images, or they have another number of channels.
    """
    if path is None:
        if task != "rooms":
            raise DataError(f"data is missing: give --data PATH, the labelled images of the task {task}")
        rooms = room_source(SCORED_ROOMS, SCORED_ROOMS_SEED)
        dataset = _made(rooms, "rooms", image_size, channels, cache)
    elif _is_shards(path):
        size = image_size if is_rooms(path) else None
        dataset = open_dataset(path, image_size=size, cache=cache, image_member=image_member)
        if dataset.fitted:  # images of any size, resized when they are read
            dataset = replace(dataset, image_size=image_size)
    else:
        kind = {"rooms": "folder", "svhn": "svhn" if _has_mat(Path(path)) else "folder"}.get(task, task)
        source = open_source(kind, path, split=_split_of(path) or split)
        dataset = replace(_made(source, kind, image_size, channels, cache), path=path)
    _check_sizes(dataset)
    if dataset.channels != channels:
        of = {1: "grey images (1 channel)", 3: "colour images (3 channels)"}
        raise DataError(
            f"the discriminator was trained on {of[channels]}, but {dataset.path!r} has {of[dataset.channels]}: "
            "prepare the data again to match, or score another run"
        )
    return dataset


def _check_sizes(dataset: Dataset) -> None:
    # If the cache has the features, the shards are not read again, and this is the only check of their state.
    for number, about in enumerate(dataset.manifest.shards):
        if dataset.is_remote(number):
            continue
        path = Path(dataset.tars[number])
        has = path.stat().st_size if path.exists() else 0
        if has != about.bytes:
            raise DataError(
                f"shard {about.file!r} of {dataset.path!r} is damaged: it has {has:,} bytes, not {about.bytes:,}; "
                "restore it or prepare it again"
            )


def _is_shards(path: str) -> bool:
    if is_url(path) or is_rooms(path) or "{" in path:
        return True
    local = expanded(path)
    if local.is_dir():
        return (local / MANIFEST_NAME).exists() or any(local.glob("*.tar"))
    return local.suffix == ".tar"


def _has_mat(path: Path) -> bool:
    return path.suffix == ".mat" or (path.is_dir() and any(path.glob("*.mat")))


_SVHN_FILES: dict[str, Split] = {
    "train_32x32.mat": "train",
    "test_32x32.mat": "test",
    "extra_32x32.mat": "extra",
}


def _split_of(path: str) -> Split | None:
    """Return which part of SVHN a file is; None if it is not a file of SVHN.

    Raises:
        DataError: its name ends like those of SVHN, but is unknown.
    """
    name = Path(path).name
    if name.endswith("_32x32.mat") and name not in _SVHN_FILES:
        raise DataError(f"{path!r} is none of SVHN's files: name it {', '.join(_SVHN_FILES)}, whichever it is")
    return _SVHN_FILES.get(name)


def _made(source: Source, kind: str, image_size: int, channels: int, cache: Path) -> Dataset:
    """Return the shards of a source; make them if they are not in the cache."""
    # The channels of a folder's images are only known after decoding, and all of them are converted.
    recipe = Recipe(
        image_size=image_size, channels=channels if kind == "folder" else source.channels, encoding="raw", name=kind
    )
    if kind == "rooms":
        recipe = Recipe(image_size=image_size, channels=channels, encoding="raw", name=kind)
    settings = json.dumps(made_with(source, recipe), sort_keys=True, default=str)
    name = f"{kind}-{image_size}-{xxhash.xxh3_64_hexdigest(settings.encode())}"
    with one_at_a_time(cache, name):
        progress = ProgressLine(f"reading {source.where}")
        try:
            write_shards(source, recipe, cache / "made" / name, report=progress)
        finally:
            progress.close()
    return open_dataset(cache / "made" / name, cache=cache)


def class_labels(dataset: Dataset) -> Labels:
    """Return the class of every image, -1 if it has none, (count,).

    Raises:
        DataError: there are no labels, or only one class.
    """
    labels = dataset.labels()
    found = np.unique(labels[labels >= 0])
    name = dataset.manifest.single_class
    if not len(found) and not name:
        raise DataError(f"{dataset.path!r} has no labels: give a folder with one sub-folder a class, or shards of it")
    if len(found) < 2:
        names = dataset.classes
        if len(found):
            name = names[found[0]] if found[0] < len(names) else str(found[0])
        raise DataError(f"{dataset.path!r} has one class ({name}): a score needs images of two or more")
    return labels


def room_labels(dataset: Dataset) -> dict[str, Labels]:
    """Return the index of every image's value by attribute of `ROOM_ATTRIBUTES`, from its KEY.json.

    A window counts if it is visible: `window_box` is null for a window that is outside the view.

    Raises:
        DataError: the images are not procedural rooms.
    """
    labels = {name: np.empty(dataset.count, dtype=np.int64) for name in ROOM_ATTRIBUTES}
    row = 0
    for shard in range(len(dataset.tars)):
        content = dataset.content(shard)
        for record in dataset.records(shard):
            start, size = int(record["json_offset"]), int(record["json_size"])
            attributes = _parse(bytes(content[start : start + size]), dataset)
            attributes["window"] = attributes["window_box"] is not None
            for name, values in ROOM_ATTRIBUTES.items():
                labels[name][row] = values.index(attributes[name])
            row += 1
    return labels


def _parse(content: bytes, dataset: Dataset) -> dict[str, Any]:
    try:
        attributes = json.loads(content)
        if not {*ROOM_ATTRIBUTES, "window_box"} <= set(attributes):
            raise ValueError("attributes are missing")
    except (ValueError, TypeError) as error:
        raise DataError(f"{dataset.path!r} holds no procedural rooms: take rooms:N, or leave --data out") from error
    return dict(attributes)
