"""The nearest rows equal those of scikit-learn in float64 and of the definition, also for ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dcgan_dist.evaluation import nearest
from dcgan_dist.evaluation.nearest import Bytes, NearestRows, Neighbours


def by_definition(images: Bytes, rows: Bytes) -> Neighbours:
    """Return the nearest rows by the definition, in 64-bit integers."""
    differences = images[:, None].astype(np.int64) - rows[None]
    distances = (differences**2).sum(axis=2)
    return Neighbours(distances.min(axis=1), distances.argmin(axis=1))


def search(images: Bytes, rows: Bytes, pieces: int = 1) -> Neighbours:
    found = NearestRows(images)
    for part in np.array_split(np.arange(len(rows)), pieces):
        found.add(rows[part], int(part[0]))
    return found.found


def assert_same(found: Neighbours, expected: Neighbours) -> None:
    np.testing.assert_array_equal(found.distances, expected.distances)
    np.testing.assert_array_equal(found.rows, expected.rows)


def draws(seed: int, rows: int, columns: int, low: int = 0, high: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(low, high, (rows, columns), dtype=np.uint8)


@pytest.fixture(params=["whole", "floats"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute products: int8, as on a CPU, and floats, as on a GPU or for very large images."""
    if request.param == "floats":
        monkeypatch.setattr(nearest, "_WHOLE", 0)
    return str(request.param)


@pytest.mark.parametrize("columns", [1, 3, 17, 784, 1500])
@pytest.mark.usefixtures("arithmetic")
def test_distances_and_rows_are_those_of_the_definition(columns: int) -> None:
    images, rows = draws(1, 61, columns), draws(2, 700, columns)
    for pieces in (1, 7):
        assert_same(search(images, rows, pieces), by_definition(images, rows))


@pytest.mark.usefixtures("arithmetic")
def test_among_equally_near_rows_the_first_wins_within_and_across_blocks() -> None:
    images = draws(3, 50, 5, 0, 3)
    rows = draws(4, 1000, 5, 0, 3)  # 243 rows are possible, so each occurs several times
    expected = by_definition(images, rows)
    assert len(np.unique(expected.rows)) < 50
    for pieces in (1, 3, 40):
        assert_same(search(images, rows, pieces), expected)


@pytest.mark.usefixtures("arithmetic")
def test_nothing_is_rounded_where_float32_has_gaps() -> None:
    # Distances of 784 * 255**2 = 50,979,600 and a little less, which float32 cannot represent exactly.
    images = np.zeros((3, 784), np.uint8)
    images[:, :3] = np.eye(3, dtype=np.uint8)
    rows = np.full((600, 784), 255, np.uint8)
    rows[np.arange(600), np.arange(600) + 100] = 254
    rows[437, 1] = 254
    assert np.float32(50_979_600) == np.float32(50_979_599)
    assert_same(search(images, rows), by_definition(images, rows))
    assert_same(search(images, rows, 50), by_definition(images, rows))


@pytest.mark.usefixtures("arithmetic")
def test_columns_that_are_the_same_in_all_images_count_too() -> None:
    images, rows = draws(5, 40, 30), draws(6, 300, 30)
    images[:, 4:20] = draws(7, 1, 16)
    assert_same(search(images, rows, 3), by_definition(images, rows))
    assert_same(search(images[:1], rows, 3), by_definition(images[:1], rows))  # one image: all columns are equal


def test_classes_are_those_of_scikit_learn_on_doubles() -> None:
    images, rows = draws(8, 300, 100, 0, 40), draws(9, 2000, 100, 0, 40)
    labels = np.random.default_rng(10).integers(0, 10, 2000)
    reference = KNeighborsClassifier(n_neighbors=1, algorithm="brute").fit(rows.astype(np.float64), labels)
    np.testing.assert_array_equal(labels[search(images, rows, 11).rows], reference.predict(images.astype(np.float64)))


def test_merged_searches_of_parts_equal_one_search() -> None:
    images, rows = draws(11, 80, 6, 0, 4), draws(12, 900, 6, 0, 4)
    parts = []
    for part in np.array_split(np.arange(900), 4):
        apart = NearestRows(images)
        apart.add(rows[part], int(part[0]))
        parts.append(apart.found)
    found = parts[0]
    for later in parts[1:]:
        found = found.merge(later)
    assert_same(found, by_definition(images, rows))


def test_images_may_be_too_large_for_32_bit_integers() -> None:
    columns = nearest._WHOLE + 1
    images, rows = draws(13, 4, columns, 250), np.zeros((9, columns), np.uint8)
    rows[5, :7] = 1
    found = NearestRows(images)
    assert found._dtype == torch.float64
    found.add(rows, 0)
    assert_same(found.found, by_definition(images, rows))
