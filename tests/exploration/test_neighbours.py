from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import room_source
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation.diversity import Metric
from dcgan_dist.exploration import neighbours
from dcgan_dist.exploration.neighbours import (
    AMONG_THEMSELVES,
    Nearest,
    NearestFew,
    NeighboursConfig,
    compare,
    nearest_by_features,
    nearest_by_pixels,
    read_images,
)
from tests.exploration.test_walk import Memoriser, Opened

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """Write shards of rooms of a seed, 16x16 pixels, in two files or more."""

    def make(count: int, seed: int) -> Path:
        folder = tmp_path_factory.mktemp("shards")
        recipe = Recipe(image_size=16, channels=3, encoding="raw", name="rooms", shard_size=count // 2)
        write_shards(room_source(count, seed), recipe, folder)
        return folder

    return make


def all_images(dataset: Dataset) -> np.ndarray:
    return np.concatenate([read_records(dataset, shard, 0, size)[0] for shard, size in enumerate(dataset.sizes)])


def brute_force(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    squared = np.square(queries[:, None].astype(np.int64) - rows[None].astype(np.int64)).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared, order, axis=1), order


@pytest.mark.parametrize(("columns", "values"), [(48, 3), (784, 256), (3072, 256), (30_000, 256)])
def test_the_nearest_rows_are_those_of_brute_force_in_whole_numbers_and_the_first_of_equals(columns, values):
    random = np.random.default_rng(columns)
    count = 700 if columns < 1000 else 60
    rows = random.integers(0, values, (count, columns), dtype=np.uint8)
    queries = np.concatenate((rows[:3], random.integers(0, values, (5, columns), dtype=np.uint8)))
    rows[50] = rows[1]
    search = NearestFew(queries, 4)
    search.add(rows[:37], 0)
    search.add(rows[37:], 37)
    distances, order = brute_force(queries, rows, 4)
    assert np.array_equal(search.found.distances, distances)
    assert np.array_equal(search.found.rows, order)


def test_neighbours_by_pixels_are_found_over_shards_in_blocks(rooms, monkeypatch):
    dataset = open_dataset(rooms(300, 0))
    images, queries = all_images(dataset), all_images(open_dataset(rooms(10, 7)))
    assert len(dataset.tars) > 1
    most = []
    add = NearestFew.add

    def watched(self: NearestFew, rows: np.ndarray, first: int) -> None:
        most.append(len(rows))
        add(self, rows, first)

    monkeypatch.setattr(neighbours, "_READ", 32)
    monkeypatch.setattr(NearestFew, "add", watched)
    found = nearest_by_pixels(queries, dataset, 3, CPU)
    assert max(most) == 32
    assert sum(most) == 300
    peer = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(images.reshape(300, -1).astype(np.float64))
    distances, rows = peer.kneighbors(queries.reshape(10, -1).astype(np.float64))
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances / np.sqrt(images[0].size), rtol=1e-12)

    chosen = np.arange(5, 290, 7)
    some = nearest_by_pixels(queries, dataset, 2, CPU, chosen)
    distances, rows = brute_force(queries.reshape(10, -1), images[chosen].reshape(len(chosen), -1), 2)
    assert np.array_equal(some.rows, rows)
    assert np.array_equal(read_images(dataset, chosen), images[chosen])


def test_neighbours_by_features_are_those_of_float64(tmp_path):
    random = np.random.default_rng(0)
    training, values = random.normal(5, 1, (500, 64)).astype(np.float32), random.normal(5, 1, (9, 64))
    np.save(tmp_path / "training.npy", training)
    found = nearest_by_features(values.astype(np.float32), np.load(tmp_path / "training.npy", mmap_mode="r"), 3)
    distances = np.linalg.norm(values[:, None] - training[None].astype(np.float64), axis=2)
    assert np.array_equal(found.rows, distances.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3], rtol=1e-6)


def test_an_image_is_not_its_own_neighbour_but_its_copy_is():
    found = Nearest(np.array([[0.0, 0.0, 2.0], [1.0, 2.0, 3.0]]), np.array([[4, 9, 1], [5, 6, 7]]))
    others = found.without(np.array([9, -1]))
    assert others.rows.tolist() == [[4, 1], [5, 6]]
    assert others.distances.tolist() == [[0.0, 2.0], [1.0, 2.0]]


def test_equal_distances_give_an_auc_of_half_and_copies_one():
    random = np.random.default_rng(0)
    alike = compare(random.normal(5, 1, 300), random.normal(5, 1, 300), 0)
    copies = compare(np.zeros(300), random.normal(5, 1, 300), 0)
    assert alike["auc"].ci95[0] < 0.5 < alike["auc"].ci95[1]
    assert alike["median"].ci95[0] < 5 < alike["median"].ci95[1]
    assert (copies["auc"].value, copies["near_copies"].value, copies["median"].value) == (1.0, 1.0, 0.0)


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    found = compare(np.arange(1.0, 101.0), np.arange(1.0, 101.0), 0)["median"]
    assert found == Metric(50.5, (40.0, 61.0), 100)  # as in tables of order statistics


def test_only_a_generator_that_memorises_is_detected(opened: Opened, rooms):
    run, shards = opened("gan"), rooms(60, 0)
    images = all_images(open_dataset(shards))
    stored = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    memoriser = replace(run, generator=Memoriser(run.draw_z("stored", 60), stored))
    config = NeighboursConfig(count=3, nearest=2, compared=20, data=str(shards))
    of_copies, of_run = neighbours.measure(config, memoriser).numbers, neighbours.measure(config, run).numbers
    for space in ("pixel", "feature"):
        assert of_copies[space]["auc"]["value"] == 1.0
        assert of_copies[space]["median"]["value"] == pytest.approx(0, abs=1e-5)
        assert of_run[space]["near_copies"]["value"] == 0.0
        assert of_copies["held_out"] == of_run["held_out"] == AMONG_THEMSELVES
        assert min(of_run["distances"][space]["held_out"]) > 0  # an image is not its own neighbour
    shown = memoriser.generate(memoriser.z(range(3)), memoriser.y(3))
    for number, entry in enumerate(of_copies["shown"]):
        for space in ("pixel", "feature"):
            assert np.array_equal(images[entry[space][0]["image"]], shown[number])


def test_held_out_images_are_taken_where_they_are_given(opened: Opened, rooms):
    config = NeighboursConfig(count=2, nearest=1, compared=20, data=str(rooms(60, 0)), test_data=str(rooms(25, 5)))
    drawn = neighbours.measure(replace(config, data_count=30), opened("cgan"))
    assert drawn.numbers["held_out"] == config.test_data
    assert (drawn.numbers["held_out_images"], drawn.numbers["training_images"]) == (20, 30)
    assert drawn.numbers["training_images_in_all"] == 60
    training, held_out = (all_images(open_dataset(path)) for path in (str(config.data), str(config.test_data)))
    squared = brute_force(held_out.reshape(25, -1), training.reshape(60, -1), 1)[0][:, 0]
    assert min(drawn.numbers["distances"]["pixel"]["held_out"]) >= np.sqrt(squared.min() / training[0].size)
    assert neighbours.draw(drawn).png()[:4] == b"\x89PNG"


def test_held_out_images_that_were_trained_on_are_refused(opened: Opened, rooms):
    shards = rooms(60, 0)
    for config, message in (
        (NeighboursConfig(compared=20, data=str(shards), test_data=str(shards)), "holds images of data"),
        (NeighboursConfig(compared=20, data=str(shards), test_data=str(rooms(30, 0))), "pixel for pixel"),
        (NeighboursConfig(compared=20, test_data="rooms:100"), "holds images of data"),
    ):
        with pytest.raises(DataError, match=message):
            neighbours.measure(config, opened("gan"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"nearest": 0}, "nearest is 0"),
        ({"compared": 5}, "compared is 5"),
        ({"data_count": 5}, "data_count is 5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        NeighboursConfig(**settings)


def test_too_few_images_and_a_label_of_none_are_refused(opened: Opened, rooms):
    with pytest.raises(DataError, match="has 10 images"):
        neighbours.measure(NeighboursConfig(data=str(rooms(10, 0))), opened("gan"))
    with pytest.raises(ConfigError, match="unconditional run"):
        neighbours.measure(NeighboursConfig(label="0"), opened("gan"))
