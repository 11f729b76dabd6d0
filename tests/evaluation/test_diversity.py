"""The fixed feature space, and the metrics in it, compared with brute force and on real images."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch import nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.images import fit
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.evaluation.diversity import (
    GROUPS,
    Reference,
    Rows,
    _auc,
    frechet_distance,
    jackknife,
    judge_copies,
    measure_neighbourhoods,
    measure_support,
    nearest_distances,
    root_of,
)
from dcgan_dist.evaluation.extractor import RANDOM_CONV_DIGEST, RandomConv, random_conv_weights, weights_digest
from dcgan_dist.evaluation.feature_files import FeatureFiles
from dcgan_dist.models import build_networks
from dcgan_dist.parallel import LocalPool

CPU = torch.device("cpu")
IMAGES = 100


def normal(count, dimension=6, seed=0, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, dimension))


def test_the_weights_of_the_feature_space_are_these_bits():
    layers = random_conv_weights()
    assert weights_digest(layers) == RANDOM_CONV_DIGEST
    spread = [weights.std() * np.sqrt(weights[0].size) for weights in layers]
    np.testing.assert_allclose(spread[1:], 1.5, rtol=0.02)
    for weights in layers[1:]:
        np.testing.assert_allclose(weights.sum((1, 2, 3)), 0, atol=1e-5)


def test_a_weight_is_what_the_recipe_says_in_integers():
    source = np.random.Philox(key=np.array([1, 0], np.uint64), counter=np.array([0, 0, 2, 0], np.uint64))
    raw = []
    for _ in range(128 * 9):
        words = [int(draw) >> shift & 0xFFFF for draw in source.random_raw(3) for shift in (0, 16, 32, 48)]
        raw.append(sum(words) - 6 * 65535)
    first = (raw[0] - sum(raw) / len(raw)) / 65536 * 1.5 / np.sqrt(len(raw))
    assert random_conv_weights()[2][0, 0, 0, 0] == pytest.approx(first, rel=1e-6)


def test_the_feature_space_is_the_discriminator_of_the_imagenet_run_without_batch_norm():
    model = ModelConfig(image_size=32, channels=3, classes=0, kernel_size=3, convs_per_scale=2, batch_norm="none")
    network = build_networks(model)[1]
    with torch.no_grad():
        for stage, weights in zip(network.layers, random_conv_weights(), strict=True):
            stage.conv.weight.copy_(torch.from_numpy(weights))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    real = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        maps = network.feature_maps(real, torch.zeros(3, 0))
    expected = nn.functional.adaptive_avg_pool2d(maps[-1], 1).flatten(1)
    got = RandomConv()(images)
    assert got.shape == (3, 512)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(RandomConv()(images[1:2])[0], got[1], rtol=1e-4, atol=1e-6)


def test_grey_images_of_the_right_size_are_features_of_the_same_in_colour(tmp_path):
    from dcgan_dist.data.shards import Recipe, write_shards
    from dcgan_dist.data.sources import open_source

    (tmp_path / "grey").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / "grey" / f"{number}.png")
    recipe = Recipe(image_size=32, channels=1, encoding="raw", name="grey")
    write_shards(open_source("folder", str(tmp_path / "grey"), split="train"), recipe, tmp_path / "shards")
    dataset = open_dataset(tmp_path / "shards")
    assert dataset.channels == 1
    values = FeatureFiles(tmp_path).get(RandomConv(), dataset, LocalPool(1))
    colour = np.repeat(pixels[None, ..., None], 3, axis=3)
    np.testing.assert_allclose(values[0], RandomConv()(colour)[0], rtol=1e-4, atol=1e-6)


def brute_force(real, samples):
    """The definitions, image by image."""

    def radii(rows, k):
        return np.array([np.sort(np.delete(cdist(rows[i : i + 1], rows)[0], i))[k - 1] for i in range(len(rows))])

    between = cdist(real, samples)
    inside = between <= radii(real, 3)[:, None]
    around = between <= radii(samples, 3)[None, :]
    balls = between <= radii(real, 5)[:, None]
    apart = cdist(samples, samples)[np.triu_indices(len(samples), 1)].mean()
    a, b = np.cov(real.T), np.cov(samples.T)
    frechet = np.square(real.mean(0) - samples.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    return {
        "precision": inside.any(0).mean(),
        "recall": around.any(1).mean(),
        "density": balls.sum() / (5 * len(samples)),
        "coverage": balls.any(1).mean(),
        "sample_distance": apart,
        "distance_ratio": apart / cdist(real, real)[np.triu_indices(len(real), 1)].mean(),
        "frechet_distance": frechet,
    }


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.8, 1.0), (0.0, 0.5), (0.0, 2.0)])
def test_metrics_are_those_of_their_definitions(shift, scale):
    real, samples = normal(107), normal(93, seed=1, shift=shift, scale=scale)
    found = Reference(real, CPU).compare(samples)
    expected = brute_force(real, samples)
    assert set(found) == set(expected)
    for name, metric in found.items():
        assert metric.value == pytest.approx(expected[name], rel=1e-9), name
        assert metric.ci95[0] <= metric.value <= metric.ci95[1]
        assert metric.n == 93


def test_metrics_are_the_same_in_small_blocks_and_far_from_the_origin(monkeypatch):
    real, samples = normal(100), normal(100, seed=1)
    whole = Reference(real, CPU).compare(samples)
    monkeypatch.setattr("dcgan_dist.evaluation.diversity._BLOCK_VALUES", 300)
    parts = Reference(real + 1e3, CPU).compare(samples + 1e3)
    for name, metric in whole.items():
        assert parts[name].value == pytest.approx(metric.value, rel=1e-6), name
        np.testing.assert_allclose(parts[name].ci95, metric.ci95, rtol=1e-6)


def test_a_group_that_is_left_out_is_left_out_of_everything():
    real, samples = normal(100), normal(80, seed=1, shift=0.3)
    without = brute_force(real[5:], samples[4:])  # the first of 20 groups of each
    reference, points = Reference(real, CPU), Rows(samples, CPU, Rows(real, CPU).centre)
    own = measure_neighbourhoods(points, (3,))
    precision, _, _ = measure_support(reference.rows, reference.neighbourhoods.radii[3], points)
    recall, _, _ = measure_support(points, own.radii[3], reference.rows)
    _, balls, coverage = measure_support(reference.rows, reference.neighbourhoods.radii[5], points)
    found = {
        "precision": precision[0],
        "recall": recall[0],
        "density": balls[0] / 5,
        "coverage": coverage[0],
        "sample_distance": own.distances[0],
        "frechet_distance": reference.frechet_distances(points)[0],
    }
    for name, value in found.items():
        assert value == pytest.approx(without[name], rel=1e-9), name


def test_equal_rows_have_distance_0_despite_rounding():
    real = normal(100, 50) * 1e3
    metrics = Reference(real, CPU).compare(np.repeat(real[:1], 100, axis=0))
    assert metrics["sample_distance"].value == 0
    assert metrics["recall"].value == pytest.approx(0.01)  # the ball of radius 0 contains the image itself
    same = Reference(real, CPU).compare(real)
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["frechet_distance"].value == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_the_frechet_distance_is_that_of_scipy_also_for_singular_covariances():
    random = np.random.default_rng(0)
    for rank in (40, 7, 0):
        a, b = (m.T @ m for m in (random.normal(size=(60, 40)), random.normal(size=(rank, 40))))
        mean = random.normal(size=40)
        mean_, a_, zero, b_ = (torch.from_numpy(x) for x in (mean, a, np.zeros(40), b))
        got = frechet_distance(mean_, root_of(a_), zero, b_)
        assert frechet_distance(zero, root_of(b_), mean_, a_) == pytest.approx(got, rel=1e-6)
        expected = mean @ mean + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
        assert got == pytest.approx(expected, rel=1e-5 if rank == 7 else 1e-9)


def test_intervals_are_as_wide_as_the_metrics_vary_from_draw_to_draw():
    draws = [
        Reference(normal(200, 4, seed=2 * n), CPU).compare(normal(200, 4, seed=2 * n + 1, shift=0.5)) for n in range(24)
    ]
    for name in draws[0]:
        spread = np.std([draw[name].value for draw in draws], ddof=1)
        half = np.mean([draw[name].ci95[1] - draw[name].ci95[0] for draw in draws]) / 2
        assert 0.7 < half / (2.093 * spread) < 2, name


def test_a_share_that_no_group_changes_still_has_an_interval():
    assert jackknife(np.ones(GROUPS + 1), 50, highest=1.0).ci95 == pytest.approx((0.929, 1.0), abs=1e-3)
    assert jackknife(np.zeros(GROUPS + 1), 50, highest=1.0).ci95 == pytest.approx((0.0, 0.071), abs=1e-3)


def test_nearest_distances_are_those_of_all_pairs_and_0_for_copies():
    training = np.random.default_rng(0).integers(0, 256, (1000, 300), dtype=np.uint8)
    samples = np.random.default_rng(1).integers(0, 256, (40, 300), dtype=np.uint8)
    samples[3] = training[777]
    found = nearest_distances(samples, training, CPU, block=64)
    np.testing.assert_allclose(found, cdist(samples.astype(float), training.astype(float)).min(1), rtol=1e-12)
    assert found[3] == 0


def test_copies_are_distinguished_from_new_images():
    training, held_out, new = normal(400, 8), normal(150, 8, seed=1), normal(150, 8, seed=2)
    copies = training[:150] + normal(150, 8, seed=3, scale=0.01)
    half = np.concatenate((copies[:75], new[:75]))
    far = nearest_distances(held_out, training, CPU)
    of = {
        name: judge_copies(nearest_distances(rows, training, CPU), far, 0)
        for name, rows in (("new", new), ("half", half), ("copies", copies))
    }
    assert of["new"]["auc"].ci95[0] < 0.5 < of["new"]["auc"].ci95[1]
    assert of["new"]["distance_ratio"].ci95[0] < 1 < of["new"]["distance_ratio"].ci95[1]
    assert of["new"]["near_copies"].value < 0.05
    assert of["half"]["near_copies"].value > 0.45
    assert of["new"]["auc"].ci95[1] < of["half"]["auc"].ci95[0]
    assert of["half"]["auc"].ci95[1] < of["copies"]["auc"].value == 1
    assert 0.95 < of["copies"]["auc"].ci95[0] < 1
    assert of["copies"]["distance_ratio"].ci95[1] < 0.1


def test_the_auc_is_the_share_of_pairs_and_its_interval_has_the_stated_coverage():
    samples, held_out = np.round(normal(50, 1)[:, 0], 1), np.round(normal(40, 1, seed=1)[:, 0], 1)
    pairs = (samples[:, None] < held_out) + 0.5 * (samples[:, None] == held_out)
    assert judge_copies(samples, held_out, 0)["auc"].value == pytest.approx(pairs.mean())
    right = 0
    for seed in range(300):
        low, high = _auc(normal(60, 1, 2 * seed)[:, 0], normal(80, 1, 2 * seed + 1, shift=0.7)[:, 0]).ci95
        right += low < 0.6897 < high  # Φ(0.7 / √2)
    assert 0.91 < right / 300 < 0.99


def known_sets(images, other, seed=0):
    """Features of sets with an obvious ranking, the real images first."""
    random, extract = np.random.default_rng(seed), RandomConv()
    as_float, real = images.astype(np.float64), extract(images)
    return {
        "real": real,
        "blurred": extract(np.stack([gaussian_filter(image, (2, 2, 0)) for image in as_float]).astype(np.uint8)),
        "noisy": extract((as_float + random.normal(0, 25, images.shape)).clip(0, 255).astype(np.uint8)),
        "other": extract(other),
        "subset": real[random.integers(0, 8, len(images))],
        "repeated": np.repeat(real[:1], len(images), axis=0),
        "noise": extract(random.integers(0, 256, images.shape, dtype=np.uint8)),
    }


def read_archive(name, count):
    archive = Path(os.environ["DCGAN_DIST_DATA"]) / name
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile() and member.name.lower().endswith(("jpg", "jpeg"))]
        chosen = np.sort(np.random.default_rng(0).permutation(len(members))[:count])
        images = [Image.open(io.BytesIO(tar.extractfile(members[i]).read())).convert("RGB") for i in chosen]
        images = np.stack([fit(np.asarray(image), 32, 3) for image in images])
    return images[np.random.default_rng(1).permutation(count)]


def rooms(count):
    return np.stack([fit(draw_room(0, number)[0], 32, 3) for number in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_train.tar.gz", "rooms"])
def test_every_metric_ranks_known_good_images_above_known_bad_ones(name):
    if name != "rooms" and not os.environ.get("DCGAN_DIST_DATA"):
        pytest.skip("DCGAN_DIST_DATA is not set: no real images")
    images = rooms(2 * IMAGES) if name == "rooms" else read_archive(name, 2 * IMAGES)
    other = rooms(IMAGES) if name != "rooms" else images.transpose(0, 2, 1, 3)[:IMAGES]
    reference = Reference(RandomConv()(images[:IMAGES]), CPU)
    found = {kind: reference.compare(made) for kind, made in known_sets(images[IMAGES:], other).items()}
    real = found.pop("real")
    for kind, metrics in found.items():
        assert metrics["frechet_distance"].value > real["frechet_distance"].value, kind
    for kind in ("noisy", "other", "subset", "repeated", "noise"):
        assert found[kind]["coverage"].value < real["coverage"].value, kind
    for kind in ("noisy", "noise"):
        assert found[kind]["precision"].ci95[1] < real["precision"].value, kind
    for kind in ("noisy", "other", "noise"):
        # The large balls of outliers among the real images mislead precision, but not density.
        assert found[kind]["density"].ci95[1] < real["density"].value, kind
    for kind in ("blurred", "other", "subset", "repeated", "noise"):
        assert found[kind]["recall"].ci95[1] < real["recall"].value, kind
    assert found["repeated"]["distance_ratio"].value == 0
    assert real["distance_ratio"].ci95[0] < 1 < real["distance_ratio"].ci95[1]
    assert found["noise"]["frechet_distance"].value > 3 * real["frechet_distance"].value
