"""What ends a run ends it on every rank at the same step: real processes, joined by gloo."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from dcgan_dist.config import Config, DataConfig, TrainingConfig
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.distributed import World
from dcgan_dist.errors import DataError
from dcgan_dist.stopping import Noted
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.feed import Feed
from dcgan_dist.training.setup import resolve_config
from dcgan_dist.training.votes import Votes
from tests.processes import in_processes


def votes(world: World, signals: Noted | None = None, max_damage: float = 0.1) -> tuple[Votes, Feed]:
    config = Config(
        data=DataConfig(path="rooms:64", max_damage=max_damage),
        training=TrainingConfig(batch_size=8, steps=4, device="cpu"),
    )
    dataset = open_dataset("rooms:64", image_size=16)
    config = resolve_config(config, dataset)
    feed = Feed(dataset, (-1.0, 1.0), config, world)
    return Votes(config, world, dataset, feed, DamageLog(), signals or Noted()), feed


def rank_1_fails(world: World) -> None:
    ballot, feed = votes(world)
    ballot.raise_failure()  # nothing has failed
    feed.open(0, 4)
    if world.rank == 1:
        feed.failure = DataError("the disk of rank 1 is gone")
    real = feed.load(1, feed.take())
    feed.close()
    expected = (4, 4, 1.0) if world.rank == 0 else (0, 4, 0.0)
    assert (len(real.images), int(real.global_count), float(real.weight)) == expected
    with pytest.raises(DataError, match="the disk of rank 1 is gone"):
        ballot.raise_failure()


def test_a_rank_that_cannot_read_ends_all_ranks_with_its_message(tmp_path: Path) -> None:
    in_processes(rank_1_fails, tmp_path)


def ranks_ask(world: World) -> None:
    noted = Noted()
    ballot, _ = votes(world, noted)
    assert ballot.stop(asked=False, overdue=False) == (0, False)
    assert ballot.stop(asked=False, overdue=world.rank == 0) == (0, True)
    assert ballot.stop(asked=world.rank == 1, overdue=False) == (signal.SIGTERM, False)
    noted.number = signal.SIGINT if world.rank == 0 else 0
    assert ballot.stop(asked=False, overdue=False) == (signal.SIGINT, False)


def test_one_rank_that_is_asked_stops_all_and_one_that_is_overdue_saves_all(tmp_path: Path) -> None:
    in_processes(ranks_ask, tmp_path)


@pytest.mark.parametrize(("lost", "is_too_much"), [(0, False), (6, False), (7, True)])
def test_more_losses_than_max_damage_allows_end_the_run(lost: int, is_too_much: bool) -> None:
    ballot, feed = votes(World(0, 1, torch.device("cpu")))
    feed.lost_in_epoch.fill_(lost)
    assert ballot.is_too_damaged() == is_too_much
    assert feed.forget_losses() == lost
    assert not ballot.is_too_damaged()
    assert f"{lost} of 64 images lost in epoch 0 by step 3" in str(ballot.damage_error(3, lost))


def test_an_epoch_without_one_image_ends_the_run_whatever_is_allowed() -> None:
    ballot, feed = votes(World(0, 1, torch.device("cpu")), max_damage=1.0)
    assert not ballot.is_too_damaged()
    feed.empty_steps.fill_(feed.stream.batches_per_epoch)
    assert ballot.is_too_damaged()
    assert "no image of 'rooms:64' can be read" in str(ballot.damage_error(8, 64))
