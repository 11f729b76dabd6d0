"""The result of a de-duplication: the content of dedup.json, and the top of the audit page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a de-duplication; also the content of dedup.json.

    Attributes:
        images: number of images in the shards.
        kept: number of images in the keep-list.
        removed: number of the others, each a near-duplicate of a kept one.
        damaged: number of unreadable images; they are in no group, and are kept.
        groups: number of groups of two or more images.
        group_sizes: number of groups by size.
        trained_on: number of images that the autoencoder was trained on.
        loss: mean squared error (plus stability term) of its last hundred steps.
        units: units that make up the code, in the order in which they were chosen.
        keep: digest of the keep-list.
        network: digest of dedup.safetensors.
        made_with: settings, seed and digest of the set; if they are equal, the keep-list is.
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
