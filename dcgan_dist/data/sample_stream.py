"""The samples of a set of shards in a run's order, with a position to resume from.

::

    batches  of a rank, numbered across epochs: b, b + 1, b + 2, …
    worker   w of the N workers of a DataLoader takes b + w, b + w + N, …; the loader asks them in turn, and so
             yields the batches in order
    position the next batch, and how many of its samples were yielded: all that resuming needs
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch.utils.data import IterableDataset, get_worker_info

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.downloading import Downloads
from dcgan_dist.data.stream import Damage, Flaw, ImageStream
from dcgan_dist.errors import DataError

_MOST_LOGGED = 3  # times that the same damage to one shard is logged

_log = logging.getLogger(__name__)

Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Position:
    """A position in the sequence of a rank's batches.

    Attributes:
        batch: number of the next batch.
        sample: number of its samples that were yielded or damaged.
        workers: number of DataLoader workers if this is the position of one of them; 1 if it is that of all.
        stop: the batch at which the current iteration ends; None if there is no iteration, or it is endless.
    """

    batch: int
    sample: int = 0
    workers: int = 1
    stop: int | None = None


class SampleStream(IterableDataset[Sample]):
    """The samples of a dataset, one after the other; see `pipeline.stream`.

    An iteration yields `epochs` epochs, the next iteration those that follow. If an iteration was interrupted, the next
    one continues it. If every sample of an epoch is damaged, a DataError is raised.

    Args:
        dataset: to read.
        order: `seed`, `batch_size`, `rank` and `world_size`.
        start: number of the first batch.
        epochs: number of epochs of an iteration; None for an endless one.
        decoded: whether members are decoded; else they are bytes.
        on_damage: `skip` or `fail`.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: dict[str, int],
        *,
        start: int = 0,
        epochs: int | None = 1,
        decoded: bool = False,
        on_damage: Literal["skip", "fail"] = "skip",
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batches_per_epoch = dataset.count // order["batch_size"]
        self._order, self._epochs, self._decoded, self._on_damage = order, epochs, decoded, on_damage
        self._at = Position(batch=start)
        self._is_loaded = False

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at an epoch.

        With a DataLoader that starts new worker processes for each iteration, call this before each iteration.
        """
        self._at = Position(batch=epoch * self.batches_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last sample yielded by this process: a few numbers, serializable as JSON."""
        return asdict(self._at) | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration at the position of a state. The cost does not depend on the position.

        Raises:
            DataError: it is not the state of a stream, or one of another order or other shards.
        """
        if state.keys() != self.state_dict().keys():
            raise DataError(f"the state of a stream has {', '.join(self.state_dict())}, not {', '.join(state)}")
        for name, value in self._identity().items():
            # At the start of a batch, rank and world size may change: batches do not depend on them.
            is_needed = name not in ("rank", "world_size") or state["sample"]
            if is_needed and state[name] != value:
                raise DataError(f"the state has the {name} {state[name]!r}, the stream {value!r}: use the same")
        self._at = Position(**{name: state[name] for name in asdict(self._at)})
        self._is_loaded = True

    def __iter__(self) -> Iterator[Sample]:
        """Return an iterator over the samples from the current position on."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        at = self._begin(number, workers)
        batches = itertools.count(at.batch, workers) if at.stop is None else range(at.batch, at.stop, workers)
        # A new reader for each iteration: files and threads must not be shared with processes forked from this one.
        reader = ImageStream(self.dataset, **self._order, on_damage=self._on_damage)
        downloads = Downloads(self.dataset, reader.batch_size, reader.shards_ahead)
        log, lost_in_a_row = _DamageLog(), 0
        most_lost = max(1, self.batches_per_epoch // workers) * reader.most_images
        try:
            for batch in batches:
                downloads.begin(batch)
                first = at.sample if batch == at.batch else 0
                read = reader.read_samples(batch, first, decoded=self._decoded)
                log.add((*read.damage, *read.flaws))
                present = [(index, sample) for index, sample in enumerate(read.samples, first) if sample is not None]
                lost_in_a_row = 0 if present else lost_in_a_row + len(read.damage)
                if lost_in_a_row >= most_lost:
                    raise DataError(f"no sample of an epoch of {self.dataset.path!r} could be read: restore its shards")
                for index, sample in present:
                    if index == present[-1][0]:
                        self._at = Position(batch=batch + workers, workers=workers, stop=at.stop)
                    else:
                        self._at = Position(batch=batch, sample=index + 1, workers=workers, stop=at.stop)
                    yield sample
            log.log_total()
        finally:
            downloads.close()

    def _begin(self, number: int, workers: int) -> Position:
        """Return the position at which worker `number` of `workers` begins, with the end of its iteration."""
        at, is_loaded, self._is_loaded = self._at, self._is_loaded, False
        if at.workers not in (1, workers):
            raise DataError(
                f"the state of the stream was saved by one of {at.workers} DataLoader workers, but this DataLoader has "
                f"{workers}: use the same number"
            )
        # A worker that had finished its part when its state was saved yields nothing: the others finish the epoch.
        waits_for_others = is_loaded and at.workers > 1
        if at.stop is not None and at.batch >= at.stop and not waits_for_others:
            at = Position(batch=at.stop)
        stop = at.stop
        if stop is None and self._epochs is not None:
            stop = (at.batch // self.batches_per_epoch + self._epochs) * self.batches_per_epoch
        if at.workers == 1 and number:
            at = Position(batch=at.batch + number)
        self._at = Position(batch=at.batch, sample=at.sample, workers=workers, stop=stop)
        return self._at

    def _identity(self) -> dict[str, Any]:
        return {**self._order, "digest": self.dataset.digest}


class _DamageLog:
    """Logs damage, the same one at most `_MOST_LOGGED` times."""

    def __init__(self) -> None:
        self._lost = 0
        self._logged = Counter[tuple[str, str]]()

    def add(self, found: Iterable[Damage | Flaw]) -> None:
        for each in found:
            cost = "sample left out" if isinstance(each, Damage) else "no sample lost"
            self._lost += isinstance(each, Damage)
            self._logged[each.shard, each.reason] += 1
            if self._logged[each.shard, each.reason] <= _MOST_LOGGED:
                _log.warning("damage: shard %r offset %d (%s), %s", each.shard, each.offset, each.reason, cost)

    def log_total(self) -> None:
        if self._lost:
            _log.warning("damage: %d sample%s left out in all", self._lost, "s" * (self._lost != 1))


__all__ = ["Position", "SampleStream"]
