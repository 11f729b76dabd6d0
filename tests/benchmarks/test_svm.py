"""The reports of `svm`, on samples that are small enough to check that both sides solve the same problem."""

import json

import numpy as np
import pytest
import torch

from benchmarks.svm import (
    CLASSES,
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
    single, path = compare_path(x[:300], y[:300], x[300:], y[300:], 1, CPU)
    draws = compare_draws(x[:300], y[:300], x[300:], y[300:], 3, CPU, size=100)
    assert max(abs(row["relative_difference_of_objectives"]) for row in [single, *path["path"]]) <= 1e-3
    assert draws["largest_relative_difference_of_objectives"] <= 1e-3
    assert single["c"] in {row["c"] for row in path["path"]}
    for record in (single, path, draws):
        assert record["cpu_times"] > 0
        assert record["linear_svc_cpu_seconds"] > 0, "of the processor"
    assert sum(row["linear_svc_cpu_seconds"] for row in path["path"]) == pytest.approx(
        path["linear_svc_cpu_seconds"], abs=0.05
    )
    json.dumps([single, path, draws])


@pytest.mark.slow
def test_the_memory_of_a_large_fit_is_measured_in_its_own_process():
    x, y = samples(100)
    record = measure_memory(x, y, CPU, count=2000)
    assert record["gap"] <= 1e-4
    assert 0.1 < record["peak_memory_gib"] < 3  # torch itself takes some


def test_features_are_as_wide_as_the_papers(monkeypatch, tmp_path):
    monkeypatch.setenv("DCGAN_DIST_DATA", str(tmp_path))
    images, classes, name = labelled_images(130)
    assert (name, images.shape, len(classes)) == ("rooms", (130, 32, 32, 3), 130)
    assert random_features(images, 7168).shape == (130, 7168)
