"""Choose the units that become bits of the code, and their thresholds, from images, near-copies and mirror images.

A bit is useful if it separates images that are no duplicates, and harmful if it flips between an image and its copy.
Both are counted here. An image and the mirror image of another serve as images that are no duplicates: natural images
have the same statistics when mirrored, but duplicates in the set are no duplicates any more when one is mirrored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]

FALSE_SHARE = 1e-4
"""Share of the images of a set that may be removed because of random collisions."""

_QUANTILES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FLIP_FLOOR = 1e-3  # added to the share of flips: rarer ones cannot be measured
_ENOUGH_PAIRS = 500  # to measure the share of them in which a unit agrees


def choose_thresholds(activations: Floats, copies: Floats, mirrored: Floats) -> npt.NDArray[np.float32]:
    """Return for each unit the threshold that separates the most pairs of different images per flip; (code_size,).

    A unit that is the same for all images gets an infinite threshold.

    Args:
        activations: of some images, shape (n, code_size).
        copies: activations of a near-copy of each.
        mirrored: activations of the mirror image of each.
    """
    best = np.full(activations.shape[1], np.inf, dtype=np.float32)
    best_value = np.zeros(activations.shape[1])
    for candidates in (np.zeros_like(best), *np.quantile(activations, _QUANTILES, axis=0).astype(np.float32)):
        bits = activations > candidates
        ones, mirror_ones = bits.mean(0), (mirrored > candidates).mean(0)
        agreement = ones * mirror_ones + (1 - ones) * (1 - mirror_ones)
        flips = (bits != (copies > candidates)).mean(0) + _FLIP_FLOOR
        value = -np.log2(np.clip(agreement, 1e-9, 1)) / flips
        better = value > best_value
        best[better], best_value[better] = candidates[better], value[better]
    return best


def choose_units(bits: Bits, copies: Bits, mirrored: Bits, count: int, units: int | None = None) -> list[int]:
    """Return the units whose bits make up the code, the most useful first.

    A greedy choice: the next unit is the one that separates the most pairs of different images that still have equal
    codes, per copy whose code changes. Units are added until, among `count` images, only few (`FALSE_SHARE`) would
    collide by chance. When too few pairs with equal codes are left to be counted, each unit is assumed to separate the
    same share as at the last count.

    Args:
        bits: of some images, shape (n, code_size).
        copies: bits of a near-copy of each.
        mirrored: bits of the mirror image of each.
        count: number of images in the whole set.
        units: number of units to choose, regardless of collisions; None to choose by collisions.
    """
    size = bits.shape[1]
    pairs = float(len(bits)) ** 2
    allowed = FALSE_SHARE * count / (count**2 / 2) * pairs
    group, mirror_group = np.zeros(len(bits), dtype=np.int64), np.zeros(len(bits), dtype=np.int64)
    alike = np.ones(len(bits), dtype=np.bool_)  # copies that still have the code of their image
    agreement = np.ones(size)
    chosen: list[int] = []
    while len(chosen) < (size if units is None else units) and (units is not None or pairs > allowed):
        if pairs >= _ENOUGH_PAIRS:
            counted = [_agreeing(group, bits[:, unit], mirror_group, mirrored[:, unit]) for unit in range(size)]
            agreement = np.clip(np.array(counted) / pairs, 1e-6, 1)
        flips = (bits[alike] != copies[alike]).mean(0) if alike.any() else np.zeros(size)
        value = -np.log2(agreement) / (flips + _FLIP_FLOOR)
        value[chosen] = -1
        unit = int(value.argmax())
        if value[unit] <= 0:
            break
        chosen.append(unit)
        pairs *= agreement[unit]
        alike &= bits[:, unit] == copies[:, unit]
        group, mirror_group = _split(group, bits[:, unit], mirror_group, mirrored[:, unit])
    return chosen


def _agreeing(group: npt.NDArray[np.int64], bit: Bits, mirror_group: npt.NDArray[np.int64], mirror_bit: Bits) -> float:
    """Return how many pairs of an image and a mirror image would still have equal codes with one more bit."""
    last = int(max(group.max(), mirror_group.max())) * 2 + 2
    ones = np.bincount(2 * group + bit, minlength=last).astype(np.float64)
    return float(ones @ np.bincount(2 * mirror_group + mirror_bit, minlength=last))


def _split(
    group: npt.NDArray[np.int64], bit: Bits, mirror_group: npt.NDArray[np.int64], mirror_bit: Bits
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the groups split by one more bit, numbered without gaps."""
    _, numbers = np.unique(np.concatenate([2 * group + bit, 2 * mirror_group + mirror_bit]), return_inverse=True)
    return numbers[: len(group)], numbers[len(group) :]
