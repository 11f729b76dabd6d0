"""The real images of each step: this rank's rows of the global batch, on the device, in the model's range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dcgan_dist.config import Config
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.stream import Batch, BatchIterator, ImageStream
from dcgan_dist.distributed import World
from dcgan_dist.errors import DataError, DcganDistError
from dcgan_dist.training.draws import one_hot
from dcgan_dist.training.sampling import to_real
from dcgan_dist.training.setup import batches_per_step, dtype_of


@dataclass(frozen=True)
class RealImages:
    """What the discriminator of one rank is shown as real in one step.

    Attributes:
        images: (n, C, S, S); n is smaller than the rank's part of the batch where records are damaged, and may be 0.
        y: (n, classes), one-hot labels.
        slots: int64 (n,), their indices in the global batch.
        global_count: () real images of all ranks, at least 1.
        weight: () this rank's share of them.
    """

    images: torch.Tensor
    y: torch.Tensor
    slots: torch.Tensor
    global_count: torch.Tensor
    weight: torch.Tensor


class Feed:
    """Reads mini-batches, and knows on every rank how many images all ranks are missing.

    Attributes:
        stream: what is read.
        failure: the error that keeps this rank from reading.
        failed_ranks: () int64, how many ranks have one, added up over the steps since.
        epoch: number of the epoch that is being read.
        lost_in_epoch: () int64, images of this epoch that could not be read, of all ranks.
        empty_steps: () int64, how many steps in a row had no real image on any rank.
    """

    def __init__(self, dataset: Dataset, image_range: tuple[float, float], config: Config, world: World) -> None:
        self.stream = ImageStream(
            dataset,
            seed=config.seed,
            batch_size=config.training.batch_size,
            rank=world.rank,
            world_size=world.size,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            on_damage=config.data.on_damage,
        )
        self._image_range, self._dtype, self._config, self._world = image_range, dtype_of(config), config, world
        self._batches_per_step = batches_per_step(config)
        self._batches: BatchIterator | None = None
        self.failure: DcganDistError | None = None
        self.epoch = 0
        # On the device, so that no step waits for them.
        self.failed_ranks, self.lost_in_epoch, self.empty_steps = (
            torch.zeros((), dtype=torch.int64, device=world.device) for _ in range(3)
        )

    def resume(self, step: int, lost_in_epoch: int) -> None:
        """Continue the count of losses after `step` steps."""
        self.epoch = max(0, step - 1) * self._batches_per_step // self.stream.batches_per_epoch
        self.lost_in_epoch.fill_(lost_in_epoch)

    def open(self, done: int, total: int) -> None:
        """Start to read ahead, for the steps after `done` to `total`."""
        self._batches = self.stream.iterate(done * self._batches_per_step, total * self._batches_per_step)

    def close(self) -> None:
        """End the thread or processes that read ahead."""
        if self._batches is not None:
            self._batches.close()

    def take(self) -> list[Batch]:
        """Return the mini-batches of the next step; empty ones where this rank cannot read.

        Raises:
            DcganDistError: it cannot, and there are no other ranks.
        """
        assert self._batches is not None
        if self.failure is None:
            try:
                return [next(self._batches) for _ in range(self._batches_per_step)]
            except DcganDistError as error:
                if self._world.size == 1:
                    raise
                # The other ranks are on their way into the step's collectives and would wait there for this one, so it
                # takes part with nothing until `Votes.raise_failure` ends all of them together.
                self.failure = error
        size, channels = self.stream.dataset.image_size, self.stream.dataset.channels
        nothing = torch.zeros(0, dtype=torch.int64)
        return [Batch(torch.zeros(0, size, size, channels, dtype=torch.uint8), nothing, nothing)] * (
            self._batches_per_step
        )

    def forget_losses(self) -> int:
        """Return the losses of this epoch and start their count again, so that a resumed run gets past them."""
        lost = int(self.lost_in_epoch)
        self.lost_in_epoch.zero_()
        return lost

    def load(self, step: int, batches: list[Batch]) -> RealImages:
        """Return the real images of a step, from the last of its mini-batches; every rank must call it.

        The released code's alternating updates read a first mini-batch for the generator's turn, which needs none.
        """
        epoch = (step - 1) * self._batches_per_step // self.stream.batches_per_epoch
        if epoch != self.epoch:
            self.epoch = epoch
            self.lost_in_epoch.zero_()
        device, batch = self._world.device, batches[-1]
        images = batch.images.pin_memory() if device.type == "cuda" else batch.images
        real = to_real(images.to(device, non_blocking=True), self._image_range, self._dtype)
        if not self._config.training.channels_last:
            real = real.contiguous()
        y = one_hot(batch.labels, self._config.model.classes or 0).to(device, self._dtype)
        # One collective for the three sums.
        held = [len(real), sum(len(each.images) for each in batches), int(self.failure is not None)]
        used, read, failed = self._world.sum_(torch.tensor(held, dtype=torch.int64, device=device))
        self.lost_in_epoch += len(batches) * self._config.training.batch_size - read
        self.empty_steps = (self.empty_steps + 1) * (used == 0)
        self.failed_ranks += failed
        count = used.clamp_min(1).to(self._dtype)
        return RealImages(real, y, batch.slots, count, len(real) / count)


def first_images(dataset: Dataset, config: Config) -> npt.NDArray[np.uint8] | DataError:
    """Return the first real images of the first epoch, uint8 (n, S, S, C), of the first batch that has any.

    Returns:
        An error to raise where no image of the data can be read.
    """
    count = min(config.training.sample_count, dataset.count)
    stream = ImageStream(
        dataset, seed=config.seed, batch_size=count, rank=0, world_size=1, workers=0, prefetch=1, on_damage="skip"
    )
    for number in range(stream.batches_per_epoch):
        batch = stream.read(number)
        if len(batch.images):
            return batch.images.numpy()
    damage = batch.damage[0]
    return DataError(f"{nothing_readable(dataset)}: shard {damage.shard!r} offset {damage.offset} {damage.reason}")


def nothing_readable(dataset: Dataset) -> str:
    """Return the message for data of which no image can be read."""
    return f"no image of {dataset.path!r} can be read: restore its shards, or prepare them again"
