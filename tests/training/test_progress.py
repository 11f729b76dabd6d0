"""What a run counts, and how other ranks, or another number of them, continue to count."""

from __future__ import annotations

import torch

from dcgan_dist.distributed import World
from dcgan_dist.training.progress import Progress

SAVED = {"step": 12, "images_seen": 190, "images_lost": 2, "seconds": 3.5, "last_logged": 10}


def world(rank: int, size: int = 2) -> World:
    return World(rank, size, torch.device("cpu"))


def test_the_images_of_a_resumed_run_are_counted_once() -> None:
    ranks = [Progress(), Progress()]
    for rank, progress in enumerate(ranks):
        progress.load_state_dict(SAVED, world(rank))
        progress.advance(13, seen=8, lost=rank)
    assert sum(progress.images_seen for progress in ranks) == 190 + 16
    assert sum(progress.images_lost for progress in ranks) == 2 + 1
    assert {(p.step, p.resumed_at, p.last_logged, p.seconds) for p in ranks} == {(13, 12, 10, 3.5)}


def test_one_process_has_all_images() -> None:
    progress = Progress()
    progress.load_state_dict(SAVED, world(0, 1))
    assert progress.total_images(world(0, 1)) == (190, 2)


def test_a_run_that_continues_from_another_one_keeps_its_parent() -> None:
    progress = Progress()
    progress.load_state_dict(SAVED, world(0))
    assert progress.parent is None
    parent = {"trial": "t0003", "step": 12, "digest": "ab"}
    progress.load_state_dict({**SAVED, "parent": parent}, world(0))
    assert progress.parent == parent
