"""The order of the images: pure functions of the seed, the epoch and the position.

::

    shuffle the shards, shuffle the records inside each shard, concatenate them to N records
    cut the N records into 64 segments, segment l = [l*N//64, (l+1)*N//64)
    position p < 64*(N//64) is item p//64 of segment p % 64; the last items of the longer segments follow, in order
    global batch k = positions kB … kB+B-1; rank r of W takes those with p mod W = r

Because positions take the segments in turn, a batch mixes images that are far apart, while each segment still reads one
shard after the other. Nothing here has a state: every process computes any position of any epoch directly.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

SEGMENTS = 64

# The purpose of a draw is part of the key, so that no two kinds of draws share their random numbers.
_SHARDS, _RECORDS = 1, 2

Integers = npt.NDArray[np.int64]


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of full global batches of `count` images; the last partial batch is left out."""
    return count // batch_size


def rank_positions(batch: int, batch_size: int, rank: int, world_size: int) -> Integers:
    """Return the positions p of one rank's part of a global batch: those with p mod world_size = rank.

    Args:
        batch: number of the batch in its epoch.
        batch_size: images of the global batch, over all ranks.
        rank: of this process.
        world_size: number of ranks.
    """
    start = batch * batch_size
    return np.arange(start + (rank - start) % world_size, start + batch_size, world_size, dtype=np.int64)


def _permutation(length: int, seed: int, purpose: int, epoch: int, shard: int) -> npt.NDArray[np.uint32]:
    # Sort raw numbers instead of calling NumPy's shuffle: NumPy only guarantees that the raw numbers of a bit generator
    # stay the same in later versions. The two low words of the counter are 0, since the generator counts in them.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, shard, epoch], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(length)
    return np.argsort(raw, kind="stable").astype(np.uint32)


class EpochOrder:
    """The order of one epoch over shards of the given sizes.

    It keeps a few numbers per shard, and permutations only of the shards in use.

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
        self._segment_starts = np.arange(SEGMENTS + 1, dtype=np.int64) * self.count // SEGMENTS
        self._longer_segments = np.flatnonzero(np.diff(self._segment_starts) > self.count // SEGMENTS)
        self._whole = SEGMENTS * (self.count // SEGMENTS)

        # At any time, each of the 64 segments reads from one shard, or changes from one to the next.
        @lru_cache(maxsize=4 * SEGMENTS)
        def permutation(shard: int) -> npt.NDArray[np.uint32]:
            return _permutation(int(sizes[shard]), seed, _RECORDS, epoch, shard)

        self._permutation_of = permutation

    def locate(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return the shard, and the record in it, of each position; all have shape (n,).

        Args:
            positions: indices in the epoch's order, each in [0, count).
        """
        items = self._items(positions)
        indices = np.searchsorted(self._ends, items, side="right")
        shards = self._shards[indices]
        inside = items - (self._ends[indices] - self._sizes[shards])
        # Look up each shard's permutation once, not once for each position.
        by_shard = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[by_shard], prepend=-1, append=-1))
        records = np.empty(len(items), dtype=np.int64)
        for start, stop in pairwise(bounds):
            rows = by_shard[start:stop]
            records[rows] = self._permutation_of(int(shards[rows[0]]))[inside[rows]]
        return shards, records

    def shards_between(self, start: int, stop: int, rank: int = 0, world_size: int = 1) -> Integers:
        """Return the shards of a rank's positions in [start, stop), approximately in the order of their first use.

        A few shards of neighbouring positions may be among them. A long range takes no more time than a short one.
        """
        start, stop = max(start, 0), min(stop, self.count)
        firsts = lasts = np.empty(0, dtype=np.int64)
        if start < min(stop, self._whole):
            # p mod 64 is the segment and p mod world_size the rank, so a rank only reads the segments that are equal to
            # it modulo gcd(world_size, 64).
            stride = math.gcd(world_size, SEGMENTS)
            segments = self._segment_starts[:-1][rank % stride :: stride]
            firsts, lasts = segments + start // SEGMENTS, segments + (min(stop, self._whole) - 1) // SEGMENTS
        late = np.arange(max(start, self._whole), stop)
        items = self._items(late[late % world_size == rank])
        low = np.searchsorted(self._ends, np.concatenate([firsts, items]), side="right")
        high = np.searchsorted(self._ends, np.concatenate([lasts, items]), side="right")
        steps = low + np.arange((high - low).max(initial=0) + 1)[:, None]
        indices, first_met = np.unique(steps[steps <= high], return_index=True)
        shards = self._shards[indices[np.argsort(first_met)]]
        return shards[self._sizes[shards] > 0]

    def last_positions(self, stop: int) -> Integers:
        """Return the last position before `stop` at which each shard is read, -1 if never; shape (shards,)."""
        starts = self._ends - self._sizes[self._shards]
        # Cut the records at all borders of shards and segments: first and last item of each part.
        bounds = np.unique(np.concatenate([starts, self._segment_starts]))
        firsts, lasts = bounds[:-1], bounds[1:] - 1
        segments = np.searchsorted(self._segment_starts, lasts, side="right") - 1
        first, last = firsts - self._segment_starts[segments], lasts - self._segment_starts[segments]
        even = self.count // SEGMENTS
        late = self._whole + np.searchsorted(self._longer_segments, segments)
        is_late = (last == even) & (late < stop)
        # For the others: the last item of the segment at a position before `stop`.
        last = np.minimum(last, (min(stop, self._whole) - 1 - segments) // SEGMENTS)
        positions = np.where(is_late, late, np.where(last >= first, last * SEGMENTS + segments, -1))
        found = np.full(len(self._sizes), -1, dtype=np.int64)
        np.maximum.at(found, self._shards[np.searchsorted(self._ends, lasts, side="right")], positions)
        return found

    def _items(self, positions: Integers) -> Integers:
        """Return the index of each position among all concatenated records, shape (n,)."""
        items = self._segment_starts[positions % SEGMENTS] + positions // SEGMENTS
        late = positions >= self._whole
        items[late] = self._segment_starts[self._longer_segments[positions[late] - self._whole] + 1] - 1
        return items
