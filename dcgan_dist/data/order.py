"""The order in which images are shown: pure functions of the seed, the epoch and the position.

An epoch shuffles the shards, shuffles the records inside each shard, and lays all N records end to end. This line is
cut into 64 runs, run l being ``[l*N//64, (l+1)*N//64)``, and the runs are dealt out in turn, so that images far apart
in the line meet in one batch while each run still reads one shard after the other. Position p below ``64*(N//64)`` is
item ``p//64`` of run ``p % 64``; the last items of the runs that have one more follow in the order of the runs.

Nothing here has a history: any position of any epoch is found at once, by every process alike.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

RUNS = 64

# What a draw is for: part of the key, so that no two kinds of draws share their numbers.
_SHARDS, _RECORDS = 1, 2

Integers = npt.NDArray[np.int64]


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Return how many whole global batches `count` images give; the last partial one is not shown."""
    return count // batch_size


def rank_positions(batch: int, batch_size: int, rank: int, world_size: int) -> Integers:
    """Return the positions in the epoch of one rank's part of a global batch: those with p mod world_size = rank.

    `batch` is the number of the batch inside its epoch, `batch_size` counts the images of all ranks.
    """
    start = batch * batch_size
    return np.arange(start + (rank - start) % world_size, start + batch_size, world_size, dtype=np.int64)


def _permutation(length: int, seed: int, purpose: int, epoch: int, shard: int) -> npt.NDArray[np.uint32]:
    # Only the raw numbers of a NumPy bit generator are promised to stay the same in later versions, so they are
    # sorted here. The two low words of the counter are left for counting on.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, shard, epoch], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(length)
    return np.argsort(raw, kind="stable").astype(np.uint32)


class EpochOrder:
    """The order of one epoch over shards of the given sizes.

    Memory is a few numbers for each shard, and permutations for the shards in use alone.

    Args:
        sizes: number of records of each shard, shape (shards,).
        seed: seed of the run, 0 or more.
        epoch: number of the epoch, from 0.
    """

    def __init__(self, sizes: npt.ArrayLike, seed: int, epoch: int) -> None:
        self._sizes = sizes = np.asarray(sizes, dtype=np.int64)
        self._shards = _permutation(len(sizes), seed, _SHARDS, epoch, 0).astype(np.int64)
        self._ends = np.cumsum(sizes[self._shards])
        self.count = int(sizes.sum())
        self._run_starts = np.arange(RUNS + 1, dtype=np.int64) * self.count // RUNS
        self._longer_runs = np.flatnonzero(np.diff(self._run_starts) > self.count // RUNS)
        self._whole = RUNS * (self.count // RUNS)

        # At any time each run is inside one shard, or between two.
        @lru_cache(maxsize=4 * RUNS)
        def permutation(shard: int) -> npt.NDArray[np.uint32]:
            return _permutation(int(sizes[shard]), seed, _RECORDS, epoch, shard)

        self._permutation_of = permutation

    def locate(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return shard and record in the shard of each position; all have shape (n,).

        Args:
            positions: places in the epoch's order, each in [0, count).
        """
        items = self._items(positions)
        places = np.searchsorted(self._ends, items, side="right")
        shards = self._shards[places]
        inside = items - (self._ends[places] - self._sizes[shards])
        # One look into a permutation for each shard, not for each position.
        by_shard = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[by_shard], prepend=-1, append=-1))
        records = np.empty(len(items), dtype=np.int64)
        for start, stop in pairwise(bounds):
            rows = by_shard[start:stop]
            records[rows] = self._permutation_of(int(shards[rows[0]]))[inside[rows]]
        return shards, records

    def shards_between(self, start: int, stop: int, rank: int = 0, world_size: int = 1) -> Integers:
        """Return the shards that a rank's positions in [start, stop) touch, in about the order in which they do.

        There may be a few more, of the neighbouring positions. A long range costs no more than a short one.
        """
        start, stop = max(start, 0), min(stop, self.count)
        firsts = lasts = np.empty(0, dtype=np.int64)
        if start < min(stop, self._whole):
            # A rank meets only the runs that agree with it modulo what its stride and the number of runs share.
            stride = math.gcd(world_size, RUNS)
            runs = self._run_starts[:-1][rank % stride :: stride]
            firsts, lasts = runs + start // RUNS, runs + (min(stop, self._whole) - 1) // RUNS
        late = np.arange(max(start, self._whole), stop)
        items = self._items(late[late % world_size == rank])
        low = np.searchsorted(self._ends, np.concatenate([firsts, items]), side="right")
        high = np.searchsorted(self._ends, np.concatenate([lasts, items]), side="right")
        steps = low + np.arange((high - low).max(initial=0) + 1)[:, None]
        places, first_met = np.unique(steps[steps <= high], return_index=True)
        shards = self._shards[places[np.argsort(first_met)]]
        return shards[self._sizes[shards] > 0]

    def last_positions(self, stop: int) -> Integers:
        """Return the last position before `stop` at which each shard is read, -1 for never; shape (shards,)."""
        starts = self._ends - self._sizes[self._shards]
        # Parts of the line that lie in one shard and in one run: first and last item of each.
        bounds = np.unique(np.concatenate([starts, self._run_starts]))
        firsts, lasts = bounds[:-1], bounds[1:] - 1
        runs = np.searchsorted(self._run_starts, lasts, side="right") - 1
        first, last = firsts - self._run_starts[runs], lasts - self._run_starts[runs]
        even = self.count // RUNS
        late = self._whole + np.searchsorted(self._longer_runs, runs)
        is_late = (last == even) & (late < stop)
        # Of those that are not, the last item of the run's share that is dealt out before `stop`.
        last = np.minimum(last, (min(stop, self._whole) - 1 - runs) // RUNS)
        positions = np.where(is_late, late, np.where(last >= first, last * RUNS + runs, -1))
        found = np.full(len(self._sizes), -1, dtype=np.int64)
        np.maximum.at(found, self._shards[np.searchsorted(self._ends, lasts, side="right")], positions)
        return found

    def _items(self, positions: Integers) -> Integers:
        """Return the places in the line of all records, shape (n,)."""
        items = self._run_starts[positions % RUNS] + positions // RUNS
        late = positions >= self._whole
        items[late] = self._run_starts[self._longer_runs[positions[late] - self._whole] + 1] - 1
        return items
