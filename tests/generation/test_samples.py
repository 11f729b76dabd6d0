"""Samples are a function of (seed, i), or of given z."""

import re

import numpy as np
import pytest
import torch
from scipy import stats

from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.generation.samples import BLOCK, Samples, open_samples, read_z, truncated
from dcgan_dist.runs.run import Run
from dcgan_dist.training.draws import one_hot
from dcgan_dist.training.sampling import sample_feature_maps, to_uint8
from dcgan_dist.training.trained import load_generator


def images(samples: Samples, start: int, stop: int) -> np.ndarray:
    return np.concatenate([part for part, _ in samples.images(start, stop)])


@pytest.mark.parametrize(("name", "statistics"), [("dcgan", "running"), ("dcgan", "batch"), ("cgan", "running")])
def test_a_sample_depends_on_seed_and_number_alone(trained, name, statistics):
    samples = open_samples(Run(trained(name, statistics)), seed=5)
    whole = images(samples, 0, 2 * BLOCK + 10)
    assert whole.shape == (2 * BLOCK + 10, 16, 16, 3)
    assert whole.dtype == np.uint8
    for start, stop in ((0, 1), (3, 9), (BLOCK - 1, BLOCK + 1), (2 * BLOCK, 2 * BLOCK + 10)):
        np.testing.assert_array_equal(images(samples, start, stop), whole[start:stop])
    other = open_samples(Run(trained(name, statistics)), seed=6)
    assert not np.array_equal(images(other, 0, 10), whole[:10])


def test_samples_are_the_images_that_the_generator_gives_for_their_z_and_labels(trained):
    run = str(trained("cdcgan"))
    samples = open_samples(Run(run))
    generator, model, _, _ = load_generator(Run(run), samples.step)
    labels = samples.labels(0, BLOCK)
    assert labels.tolist() == [0, 1] * (BLOCK // 2)
    y = one_hot(torch.from_numpy(labels), 2)
    expected, _ = sample_feature_maps(generator, samples.z(0, BLOCK), y, model)
    np.testing.assert_array_equal(images(samples, 0, BLOCK), to_uint8(expected, (0.0, 1.0)))


def test_batch_statistics_are_those_of_a_block_and_running_ones_of_training(trained):
    run = str(trained("dcgan", "batch"))
    own, batch, running = (open_samples(Run(run), statistics=each) for each in (None, "batch", "running"))
    np.testing.assert_array_equal(images(own, 0, 8), images(batch, 0, 8))
    assert not np.array_equal(images(own, 0, 8), images(running, 0, 8))


def test_a_label_is_named_or_numbered_and_then_all_samples_have_it(trained):
    run = str(trained("cgan"))
    named, numbered = open_samples(Run(run), label="right"), open_samples(Run(run), label="1")
    assert named.class_names == ("left", "right")
    assert named.labels(3, 6).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(images(named, 0, 4), images(numbered, 0, 4))
    assert not np.array_equal(images(named, 0, 1), images(open_samples(Run(run), label="left"), 0, 1))
    in_turn = images(open_samples(Run(run)), 0, 4)
    np.testing.assert_array_equal(in_turn[1::2], images(named, 0, 4)[1::2])
    assert open_samples(Run(trained("gan"))).labels(0, 2).tolist() == [-1, -1]


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_given_z_are_used_row_by_row(trained, tmp_path, kind):
    run, path = str(trained("cgan")), tmp_path / f"z.{kind}"
    drawn = open_samples(Run(run), seed=3)
    z = drawn.z(0, 10).numpy()
    if kind == "npy":
        np.save(path, z.astype(np.float64))
        labels = [0, 1] * 5
    else:
        labels = [1, 1, 0, 0, 1, 0, 1, 0, 1, 0]
        np.savez(path, z=z, labels=labels)
    given = open_samples(Run(run), z_file=str(path))
    assert given.labels(0, 10).tolist() == labels
    for number in range(10):
        alike = open_samples(Run(run), seed=3, label=str(labels[number]))
        difference = images(given, number, number + 1).astype(int) - images(alike, number, number + 1)
        assert np.abs(difference).max() <= 1, "the file has 10 rows, a drawn block more: rounding may differ"


def test_truncated_normal_noise_has_the_distribution_without_tails_at_the_same_quantiles():
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    cut = truncated(z, 0.7, "normal")
    assert float(cut.abs().max()) <= 0.7
    assert stats.kstest(cut.double().numpy(), stats.truncnorm(-0.7, 0.7).cdf).pvalue > 0.01
    assert torch.equal(cut.argsort(), z.argsort())
    torch.testing.assert_close(truncated(z, float("inf"), "normal"), z, rtol=1e-5, atol=1e-6)


def test_truncated_uniform_noise_is_uniform_within_the_bound():
    z = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(truncated(z, 0.5, "uniform"), z * 0.5)
    assert torch.equal(truncated(z, 1.0, "uniform"), z)


@pytest.mark.parametrize(
    ("bound", "distribution"), [(0.0, "normal"), (-1.0, "uniform"), (1.5, "uniform"), (float("nan"), "normal")]
)
def test_a_bound_that_restricts_nothing_or_all_is_refused(bound, distribution):
    with pytest.raises(ConfigError, match=f"truncation is {bound}"):
        truncated(torch.zeros(1), bound, distribution)


def test_truncation_changes_the_samples_of_a_run(trained):
    run = str(trained("dcgan"))
    assert not np.array_equal(
        images(open_samples(Run(run)), 0, 4), images(open_samples(Run(run), truncation=0.3), 0, 4)
    )


BAD_Z = {
    "wide": (np.zeros((4, 9), np.float32), "an array of shape (4, 9): the run takes (n, 8)"),
    "flat": (np.zeros(8, np.float32), "an array of shape (8,): the run takes (n, 8)"),
    "none": (np.zeros((0, 8), np.float32), "an array of shape (0, 8)"),
    "whole": (np.zeros((4, 8), np.int64), "an array of int64"),
    "nan": (np.full((4, 8), np.nan), "values that are not finite"),
    "objects": (np.array([[None] * 8]), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_Z)
def test_z_that_does_not_fit_is_refused(trained, tmp_path, name):
    array, message = BAD_Z[name]
    np.save(tmp_path / "z.npy", array)
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_samples(Run(trained("gan")), z_file=str(tmp_path / "z.npy"))


def test_a_damaged_file_of_z_is_refused_in_a_line(trained, tmp_path):
    np.savez(tmp_path / "z.npz", z=np.zeros((9, 8), np.float32))
    whole = bytearray((tmp_path / "z.npz").read_bytes())
    flipped = whole.copy()
    flipped[200] ^= 255
    for content in (whole[: len(whole) // 2], flipped, b"1 2 3"):
        (tmp_path / "z.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"which cannot be read .it is damaged") as caught:
            open_samples(Run(trained("gan")), z_file=str(tmp_path / "z.npz"))
        assert "allow_pickle" not in str(caught.value)
        read_z.cache_clear()


def test_labels_of_z_outside_the_classes_are_refused(trained, tmp_path):
    np.savez(tmp_path / "z.npz", z=np.zeros((2, 8), np.float32), labels=[0, 2])
    with pytest.raises(ConfigError, match="whole numbers from 0 to 1"):
        open_samples(Run(trained("cgan")), z_file=str(tmp_path / "z.npz"))


def test_a_single_z_has_no_batch_statistics_where_units_are_normalised(trained, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((1, 8), np.float32))
    run = str(trained("cdcgan", "batch"))
    with pytest.raises(ConfigError, match="give --statistics running"):
        images(open_samples(Run(run), z_file=str(tmp_path / "z.npy")), 0, 1)
    assert len(images(open_samples(Run(run), z_file=str(tmp_path / "z.npy"), statistics="running"), 0, 1)) == 1


def test_a_checkpoint_that_was_just_replaced_is_not_sampled(trained):
    from dataclasses import replace

    samples = replace(open_samples(Run(trained("gan"))), digest="0" * 32)
    with pytest.raises(RunDirectoryError, match="was just replaced"):
        images(samples, 0, 1)
