"""What was found in a set of shards: the content of dedup.json, and the head of the audit page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was found; also the content of dedup.json.

    Attributes:
        images: images in the shards.
        kept: those that the keep-list keeps.
        removed: the others, each a near-duplicate of a kept one.
        damaged: images that could not be read; they are in no group, and are kept.
        groups: groups of two images or more.
        group_sizes: number of groups by their size.
        trained_on: images that the autoencoder was trained on.
        loss: mean squared error (and stability term) of its last hundred steps.
        units: units that make up the code, in the order in which they were chosen.
        keep: digest of the keep-list.
        network: digest of dedup.safetensors.
        made_with: settings, seed, content of the set: the same mean the same keep-list.
        versions: of torch.
        device: that the autoencoder was trained on.
    """

    images: int
    kept: int
    removed: int
    damaged: int
    groups: int
    group_sizes: dict[str, int]
    trained_on: int
    loss: float
    units: list[int]
    keep: str
    network: str
    made_with: dict[str, Any]
    versions: dict[str, str]
    device: str

    def describe(self) -> str:
        """Return one line for people."""
        damaged = f"; {self.damaged:,} are damaged" if self.damaged else ""
        return (
            f"{self.kept:,} of {self.images:,} images are kept: {self.removed:,} near-duplicates in "
            f"{self.groups:,} groups removed{damaged}"
        )
