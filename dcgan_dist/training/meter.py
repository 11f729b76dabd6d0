"""Rows of metrics: what the networks and the clock did since the last one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.runs.documents import Row
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.fixed_samples import FixedSamples
from dcgan_dist.training.progress import Progress
from dcgan_dist.training.setup import batches_per_step, lr_factor
from dcgan_dist.training.step import Players


class Meter:
    """Measures the steps between two log lines."""

    def __init__(self, config: Config, world: World, batches_per_epoch: int) -> None:
        self._config, self._world, self._batches_per_epoch = config, world, batches_per_epoch
        self._started = time.monotonic()
        self._waited = 0.0

    def start(self) -> None:
        """Start the clock."""
        self._started, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def row(self, players: Players, samples: FixedSamples, progress: Progress, damage: DamageLog) -> Row:
        """Return the row of the current step, and start the next one; every rank must call it.

        Losses and probabilities are means over all ranks' images since the last row; learning rate and signals are of
        this step. `seconds` and `last_logged` of `progress` are updated.
        """
        world, training = self._world, self._config.training
        means = players.tally.means(world)
        seconds, waited = max(time.monotonic() - self._started, 1e-9), self._waited
        self.start()
        damage.collect(world)
        seen, lost = progress.total_images(world)
        progress.seconds += seconds
        row: Row = {
            "step": progress.step,
            "epoch": progress.step * batches_per_step(self._config) / self._batches_per_epoch,
            "images_seen": seen,
            "loss_d": means.loss_d,
            "loss_g": means.loss_g,
            "d_real": means.d_real,
            "d_fake": means.d_fake,
            "images_per_s": max(1, progress.step - progress.last_logged) * training.batch_size / seconds,
            "data_wait": waited / seconds,
            **samples.signals(),  # type: ignore[typeddict-item]  # mypy wants all other keys in it, too
            "lr": self._config.optim.lr * lr_factor(self._config, progress.step),
            "images_lost": lost,
            "world_size": world.size,
            "time_s": progress.seconds,
        }
        if progress.parent is not None:
            row["parent"] = progress.parent["trial"]
            row["parent_step"] = progress.parent["step"]
            row["parent_digest"] = progress.parent["digest"]
        progress.last_logged = progress.step
        return row
