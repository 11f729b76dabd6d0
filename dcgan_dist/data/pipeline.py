"""A set of shards for other pipelines: those of the webdataset library, or your own DataLoader.

::

    stream() -> SampleStream, an IterableDataset: {"__key__": …, "__url__": …, "jpg": bytes, "cls": bytes}, …
             -> FluidStream, if webdataset is installed: the same with .decode().map().batched()
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dcgan_dist.config import check_whole
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.parallel import yield_idle_cores
from dcgan_dist.printing import heard_by


def stream(
    path: str | Path,
    *,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    epochs: int | None = 1,
    decoded: bool = False,
    on_damage: Literal["skip", "fail"] = "skip",
    image_size: int | None = None,
    channels: int | None = None,
    image_member: str | None = None,
    cache: str | Path | None = None,
    cache_gib: float | None = None,
) -> Any:
    """Return the samples of a set of shards, in the order in which a run with these settings reads their images.

    Args:
        path: as `data.path`: a folder or URL of shards, a tar, a brace list of tars, or ``rooms:N``.
        batch_size: samples of a global batch, over all ranks. An epoch leaves out the last partial batch.
        seed: of the order.
        rank: which part of each batch to return.
        world_size: number of parts.
        start: number of the first batch, counted across epochs.
        epochs: number of epochs of an iteration; None for an endless one.
        decoded: return images as a run sees them (uint8, shape (image_size, image_size, channels)), `cls` as the number
            of the class and `json` parsed; else all members as bytes, as `webdataset.WebDataset` does.
        on_damage: `skip` leaves out damaged samples and logs them, `fail` raises.
        image_size: side in pixels of decoded images if the stored ones have different sizes; None for the set's own,
            else 64.
        channels: 1 or 3; None for the set's own.
        image_member: extension of the images in tars made elsewhere.
        cache: folder for created and downloaded files; None for the host's.
        cache_gib: maximum GiB of downloaded shards.

    Returns:
        A `FluidStream` if webdataset is installed, else a `SampleStream`.

    Raises:
        ConfigError: a number has a wrong type or is out of range.
        DataError: there are no such shards, or fewer samples than one batch.
    """
    numbers = {"batch_size": (batch_size, 1), "seed": (seed, 0), "rank": (rank, 0), "start": (start, 0)}
    for name, (value, least) in numbers.items():
        check_whole(name, value, least)
    if rank >= world_size:
        raise ConfigError(f"rank is {rank} of a world_size of {world_size}: ranks count from 0 to world_size - 1")
    check_whole("world_size", world_size, 1)
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs is {epochs}: take 1 or more, or None for no end")
    if on_damage not in ("skip", "fail"):
        raise ConfigError(f"on_damage is {on_damage!r}: take 'skip' or 'fail'")
    with heard_by(lambda _line: None):  # drawing rooms would print its progress, which is for commands only
        dataset = open_dataset(
            path,
            image_size=image_size,
            channels=channels,
            cache=cache,
            cache_gib=cache_gib,
            on_damage=on_damage,
            image_member=image_member,
        )
    if batch_size > dataset.count:
        raise DataError(f"batch_size is {batch_size}, but {dataset.path!r} has {dataset.count} images: take fewer")
    yield_idle_cores()  # before the next import, which is the first of torch
    from dcgan_dist.data.sample_stream import SampleStream

    order = {"seed": seed, "batch_size": batch_size, "rank": rank, "world_size": world_size}
    source = SampleStream(dataset, order, start=start, epochs=epochs, decoded=decoded, on_damage=on_damage)
    if find_spec("webdataset") is None:
        return source
    from dcgan_dist.data.fluid import FluidStream

    return FluidStream(source)
