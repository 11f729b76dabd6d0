"""The task one-nn: its classifier agrees with scikit-learn's on the same samples, in any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation.baselines import Pixels
from dcgan_dist.evaluation.labelled import class_labels, open_labelled
from dcgan_dist.evaluation.one_nn import RealImages, deform, evaluate_one_nn, kind_of
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.generation.samples import open_samples
from dcgan_dist.parallel import LocalPool
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import Entry
from tests.generation.conftest import trained

__all__ = ["trained"]


def evaluated(run: Path, workers: int = 1, **settings: Any) -> list[Entry]:
    config = EvaluateConfig(task="one-nn", **{"data": "rooms:300", "data_count": 200, "count": 1500, **settings})
    show: Callable[[str, list[Entry]], None] = lambda _protocol, _entries: None  # noqa: E731
    return evaluate_one_nn(config, Run(run), torch.device("cpu"), LocalPool(workers), show, print)


def untimed(entries: list[Entry]) -> list[Entry]:
    kept = [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]
    return sorted(kept, key=lambda entry: str(entry["method"]))


def rooms(path: str | None, size: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    from dcgan_dist.data.stream import read_records

    data = open_labelled(path, "rooms", image_size=size, channels=3, cache=cache)
    images = np.concatenate([read_records(data, shard, 0, count)[0] for shard, count in enumerate(data.sizes)])
    return images.reshape(len(images), -1), class_labels(data)


@pytest.mark.parametrize("family", ["cgan", "cdcgan"])
def test_errors_are_those_of_scikit_learn_on_the_same_samples_as_doubles(
    trained: Callable[..., Path], family: str
) -> None:
    entry = evaluated(trained(family), data_count=None)[0]
    samples = open_samples(Run(trained(family)), seed=0)
    rows, labels = zip(*samples.images(0, 1500), strict=True)
    from dcgan_dist.storage.cache import cache_directory

    test, truth = rooms(None, 16, cache_directory(None))
    for count in (1000, 1500):
        flat = np.concatenate(rows).reshape(1500, -1)[:count].astype(np.float64)
        reference = KNeighborsClassifier(n_neighbors=1, algorithm="brute").fit(flat, np.concatenate(labels)[:count])
        wrong = int((reference.predict(test.astype(np.float64)) != truth).sum())
        error = entry["metrics"][f"error_at_{count}"]
        assert error["n"] == len(truth) == 2000
        assert error["value"] == pytest.approx(100 * wrong / 2000)


@pytest.mark.slow
def test_scores_are_the_same_in_any_number_of_processes_and_are_written(trained: Callable[..., Path]) -> None:
    run = trained("cgan")
    alone = evaluated(run)
    assert untimed(evaluated(run, workers=2)) == untimed(alone)
    written = untimed(Run(run).entries()["one-nn"])
    assert all(entry in written for entry in untimed(alone))


def test_all_steps_are_not_scored_again(trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("cgan")
    first = evaluated(run, seed=5)
    again = evaluated(run, seed=5, step="all")
    assert again[0] == first[0]  # also the seconds
    assert "scored before" in capsys.readouterr().out


def test_the_deformation_of_an_image_depends_only_on_the_seed_and_its_number() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 8 * 8 * 3), dtype=np.uint8)
    all_at_once = deform(rows, 8, 3, 100)
    np.testing.assert_array_equal(deform(rows[7:12], 8, 3, 107), all_at_once[7:12])
    assert (deform(rows, 8, 4, 100) != all_at_once).any(axis=1).all()
    assert (deform(np.tile(rows[:1], (20, 1)), 8, 3, 100) != rows[0]).any(axis=1).all()


def test_deformations_are_small_and_keep_the_content() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[10:18, 12:16] = 200
    rows = np.tile(image.reshape(1, -1), (300, 1))
    results = deform(rows, 28, 0, 0).reshape(300, 28, 28).astype(np.float64)
    np.testing.assert_allclose(results.sum(axis=(1, 2)), image.sum(), rtol=0.02)  # nothing is lost
    grid = np.arange(28)
    middle = np.stack([(results.sum(axis=axis) * grid).sum(axis=1) for axis in (1, 2)], axis=1)
    offsets = middle / results.sum(axis=(1, 2))[:, None] - [13.5, 13.5]
    assert 1.5 < np.abs(offsets).max() < 2.4  # 28 / 14 pixels, and the effect of the rotation
    assert np.abs(offsets.mean(axis=0)).max() < 0.2
    constant = np.full((4, 64), 77, np.uint8)
    np.testing.assert_array_equal(deform(constant, 8, 0, 0), constant)


def test_real_images_come_unchanged_first_and_deformed_afterwards() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (10, 64), dtype=np.uint8)
    source = RealImages(Pixels(rows), np.array([4, 2, 9]), 8, 0)
    np.testing.assert_array_equal(source.rows(0, 3), rows[[4, 2, 9]])
    np.testing.assert_array_equal(source.rows(3, 8), deform(rows[[4, 2, 9, 4, 2]], 8, 0, 3))
    np.testing.assert_array_equal(source.rows(2, 5), np.concatenate((source.rows(2, 3), source.rows(3, 5))))


def test_an_unconditional_run_has_no_labels_to_train_on(trained: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"an unconditional run .gan., whose samples have no labels"):
        evaluated(trained("gan"))


def test_another_control_than_its_own_is_refused(trained: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="baselines is 'knn'"):
        evaluated(trained("cgan"), baselines=("knn",))


def test_scores_on_other_images_do_not_replace_each_other(trained: Callable[..., Path]) -> None:
    run = trained("cgan")
    one, other = evaluated(run, data_count=150)[0], evaluated(run, data_count=160)[0]
    assert one["protocol"] != other["protocol"]
    assert {one["protocol"], other["protocol"]} <= {entry["protocol"] for entry in Run(run).entries()["one-nn"]}


def test_data_with_other_classes_than_the_runs_are_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16), (9 * number, 0, 0)).save(tmp_path / "set" / name / f"{number}.png")
    with pytest.raises(DataError, match="has the classes right, wrong …, the run left, right …"):
        evaluated(trained("cgan"), test_data=str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"test_data": "rooms:50"}, "holds the images of data"),
        ({"data": "HERE"}, "test_data is missing"),
    ],
)
def test_training_images_are_refused_as_test_images(
    trained: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    from dcgan_dist.data.shards import Recipe, write_shards
    from dcgan_dist.data.sources import room_source

    write_shards(room_source(40, 3), Recipe(image_size=16, channels=3, encoding="raw", name="rooms"), tmp_path / "set")
    given = {key: str(tmp_path / "set") if value == "HERE" else value for key, value in settings.items()}
    with pytest.raises(DataError, match=says):
        evaluated(trained("cgan"), **given)


def test_files_of_known_data_sets_are_recognised_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    assert kind_of(str(tmp_path)) == "mnist"
    assert kind_of("cifar10_train.tar.gz") == "cifar10"
    assert kind_of("faces") == kind_of("s3://bucket/faces") == "folder"
