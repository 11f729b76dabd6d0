import numpy as np
import pytest
import torch

from dcgan_dist.training.draws import draw_labels, draw_z, one_hot


def test_rows_do_not_depend_on_how_many_are_drawn():
    few, many = (draw_z(3, "train", 17, count, 5, "normal") for count in (4, 64))
    assert torch.equal(few, many[:4])


def test_every_part_of_the_key_matters():
    base = draw_z(3, "train", 17, 8, 5, "uniform")
    for other in (draw_z(4, "train", 17, 8, 5, "uniform"), draw_z(3, "fixed", 17, 8, 5, "uniform")):
        assert not torch.equal(base, other)
    assert not torch.equal(base, draw_z(3, "train", 18, 8, 5, "uniform"))
    assert torch.equal(base, draw_z(3, "train", 17, 8, 5, "uniform"))


def test_neighbouring_steps_do_not_share_numbers():
    drawn = torch.cat([draw_z(0, "train", step, 64, 100, "uniform").flatten() for step in range(4)])
    assert len(drawn.unique()) > 0.99 * len(drawn)


@pytest.mark.parametrize(("distribution", "std", "limit"), [("uniform", 3**-0.5, 1.0), ("normal", 1.0, 6.0)])
def test_distributions_have_their_moments(distribution, std, limit):
    z = draw_z(0, "train", 1, 2000, 100, distribution)
    assert z.dtype == torch.float32
    assert abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(std, abs=0.01)
    assert float(z.abs().max()) <= limit


def test_labels_are_uniform_over_the_classes():
    labels = draw_labels(0, "train", 1, 10_000, 10)
    counts = np.bincount(labels.numpy(), minlength=10)
    assert counts.min() > 900
    assert counts.max() < 1100


def test_one_hot_has_width_zero_without_classes():
    assert one_hot(torch.zeros(5, dtype=torch.int64), 0).shape == (5, 0)
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
