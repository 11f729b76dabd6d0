"""The planted near-duplicates that de-duplication finds, and the false ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deduplication import DATA_VARIABLE, KINDS, distance, measure, plant, read_images
from dcgan_dist.data.settings import DeduplicationConfig

SETTINGS = DeduplicationConfig(steps=250, batch_size=64)


@pytest.mark.slow
def test_most_planted_near_duplicates_of_photographs_are_found_and_few_other_images_removed() -> None:
    folder = os.environ.get(DATA_VARIABLE)
    if folder is None:
        pytest.skip(f"needs photographs: set {DATA_VARIABLE} to the folder that has faces_64.tar.gz")
    images = read_images(Path(folder, "faces_64.tar.gz"), most=1600)
    exact, near = measure(images, SETTINGS, (0, 4), seed=0)
    assert exact["recall"] > 0.4
    assert near["recall"] > 0.8
    assert near["recall_brightness_5%"] > 0.9
    for figures in (exact, near):
        assert figures["false_share"] < 0.02
        assert figures["removed"] >= figures["recall"] * len(images) // 10 - 4


def test_planted_copies_are_changed_and_still_nearer_to_their_origin_than_any_other_image() -> None:
    planted = plant(read_images(None, most=40), seed=0)
    originals = np.flatnonzero(planted.kind < 0)
    assert sorted(planted.kind[planted.kind >= 0].tolist()) == sorted(range(len(KINDS)))
    for copy in np.flatnonzero(planted.kind >= 0):
        distances = [distance(planted.images[copy], planted.images[number]) for number in originals]
        assert planted.origin[originals[int(np.argmin(distances))]] == planted.origin[copy]
        own = planted.images[originals[int(np.argmin(distances))]]
        assert (planted.images[copy] != own).any()
