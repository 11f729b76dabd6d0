"""Groups of images with the same, or nearly the same, binary code.

Equal codes are found by sorting: O(n log n) comparisons instead of one for each pair of images. Codes within a radius
r > 0 are found by the pigeonhole principle: if codes are cut into r + 1 bands, two codes within the radius are equal in
at least one band. So only codes with an equal band are compared, and none is missed. Groups are the connected
components.
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
_MOST_EDGES = 1 << 22  # collected before components are joined, to bound the memory


def find_groups(codes: Codes, readable: npt.NDArray[np.bool_], radius: int, code_size: int) -> Numbers:
    """Return for each image the first image of its group, or itself if it is alone or unreadable; shape (n,).

    Args:
        codes: shape (n, words), n below 2**32.
        readable: which images have a code, shape (n,).
        radius: number of bits in which the codes of two neighbours in a group may differ.
        code_size: bits of a code.
    """
    first = _same_codes(codes, readable)
    if radius == 0:
        return first
    # Only the first image of each code: a code of many images would fill a band's bucket with copies of itself.
    unique = np.flatnonzero(readable & (first == np.arange(len(first), dtype=np.uint32))).astype(np.uint32)
    component = _components(codes, unique, radius, code_size)
    leader = np.empty(component.max(initial=-1) + 1, dtype=np.uint32)
    leader[component[::-1]] = unique[::-1]  # NumPy keeps the last of several values written to an index: the lowest
    of_unique = leader[component]
    position = np.searchsorted(unique, first[readable])
    first[readable] = of_unique[position]
    return first


def _same_codes(codes: Codes, readable: npt.NDArray[np.bool_]) -> Numbers:
    """Return for each image the first one with the same code; itself if it is unreadable."""
    first = np.arange(len(codes), dtype=np.uint32)
    # lexsort is stable, so that images with equal codes keep their order.
    order = np.lexsort(codes.T).astype(np.uint32)
    order = order[readable[order]]
    head = 0  # start of the equal codes at the end of the previous chunk
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        before = order[np.maximum(np.arange(start, start + len(part)) - 1, 0)]
        starts = (codes[part] != codes[before]).any(1)
        starts[0] |= start == 0
        heads = np.maximum.accumulate(np.where(starts, np.arange(start, start + len(part)), head))
        first[part] = order[heads]
        head = int(heads[-1])
    return first


def _components(codes: Codes, unique: Numbers, radius: int, code_size: int) -> npt.NDArray[np.int32]:
    """Return the component number of each of the images `unique`, which all have different codes."""
    component = np.arange(len(unique), dtype=np.int32)
    ends: list[tuple[Numbers, Numbers]] = []
    held = 0
    for one, other in _neighbours(codes, unique, radius, code_size):
        ends.append((one, other))
        held += len(one)
        if held >= _MOST_EDGES:
            component, ends, held = _join(component, ends), [], 0
    return _join(component, ends)


def _join(component: npt.NDArray[np.int32], ends: list[tuple[Numbers, Numbers]]) -> npt.NDArray[np.int32]:
    """Return the components after joining those at the two ends of each edge."""
    if not ends:
        return component
    pairs = np.concatenate([component[np.stack(side)] for side in ends], axis=1)
    # A graph of only the components that have an edge: most have none.
    nodes, linked = np.unique(pairs, return_inverse=True)
    one, other = linked.reshape(pairs.shape)
    graph = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(len(nodes), len(nodes)))
    count, joined = connected_components(graph, directed=False)
    lowest = np.empty(count, dtype=np.int32)
    lowest[joined[::-1]] = nodes[::-1]  # nodes ascend, and the last value written to an index stays: the lowest
    renamed = np.arange(component.max() + 1, dtype=np.int32)
    renamed[nodes] = lowest[joined]
    result: npt.NDArray[np.int32] = renamed[component]
    return result


def _neighbours(codes: Codes, unique: Numbers, radius: int, code_size: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield the pairs of images (by index in `unique`) within the radius, some more than once."""
    # Within a bucket of equal bands, compare each image with the next one, then with the next but one, and so on.
    bands = min(radius + 1, code_size)
    for band in range(bands):
        order, following = _buckets(codes, unique, band * code_size // bands, (band + 1) * code_size // bands)
        here = np.flatnonzero(following).astype(np.uint32)
        step = 1
        while len(here):
            for start in range(0, len(here), _CHUNK):
                part = here[start : start + _CHUNK]
                one, other = order[part], order[part + step]
                near = np.bitwise_count(codes[unique[one]] ^ codes[unique[other]]).sum(1, dtype=np.uint16) <= radius
                if near.any():
                    yield one[near], other[near]
            step += 1
            here = here[following[here] >= step]
        del order, following, here  # free the memory before the next band needs as much


def _buckets(codes: Codes, unique: Numbers, low: int, high: int) -> tuple[Numbers, Numbers]:
    """Return the indices in `unique` sorted by the bits [low, high), and the number of equal ones after each."""
    keys = [_word(codes, unique, at, min(at + 64, high)) for at in range(low, high, 64)]
    order = (np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys)).astype(np.uint32)
    ends = np.zeros(len(order), dtype=np.bool_)
    ends[-1:] = True
    for key in keys:
        for start in range(0, len(order) - 1, _CHUNK):
            part = key[order[start : start + _CHUNK + 1]]
            ends[start : start + len(part) - 1] |= part[1:] != part[:-1]
    del keys
    last = np.flatnonzero(ends).astype(np.uint32)
    lengths = last + np.uint32(1)
    lengths[1:] -= lengths[:-1].copy()
    following = np.repeat(last, lengths)
    following -= np.arange(len(order), dtype=np.uint32)
    return order, following


def _word(codes: Codes, unique: Numbers, low: int, high: int) -> npt.NDArray[np.uint64]:
    """Return up to 64 bits, [low, high), of the codes of the images `unique`."""
    word, shift = divmod(low, 64)
    key: npt.NDArray[np.uint64] = codes[unique, word]
    key >>= np.uint64(shift)
    if word != (high - 1) // 64:
        key |= codes[unique, word + 1] << np.uint64(64 - shift)
    key &= np.uint64((1 << (high - low)) - 1)
    return key
