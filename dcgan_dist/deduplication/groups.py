"""Groups of images with the same, or nearly the same, binary code.

Exact collisions are found by sorting: O(n log n) comparisons of codes, far from any pair of images that is looked at.
Codes within a radius r > 0 are found by the pigeonhole principle: cut into r + 1 bands, two such codes are equal in at
least one band; so only codes that share a band are compared, and none is missed. Groups are the connected components.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dcgan_dist.deduplication.codes import Codes

Numbers = npt.NDArray[np.uint32]

_CHUNK = 1 << 16  # codes compared at a time
_MOST_EDGES = 1 << 22  # kept before they are joined


def find_groups(codes: Codes, readable: npt.NDArray[np.bool_], radius: int, code_size: int) -> Numbers:
    """Return for each image the first image of its group, itself where it is alone or unreadable; shape (n,).

    Args:
        codes: shape (n, words), n below 2**32.
        readable: which images have a code, shape (n,).
        radius: bits in which the codes of two neighbours in a group may differ.
        code_size: bits of a code.
    """
    first = _same_codes(codes, readable)
    if radius == 0:
        return first
    # Each code once: its first image. Codes of many images would fill a band's bucket with themselves.
    unique = np.flatnonzero(readable & (first == np.arange(len(first), dtype=np.uint32))).astype(np.uint32)
    component = _components(codes[unique], radius, code_size)
    leader = np.empty(component.max(initial=-1) + 1, dtype=np.uint32)
    leader[component[::-1]] = unique[::-1]  # of several that are written, the last one stays: the lowest
    of_unique = leader[component]
    position = np.searchsorted(unique, first[readable])
    first[readable] = of_unique[position]
    return first


def _same_codes(codes: Codes, readable: npt.NDArray[np.bool_]) -> Numbers:
    """Return for each image the first one with the same code; itself where it is unreadable."""
    first = np.arange(len(codes), dtype=np.uint32)
    # Stable, so that within a run of equal codes the order of the images stays.
    order = np.lexsort(codes.T).astype(np.uint32)
    order = order[readable[order]]
    head = 0  # where the run at the end of the last chunk begins
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        before = order[np.maximum(np.arange(start, start + len(part)) - 1, 0)]
        starts = (codes[part] != codes[before]).any(1)
        starts[0] |= start == 0
        heads = np.maximum.accumulate(np.where(starts, np.arange(start, start + len(part)), head))
        first[part] = order[heads]
        head = int(heads[-1])
    return first


def _components(codes: Codes, radius: int, code_size: int) -> npt.NDArray[np.int32]:
    """Return the number of the connected component of each of some different codes, shape (n,)."""
    component = np.arange(len(codes), dtype=np.int32)
    ends: list[tuple[Numbers, Numbers]] = []
    held = 0
    for one, other in _neighbours(codes, radius, code_size):
        ends.append((one, other))
        held += len(one)
        if held >= _MOST_EDGES:
            component, ends, held = _join(component, ends), [], 0
    return _join(component, ends)


def _join(component: npt.NDArray[np.int32], ends: list[tuple[Numbers, Numbers]]) -> npt.NDArray[np.int32]:
    """Return the components after joining those of the two ends of each edge."""
    if not ends:
        return component
    one, other = (component[np.concatenate(side)] for side in zip(*ends, strict=True))
    size = int(component.max()) + 1
    graph = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(size, size))
    joined = connected_components(graph, directed=False)[1].astype(np.int32, copy=False)
    result: npt.NDArray[np.int32] = joined[component]
    return result


def _neighbours(codes: Codes, radius: int, code_size: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield the pairs of different codes that are within the radius, some of them more than once."""
    bands = min(radius + 1, code_size)
    for band in range(bands):
        low, high = band * code_size // bands, (band + 1) * code_size // bands
        keys = codes & _mask(low, high, codes.shape[1])
        order = np.lexsort(keys.T).astype(np.uint32)
        ends = np.flatnonzero(np.append((keys[order[1:]] != keys[order[:-1]]).any(1), True))
        del keys
        # How many codes of the same bucket follow each one, in the order of the band.
        starts = np.concatenate([[0], ends[:-1] + 1])
        behind = (np.repeat(ends, ends - starts + 1) - np.arange(len(order))).astype(np.uint32)
        here = np.flatnonzero(behind).astype(np.uint32)
        step = 1
        while len(here):
            for start in range(0, len(here), _CHUNK):
                part = here[start : start + _CHUNK]
                one, other = order[part], order[part + step]
                near = np.bitwise_count(codes[one] ^ codes[other]).sum(1, dtype=np.uint16) <= radius
                if near.any():
                    yield one[near], other[near]
            step += 1
            here = here[behind[here] >= step]


def _mask(low: int, high: int, words: int) -> Codes:
    """Return a code with the bits from `low` to before `high` set."""
    value = (1 << high) - (1 << low)
    return np.array([(value >> (64 * word)) & ((1 << 64) - 1) for word in range(words)], dtype=np.uint64)
