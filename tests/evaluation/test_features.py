"""Features of discriminators, and the files that keep them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.images import fit
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import ConfigError, DataError, RunDirectoryError
from dcgan_dist.evaluation.feature_files import FeatureFiles, RawPixels
from dcgan_dist.evaluation.features import (
    load_discriminator,
    measure_statistics,
    pool_maps,
    prepare_extractor,
    random_discriminator,
)
from dcgan_dist.parallel import LocalPool
from dcgan_dist.runs.run import Run

IMAGENET = ModelConfig(image_size=32, channels=3, classes=0, kernel_size=3, convs_per_scale=2, ndf=128)
SVHN = ModelConfig(image_size=32, channels=3, classes=0, ndf=64)
SMALL = ModelConfig(image_size=16, channels=3, classes=0, ndf=4)
CPU = torch.device("cpu")


def images_of(count, size, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def reference(trained, images):
    """Return the features by their definition: scale, run in evaluation mode, pool by loops, concatenate."""
    low, high = trained.image_range
    real = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 * (high - low) + low
    network = trained.network.double()
    with torch.no_grad():
        maps = network.feature_maps(real, torch.zeros(len(images), trained.model.classes or 0).double())
    network.float()
    rows = []
    for layer in maps:
        step = layer.shape[2] // 4
        cells = [
            layer[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].amax((2, 3))
            for i in range(4)
            for j in range(4)
        ]
        rows.append(torch.stack(cells, 2).flatten(1))
    return torch.cat(rows, 1).numpy()


@pytest.mark.parametrize(("model", "values"), [(IMAGENET, 28_672), (SVHN, 7_168)])
def test_the_networks_of_the_paper_have_its_numbers_of_features(tmp_path, model, values):
    assert prepare_extractor(random_discriminator(model, 0), tmp_path).dimension == values


def test_features_are_the_maxima_over_a_grid_of_every_layer(tmp_path):
    trained, images = random_discriminator(SVHN, 3), images_of(3, 32)
    extractor = prepare_extractor(trained, tmp_path, dtype="float32")
    np.testing.assert_allclose(extractor(images), reference(trained, images), rtol=1e-4, atol=1e-5)


def test_batch_norm_is_folded_with_its_statistics_weights_and_biases(tmp_path):
    trained, images = random_discriminator(SVHN, 3), images_of(3, 32)
    random = torch.Generator().manual_seed(0)
    for module in trained.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    extractor = prepare_extractor(trained, tmp_path, dtype="float32")
    np.testing.assert_allclose(extractor(images), reference(trained, images), rtol=1e-4, atol=1e-4)


def test_the_released_pooling_of_three_layers_gives_the_grid_of_the_paper_and_refuses_other_networks(tmp_path):
    trained, images = random_discriminator(SVHN, 0), images_of(2, 32)
    both = [prepare_extractor(trained, tmp_path, pooling=pooling)(images) for pooling in ("paper", "released")]
    np.testing.assert_array_equal(*both)
    with pytest.raises(ConfigError, match="3 conv layers, but this one has 6"):
        prepare_extractor(random_discriminator(IMAGENET, 0), tmp_path, pooling="released")


def test_maps_that_do_not_divide_by_four_are_pooled_to_the_grid_too():
    maps = torch.rand(2, 3, 7, 7)
    (rows,) = pool_maps([maps], "paper")
    torch.testing.assert_close(rows, nn.functional.adaptive_max_pool2d(maps, 4).flatten(1))


def test_a_conditional_discriminator_gets_no_label(tmp_path):
    model = ModelConfig(name="cdcgan", image_size=28, channels=1, classes=10, ngf=4, ndf=4)
    trained, images = random_discriminator(model, 0), images_of(3, 28, 1)
    assert trained.image_range == (0.0, 1.0)
    rows = prepare_extractor(trained, tmp_path, dtype="float32")(images)
    real = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        maps = trained.network.feature_maps(real, torch.zeros(3, 10))
    np.testing.assert_allclose(rows, torch.cat(pool_maps(maps, "paper"), 1).numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_the_features_of_dense_layers_are_their_activations_whatever_the_pooling(tmp_path, name):
    classes = 3 if name == "cgan" else 0
    model = ModelConfig(
        name=name, image_size=28, channels=1, classes=classes, discriminator_units="8,5", dropout=0.5, maxout=2
    )
    trained, images = random_discriminator(model, 0), images_of(40, 28, 1)
    extractor = prepare_extractor(trained, tmp_path, dtype="float32")
    assert extractor.dimension == 13
    rows = extractor(images)
    real = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        hidden = trained.network.feature_maps(real, torch.zeros(40, classes))
    np.testing.assert_allclose(rows, torch.cat(hidden, 1).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        prepare_extractor(trained, tmp_path, dtype="float32", pooling="released")(images), rows
    )


def test_bf16_is_close_to_float32(tmp_path):
    trained, images = random_discriminator(SVHN, 0), images_of(8, 32)
    exact, short = (prepare_extractor(trained, tmp_path, precision=name)(images) for name in ("fp32", "bf16"))
    difference = np.abs(exact.astype(np.float64) - short).mean() / np.abs(exact.astype(np.float64)).mean()
    assert 0 < difference < 0.02


def test_measured_statistics_are_the_means_of_each_batchs_own(tmp_path):
    dataset = open_dataset("rooms:300", image_size=16)
    trained = random_discriminator(SMALL, 1)
    measured = measure_statistics(trained, dataset, CPU)
    from dcgan_dist.data.stream import ImageStream

    stream = ImageStream(dataset, seed=0, batch_size=128)
    first, second = trained.network.layers
    means, variances = [], []
    for number in range(2):
        x = stream.read(number).images.permute(0, 3, 1, 2).double() / 127.5 - 1
        h = second.conv.double()(first.double()(x))
        means.append(h.mean((0, 2, 3)))
        variances.append(h.var((0, 2, 3), correction=0))
    norm = measured.network.layers[1].norm
    torch.testing.assert_close(norm.running_mean.double(), sum(means) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), sum(variances) / 2, rtol=1e-4, atol=1e-7)
    trained.network.float()
    keys = {prepare_extractor(made, tmp_path).key for made in (trained, measured)}
    assert len(keys) == 2


def test_nan_features_are_refused_with_their_layer(tmp_path):
    trained = random_discriminator(SVHN, 0)
    with torch.no_grad():
        trained.network.layers[1].conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunDirectoryError, match="NaN from layer 2 of 3 on"):
        prepare_extractor(trained, tmp_path)(images_of(1, 32))
    trained = random_discriminator(SVHN, 1)
    with torch.no_grad():
        trained.network.layers[0].conv.weight.fill_(1e4)
    with pytest.raises(RunDirectoryError, match="too large for float16: take --store float32"):
        prepare_extractor(trained, tmp_path)(np.full((1, 32, 32, 3), 255, np.uint8))


def test_a_run_gives_its_discriminators_by_step(finished_run):
    run = finished_run(1)
    steps = Run(run).steps
    assert steps[-1] == 24
    trained = load_discriminator(Run(run), 24)
    state = json.loads((run / "checkpoints/step-00000024/state.json").read_text())
    assert (trained.digest, trained.step, trained.image_range) == (state["digest"], 24, (-1.0, 1.0))
    assert load_discriminator(Run(run), steps[0]).digest != trained.digest


def test_runs_that_cannot_be_scored_are_refused_in_a_line(finished_run, tmp_path):
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        _ = Run(tmp_path).steps
    run = tmp_path / "run"
    shutil.copytree(finished_run(1), run)
    with pytest.raises(RunDirectoryError, match=r"no whole checkpoint of step 7; it has those of steps .*24"):
        load_discriminator(Run(run), 7)
    weights = run / "checkpoints/step-00000024/discriminator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunDirectoryError, match=r"discriminator\.safetensors is not what was written"):
        load_discriminator(Run(run), 24)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("ndf: 4", "ndf: 8"))
    with pytest.raises(RunDirectoryError, match="another architecture"):
        load_discriminator(Run(run), 20)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunDirectoryError, match="no checkpoint yet"):
        _ = Run(run).steps


def test_rows_are_those_of_the_records_in_their_order_at_the_size_of_the_network(tmp_path):
    dataset = open_dataset("rooms:300", image_size=32)
    values = FeatureFiles(tmp_path).get(RawPixels(16, 3), dataset, LocalPool(1))
    assert (values.shape, values.dtype) == ((300, 768), np.uint8)
    images, labels = read_records(dataset, 0, 0, 300)
    np.testing.assert_array_equal(values[299].reshape(16, 16, 3), fit(images[299], 16, 3))
    np.testing.assert_array_equal(labels, dataset.labels())


@pytest.mark.slow
def test_two_processes_give_the_same_rows_as_one(tmp_path):
    dataset = open_dataset("rooms:600", image_size=16)
    made = []
    for workers in (1, 2):
        cache = tmp_path / str(workers)
        cache.mkdir()
        extractor = prepare_extractor(random_discriminator(SMALL, 0), cache)
        made.append(FeatureFiles(cache).get(extractor, dataset, LocalPool(workers)))
    np.testing.assert_allclose(made[0].astype(float), made[1].astype(float), rtol=1e-3)


def test_rows_are_reused_only_for_the_same_weights_data_and_settings(tmp_path):
    dataset = open_dataset("rooms:300", image_size=16)
    files = FeatureFiles(tmp_path)
    trained = random_discriminator(SMALL, 0)
    for changes in ({}, {"precision": "bf16"}, {"dtype": "float32"}):
        files.get(prepare_extractor(trained, tmp_path, **changes), dataset, LocalPool(1))
    files.get(prepare_extractor(random_discriminator(SMALL, 1), tmp_path), dataset, LocalPool(1))
    files.get(prepare_extractor(trained, tmp_path), open_dataset("rooms:301", image_size=16), LocalPool(1))
    assert files.made_images == 4 * 300 + 301
    files.get(prepare_extractor(random_discriminator(SMALL, 0), tmp_path), dataset, LocalPool(1))
    assert files.made_images == 4 * 300 + 301
    files.clear()
    assert not list(files.folder.iterdir())


def test_the_cache_is_bounded_and_removes_the_least_recently_used_entries(tmp_path):
    datasets = [open_dataset(f"rooms:{count}", image_size=16) for count in (300, 301, 302)]
    pixels = RawPixels(16, 3)
    limit = 2.5 * 300 * 768 / (1 << 30)
    for number in (0, 1, 0, 2):
        FeatureFiles(tmp_path, limit).get(pixels, datasets[number], LocalPool(1))
        time.sleep(0.02)
    again = FeatureFiles(tmp_path, limit)
    for number, made in ((2, 0), (0, 0), (1, 301)):
        again.made_images = 0
        again.get(pixels, datasets[number], LocalPool(1))
        assert again.made_images == made, number
    with pytest.raises(ConfigError, match="cache_gib is"):
        FeatureFiles(tmp_path, limit / 10).get(pixels, open_dataset("rooms:600", image_size=16), LocalPool(1))


KILLED = """
import os, signal, sys
from pathlib import Path
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.evaluation import feature_files
from dcgan_dist.parallel import LocalPool
feature_files._SYNC_SECONDS = 0.0
def report(done, of):
    if done > 600:
        os.kill(os.getpid(), signal.SIGKILL)
feature_files.FeatureFiles(Path(sys.argv[1])).get(
    feature_files.RawPixels(16, 3), open_dataset("rooms:1500", image_size=16), LocalPool(1), report)
"""


@pytest.mark.slow
def test_a_killed_extraction_is_continued(tmp_path):
    dataset = open_dataset("rooms:1500", image_size=16)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL
    files = FeatureFiles(tmp_path)
    values = files.get(RawPixels(16, 3), dataset, LocalPool(1))
    assert 700 < files.made_images < 1100
    np.testing.assert_array_equal(values, read_records(dataset, 0, 0, 1500)[0].reshape(1500, -1))


def test_damaged_shards_end_the_extraction_and_leave_no_complete_entry(tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(open_dataset("rooms:300", image_size=16).cache, folder)
    tar = next(folder.glob("*.tar"))
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(DataError, match=r"is damaged at byte .*the file ends before"):
        FeatureFiles(tmp_path).get(RawPixels(16, 3), open_dataset(str(folder)), LocalPool(1))
    assert not list((tmp_path / "features").glob("*/about.json"))


def test_checkpoints_that_a_live_run_has_removed_meanwhile_are_skipped(finished_run):
    run, lines = Run(finished_run(1)), []
    loaded = run.load_each(load_discriminator, [16, 18, 24], lines.append)
    assert [trained.step for trained in loaded] == [16, 24]
    (line,) = lines
    assert line.startswith("step 18 is not scored: its checkpoint is gone")
    with pytest.raises(RunDirectoryError, match="no whole checkpoint of step 18"):
        next(run.load_each(load_discriminator, [18], lines.append))
