"""The reports of `svm`, on samples that are small enough to check that both sides solve the same problem."""

import numpy as np
import pytest
import torch

from benchmarks.measuring import Bench
from benchmarks.svm import (
    CLASSES,
    CS,
    Samples,
    compare_draws,
    compare_path,
    labelled_images,
    measure_memory,
    random_features,
)

CPU = torch.device("cpu")


def samples(count, width=60):
    random = np.random.default_rng(0)
    y = random.permutation(np.arange(count) % CLASSES)
    x = random.normal(size=(CLASSES, width))[y] + 3 * random.normal(size=(count, width))
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def test_both_sides_reach_the_same_objective_and_accuracy():
    x, y = samples(600)
    halves = Samples("noise", x[:300], y[:300], x[300:], y[300:])
    bench = Bench("svm")
    path = list(compare_path(bench, halves, CPU))
    draws = list(compare_draws(bench, halves, 3, CPU, size=100))
    differences = [record for record in path + draws if record.unit.startswith("relative difference")]
    assert [record.rounds for record in differences] == [len(CS), 1, 3]
    assert max(record.spread[1] for record in differences) <= 1e-3
    accuracies = [record for record in path + draws if record.unit == "share"]
    assert [record.times_the_baseline for record in accuracies] == pytest.approx([1, 1, 1], abs=0.02)
    assert {record.unit for record in path + draws} >= {"s", "CPU s"}


@pytest.mark.slow
def test_the_memory_of_a_large_fit_is_measured_in_its_own_process():
    x, y = samples(100)
    records = measure_memory(Bench("svm"), Samples("noise", x, y, x, y), CPU, 2000)
    found = {record.unit: record.value for record in records}
    assert found["certified gap"] <= 1e-4
    assert 0.1 < found["GiB"] < 3  # torch itself takes some


def test_features_are_as_wide_as_the_papers(monkeypatch, tmp_path):
    monkeypatch.setenv("DCGAN_DIST_DATA", str(tmp_path))
    images, classes, name = labelled_images(130)
    assert (name, images.shape, len(classes)) == ("rooms", (130, 32, 32, 3), 130)
    assert random_features(images, 7168).shape == (130, 7168)
