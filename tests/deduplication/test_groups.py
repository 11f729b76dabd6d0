"""Groups of codes, compared with an all-pairs search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist.deduplication.codes import pack_codes
from dcgan_dist.deduplication.groups import find_groups


def reference(bits: np.ndarray, readable: np.ndarray, radius: int) -> list[int]:
    """Return the first image that each is connected to, by comparing all pairs."""
    count = len(bits)
    first = list(range(count))
    changed = True
    while changed:
        changed = False
        for one in range(count):
            for other in range(count):
                near = readable[one] and readable[other] and (bits[one] != bits[other]).sum() <= radius
                if near and first[other] < first[one]:
                    first[one], changed = first[other], True
    return first


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    centres=st.integers(1, 6),
    flips=st.integers(0, 4),
    radius=st.integers(0, 3),
    code_size=st.sampled_from([8, 64, 72, 128, 256]),
)
def test_groups_are_those_of_comparing_every_pair(
    seed: int, count: int, centres: int, flips: int, radius: int, code_size: int
) -> None:
    draws = np.random.default_rng(seed)
    bits = (draws.random((centres, code_size)) < 0.5)[draws.integers(centres, size=count)]
    for row in bits:
        row[draws.integers(code_size, size=draws.integers(flips + 1))] ^= True
    readable = draws.random(count) < 0.9
    found = find_groups(pack_codes(bits), readable, radius, code_size)
    assert found.tolist() == reference(bits, readable, radius)


def test_a_chain_of_neighbours_is_one_group() -> None:
    bits = np.tri(12, 128, -1, dtype=np.bool_)  # each differs from the next in one bit
    assert find_groups(pack_codes(bits), np.ones(12, dtype=np.bool_), 1, 128).tolist() == [0] * 12


@pytest.mark.parametrize("radius", [0, 2])
def test_the_kept_image_is_the_first_in_order_across_chunks(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcgan_dist.deduplication.groups._CHUNK", 7)
    monkeypatch.setattr("dcgan_dist.deduplication.groups._MOST_EDGES", 5)
    draws = np.random.default_rng(1)
    which = draws.integers(20, size=300)
    bits = (draws.random((20, 128)) < 0.5)[which]
    found = find_groups(pack_codes(bits), np.ones(300, dtype=np.bool_), radius, 128)
    assert found.tolist() == [int(np.flatnonzero(which == number)[0]) for number in which]


def test_unreadable_images_join_no_group_even_with_equal_codes() -> None:
    codes = np.zeros((4, 2), dtype=np.uint64)
    assert find_groups(codes, np.array([False, True, False, True]), 0, 128).tolist() == [0, 1, 2, 1]
