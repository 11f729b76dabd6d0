"""Procedural rooms."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcgan_dist.data import rooms
from dcgan_dist.data.colours import Remarks
from dcgan_dist.data.images import Pixels, Target, fit
from dcgan_dist.data.sources.base import Folders, Item, Source, shuffled
from dcgan_dist.errors import DataError

MOST_ROOMS = 10_000_000


@dataclass(frozen=True)
class Room:
    """One procedural room."""

    seed: int
    index: int

    def picture(self, target: Target) -> tuple[Pixels, dict[str, Any], Remarks]:
        """See `Content`."""
        image, attributes = rooms.draw_room(self.seed, self.index, target.size)
        return fit(image, target.size, target.channels), {"index": self.index, **attributes}, Remarks()


def _item(seed: int, index: int, share: float) -> Item:
    view = rooms.room_attributes(seed, index)["view"]
    return Item(f"room {index}", (view,), Room(seed, index), share)


@dataclass(frozen=True)
class RoomPart:
    """Some rooms of a seed; see `Part`."""

    seed: int
    indices: tuple[int, ...]

    @property
    def count(self) -> int:
        """See `Part`."""
        return len(self.indices)

    def items(self) -> Iterator[tuple[int, Item]]:
        """See `Part`."""
        for position, index in enumerate(self.indices, 1):
            yield index, _item(self.seed, index, position / len(self.indices))


@dataclass(frozen=True, kw_only=True)
class RoomSource(Source):
    """Procedural rooms; the class of a room is the side from which it is viewed."""

    seed: int

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        count = self.count or 0
        return (_item(self.seed, index, (index + 1) / count) for index in range(count))

    def all_folders(self) -> Collection[Folders]:
        """See `Source`."""
        return [(view,) for view in rooms.VIEWS]

    def parts(self, size: int, seed: int, count: int | None = None) -> Sequence[RoomPart]:
        """See `Source`."""
        order = shuffled(min(self.count or 0, count or self.count or 0), seed).tolist()
        return [RoomPart(self.seed, tuple(order[start : start + size])) for start in range(0, len(order), size)]


def room_source(count: int, seed: int = 0) -> RoomSource:
    """Return the first `count` procedural rooms of `seed`.

    Raises:
        DataError: there are more than `MOST_ROOMS`, which would take days to draw.
    """
    if count > MOST_ROOMS:
        raise DataError(f"{count:,} rooms are too many to draw: take at most {MOST_ROOMS:,}")
    return RoomSource(
        name="rooms",
        where=f"rooms of seed {seed}",
        identity={"rooms_version": rooms.VERSION, "rooms_seed": seed},
        image_size=64,
        classes=rooms.VIEWS,
        count=count,
        seed=seed,
    )
