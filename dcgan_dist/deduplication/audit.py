"""The audit page, on which a person checks the removed images: the largest groups, and a sample of pairs to tick."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import encode, fit
from dcgan_dist.deduplication.codes import read_shard
from dcgan_dist.deduplication.groups import Numbers
from dcgan_dist.deduplication.summary import Summary

PAIRS = 100
GROUPS = 40  # the largest, shown
MEMBERS = 12  # of a group, shown

_MOST_PIXELS = 96  # side of an image on the page


def audit_page(dataset: Dataset, first: Numbers, sizes: npt.NDArray[np.int64], summary: Summary, seed: int) -> str:
    """Return the page as one self-contained HTML file.

    Args:
        dataset: the images, without a keep-list.
        first: for each image, the kept one of its group, shape (n,).
        sizes: for each kept image, the size of its group.
        summary: of the de-duplication.
        seed: of the sample of pairs.
    """
    leaders = _largest(sizes)
    members = _members(first, leaders)
    pairs = sample_pairs(first, seed)
    wanted = {int(number) for group in members for number in group} | {number for pair in pairs for number in pair}
    pictures = _pictures(dataset, wanted)
    content: dict[str, Any] = {
        "where": dataset.path,
        "summary": summary,
        "share": summary.removed / summary.images,
        "settings": {key: value for key, value in summary.made_with.items() if key not in ("revision", "set")},
        "groups": [
            {"size": int(sizes[leader]), "pictures": [pictures[int(number)] for number in group]}
            for leader, group in zip(leaders, members, strict=True)
        ],
        "pairs": [(pictures[kept], pictures[removed]) for removed, kept in pairs],
        "side": min(dataset.image_size, _MOST_PIXELS),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcgan_dist.deduplication"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("dedup.html").render(content)


def sample_pairs(first: Numbers, seed: int) -> list[tuple[int, int]]:
    """Return up to `PAIRS` removed images, drawn uniformly, in order, each with the kept image of its group."""
    removed = np.flatnonzero(first != np.arange(len(first), dtype=np.uint32))
    chosen = np.random.default_rng(seed).choice(removed, min(PAIRS, len(removed)), replace=False)
    return [(int(number), int(first[number])) for number in np.sort(chosen)]


def _largest(sizes: npt.NDArray[np.int64]) -> list[int]:
    """Return the first images of the largest groups, the largest first."""
    candidates = np.flatnonzero(sizes > 1)
    order = np.argsort(-sizes[candidates], kind="stable")[:GROUPS]
    return [int(number) for number in candidates[order]]


def _members(first: Numbers, leaders: list[int]) -> list[list[int]]:
    """Return the first `MEMBERS` images of each of some groups."""
    found: dict[int, list[int]] = {leader: [] for leader in leaders}
    for number in np.flatnonzero(np.isin(first, leaders)):
        group = found[int(first[number])]
        if len(group) < MEMBERS:
            group.append(int(number))
    return list(found.values())


def _pictures(dataset: Dataset, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
    """Return images, by number, as data: URLs with their names."""
    shards = dataset.manifest.shards
    starts = list(accumulate((shard.samples for shard in shards), initial=0))
    side = min(dataset.image_size, _MOST_PIXELS)
    ordered = sorted(numbers)
    owners = np.searchsorted(starts, ordered, side="right") - 1
    found: dict[int, dict[str, str]] = {}
    for shard in np.unique(owners):
        mine = [number for number, owner in zip(ordered, owners, strict=True) if owner == shard]
        rows = [number - starts[shard] for number in mine]
        for number, row, image in zip(mine, rows, read_shard(dataset, int(shard), rows), strict=True):
            assert image is not None, "it was read a moment ago"
            jpeg = base64.b64encode(encode(fit(image, side, dataset.channels), "jpg")).decode()
            name = f"image {number} ({shards[shard].file}, record {row})"
            found[number] = {"url": f"data:image/jpeg;base64,{jpeg}", "name": name}
    return found
