import math

import numpy as np
import pytest
import torch

from dcgan_dist.training.signals import WINDOW, filter_oscillation, filter_swing, mean_activations, sample_distance


def test_sample_distance_is_the_mean_over_pairs_of_the_rms_difference():
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    by_hand = [math.sqrt(float((images[i] - images[j]).square().mean())) for i in range(5) for j in range(5) if i < j]
    assert sample_distance(images, (-1.0, 1.0)) == pytest.approx(sum(by_hand) / len(by_hand))


def test_sample_distance_does_not_depend_on_the_value_range():
    unit = torch.rand(4, 1, 8, 8)
    assert sample_distance(unit, (0.0, 1.0)) == pytest.approx(sample_distance(unit * 2 - 1, (-1.0, 1.0)), rel=1e-5)


def test_sample_distance_of_a_collapsed_generator_is_zero():
    assert sample_distance(torch.ones(6, 3, 8, 8), (-1.0, 1.0)) == 0.0


def test_mean_activations_average_images_and_positions():
    layer = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).view(2, 3, 2, 2)
    assert mean_activations([layer]).tolist() == [float(layer[:, f].mean()) for f in range(3)]


def test_oscillation_is_unknown_until_the_window_is_full():
    assert filter_oscillation(torch.rand(WINDOW - 1, 4)) is None
    assert filter_swing(torch.rand(WINDOW - 1, 4)) is None


def test_periodic_filters_count_and_steady_or_drifting_ones_do_not():
    time = torch.arange(WINDOW, dtype=torch.float32)
    columns = [
        1 + 0.5 * torch.sin(2 * math.pi * time / 4),  # swings
        1 + 0.5 * torch.sin(2 * math.pi * time / 7 + 1),  # swings, slower
        1 + 0.001 * torch.sin(2 * math.pi * time / 4),  # swings too little to matter
        1 + 0.1 * time,  # drifts
        torch.full_like(time, 2.0),  # rests
        torch.exp(-time / 5),  # settles
    ]
    assert filter_oscillation(torch.stack(columns, 1)) == pytest.approx(2 / 6)


def test_white_noise_seldom_counts_as_oscillation():
    noise = 1 + 0.3 * torch.randn(WINDOW, 4000, generator=torch.Generator().manual_seed(0))
    share = filter_oscillation(noise)
    assert share is not None
    assert share < 0.1


def test_the_swing_of_a_filter_is_its_relative_amplitude_without_its_trend():
    time = np.arange(WINDOW)
    wave = 3 + 0.2 * time + np.where(time % 2, 0.6, -0.6)
    by_hand = (wave - np.polyval(np.polyfit(time, wave, 1), time)).std() / wave.mean()
    assert filter_swing(torch.from_numpy(wave)[:, None]) == pytest.approx(by_hand)
    history = torch.from_numpy(np.stack([wave, 3 + 0.2 * time, np.full(WINDOW, 2.0)], 1))
    assert filter_swing(history) == pytest.approx(0, abs=1e-9)  # the median: most filters do not swing


def test_a_filter_that_is_never_active_does_not_swing():
    assert filter_swing(torch.zeros(WINDOW, 3)) == 0.0
