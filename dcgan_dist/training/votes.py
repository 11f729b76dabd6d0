"""What all ranks decide together between two steps.

A rank that left the loop alone would leave the others waiting in a collective for ever. So whatever ends a run is made
known to all of them first, here or by sums that a step takes anyway, and every rank raises at the same step.
"""

from __future__ import annotations

import signal

import torch

from dcgan_dist.config import Config
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.distributed import World
from dcgan_dist.errors import DataError
from dcgan_dist.stopping import Noted
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.feed import Feed, nothing_readable
from dcgan_dist.training.setup import batches_per_step


class Votes:
    """The collectives between two steps; every rank must call each of them at the same steps."""

    def __init__(
        self, config: Config, world: World, dataset: Dataset, feed: Feed, damage: DamageLog, signals: Noted
    ) -> None:
        self._config, self._world, self._dataset = config, world, dataset
        self._feed, self._damage, self._signals = feed, damage, signals

    def raise_failure(self) -> None:
        """Raise on every rank the error that keeps one of them from reading."""
        if not int(self._feed.failed_ranks):
            return
        mine = self._feed.failure
        texts = self._world.gather_texts("" if mine is None else str(mine))
        raise mine or DataError(next(text for text in texts if text))

    def is_too_damaged(self) -> bool:
        """Whether more images of this epoch are lost than `data.max_damage` allows; the same on all ranks."""
        allowed = self._config.data.max_damage * self._dataset.count
        return int(self._feed.lost_in_epoch) > allowed or self._none_is_left()

    def damage_error(self, step: int, lost: int) -> DataError:
        """Return the error that ends the run for `lost` images, in the words of the leader, who knows all shards."""
        message = (
            f"{lost:,} of {self._dataset.count:,} images lost in epoch {self._feed.epoch} by step {step:,} (images "
            f"lost by shard: {self._damage.shards()}), more than data.max_damage ({self._config.data.max_damage:g}) "
            f"allows: restore the shards or raise it, and the same command resumes the run"
        )
        text = nothing_readable(self._dataset) if self._none_is_left() else message
        return DataError(self._world.broadcast_text(text))

    def stop(self, *, asked: bool, overdue: bool) -> tuple[int, bool]:
        """Return the signal by which any rank was asked to stop (0: none), and whether a checkpoint is overdue.

        Args:
            asked: whether this rank's launcher asks to stop.
            overdue: whether this rank finds a checkpoint overdue.
        """
        number = self._signals.number or (signal.SIGTERM if asked else 0)
        if self._world.size == 1:
            return number, overdue
        flags = self._world.maximum_(torch.tensor([number, int(overdue)], device=self._world.device))
        return int(flags[0]), bool(flags[1])

    def _none_is_left(self) -> bool:
        """Whether a whole epoch has gone by without one real image."""
        return int(self._feed.empty_steps) * batches_per_step(self._config) >= self._feed.stream.batches_per_epoch
