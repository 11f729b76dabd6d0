import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist.data.order import EpochOrder, batches_per_epoch, rank_positions

sizes_of_shards = st.lists(st.integers(0, 60), min_size=1, max_size=12)


def whole_order(sizes, seed=0, epoch=0):
    order = EpochOrder(sizes, seed, epoch)
    shards, records = order.locate(np.arange(order.count))
    return list(zip(shards.tolist(), records.tolist(), strict=True))


def dealt_out_by_hand(line, runs=64):
    """The order by its definition: cut into segments, take one item of each in turn, then the last items."""
    count = len(line)
    cut = [line[run * count // runs : (run + 1) * count // runs] for run in range(runs)]
    even = count // runs
    return [cut[p % runs][p // runs] for p in range(runs * even)] + [run[-1] for run in cut if len(run) > even]


@given(sizes_of_shards, st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_all_records(sizes, seed, epoch):
    order = whole_order(sizes, seed, epoch)
    assert sorted(order) == [(shard, record) for shard, size in enumerate(sizes) for record in range(size)]


@given(sizes_of_shards, st.integers(0, 5))
def test_the_order_is_the_one_made_by_cutting_and_dealing_lists(sizes, seed):
    order = EpochOrder(sizes, seed, 3)
    line = [(int(shard), int(record)) for shard in order._shards for record in order._permutation_of(int(shard))]
    assert whole_order(sizes, seed, 3) == dealt_out_by_hand(line)


@given(sizes_of_shards, st.data())
def test_any_part_of_the_order_is_found_without_the_rest(sizes, data):
    whole = whole_order(sizes)
    positions = data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=20 if whole else 0))
    shards, records = EpochOrder(sizes, 0, 0).locate(np.array(positions, dtype=np.int64))
    assert list(zip(shards.tolist(), records.tolist(), strict=True)) == [whole[p] for p in positions]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 30))
def test_ranks_share_out_every_batch(batch_size, world_size, batch):
    parts = [rank_positions(batch, batch_size, rank, world_size) for rank in range(world_size)]
    assert all((part % world_size == rank).all() for rank, part in enumerate(parts))
    together = np.sort(np.concatenate(parts))
    assert together.tolist() == list(range(batch * batch_size, (batch + 1) * batch_size))


@settings(max_examples=300)
@given(sizes_of_shards, st.integers(1, 6), st.integers(0, 700), st.integers(0, 700), st.data())
def test_shards_between_names_every_shard_that_is_touched(sizes, world_size, one, other, data):
    rank = data.draw(st.integers(0, world_size - 1))
    order = EpochOrder(sizes, 1, 2)
    start, stop = min(one, other, order.count), min(max(one, other), order.count)
    positions = np.arange(start, stop)
    touched, _ = order.locate(positions[positions % world_size == rank])
    named = order.shards_between(start, stop, rank, world_size).tolist()
    assert set(touched.tolist()) <= set(named)
    assert len(named) == len(set(named))


def test_shards_between_names_few_shards_that_are_not_touched():
    order = EpochOrder([100] * 1000, 0, 0)
    assert len(order.shards_between(0, 128, 0, 1)) <= 64
    assert len(order.shards_between(0, 128, 1, 4)) <= 16
    assert len(order.shards_between(0, 64 * 100)) <= 128


@settings(max_examples=300)
@given(sizes_of_shards, st.integers(0, 5), st.integers(0, 720))
def test_last_positions_are_where_each_shard_is_read_last(sizes, seed, stop):
    whole = whole_order(sizes, seed)[:stop]
    expected = [max((p for p, (of, _) in enumerate(whole) if of == shard), default=-1) for shard in range(len(sizes))]
    assert EpochOrder(sizes, seed, 0).last_positions(stop).tolist() == expected


def test_epochs_and_seeds_differ():
    orders = [tuple(whole_order([50, 70, 30], seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_the_order_of_a_seed_never_changes():
    # Fixed values: a run resumed with a later version must continue in the same order.
    known = [(2, 3), (2, 2), (2, 1), (2, 0), (0, 1), (0, 0), (0, 2), (1, 0), (1, 1)]
    assert whole_order([3, 2, 4], seed=7, epoch=1) == known


def test_images_of_one_batch_come_from_all_over_the_data():
    order = EpochOrder([100] * 1000, 0, 0)
    shards, _ = order.locate(np.arange(128))
    assert len(set(shards.tolist())) >= 60


def test_the_last_partial_batch_is_left_out():
    assert batches_per_epoch(1000, 128) == 7
    assert batches_per_epoch(127, 128) == 0


def test_the_middle_of_an_epoch_of_three_million_images_is_found_at_once():
    began = time.perf_counter()
    order = EpochOrder([2000] * 1500, 0, 9)
    order.locate(rank_positions(20_000, 128, 0, 1))
    assert time.perf_counter() - began < 1.0
