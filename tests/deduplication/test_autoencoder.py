"""The autoencoder and its training."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load

from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.settings import DeduplicationConfig
from dcgan_dist.deduplication.autoencoder import Autoencoder, jitter, to_values, train_autoencoder
from dcgan_dist.deduplication.thresholds import choose_thresholds, choose_units

CPU = torch.device("cpu")
ROOMS = torch.from_numpy(np.stack([draw_room(0, number, 32)[0] for number in range(128)]))


def test_training_is_a_function_of_the_seed_and_lowers_the_loss() -> None:
    few = DeduplicationConfig(steps=5, batch_size=32)
    one, loss = train_autoencoder(ROOMS, few, seed=1, device=CPU)
    same, _ = train_autoencoder(ROOMS, few, seed=1, device=CPU)
    other, _ = train_autoencoder(ROOMS, few, seed=2, device=CPU)
    assert one.weights() == same.weights() != other.weights()
    many = DeduplicationConfig(steps=140, batch_size=32)
    assert train_autoencoder(ROOMS, many, seed=1, device=CPU)[1] < 0.9 * loss


def test_weights_written_and_read_give_the_same_bits() -> None:
    network = Autoencoder(64)
    network.thresholds[3] = torch.inf
    again = Autoencoder.from_weights(load(network.weights()))
    assert torch.equal(again.bits(ROOMS), network.bits(ROOMS))
    assert not again.bits(ROOMS)[:, 3].any()


def test_without_clipping_brightness_and_contrast_do_not_reach_the_code() -> None:
    values = to_values(ROOMS[:8])
    network = Autoencoder(32)
    dark = 0.5 * (values + 1) - 1
    near = network.encode(dark) - network.encode(values)
    assert near.abs().mean() < 0.3 * network.encode(values).std()
    assert torch.allclose(network.encode(values * 0.9 + 0.05 - 0.05), network.encode(values * 0.9), atol=1e-5)


def test_jitter_of_nothing_changes_nothing_and_more_of_it_changes_more() -> None:
    values = to_values(ROOMS)
    changes = [
        float((jitter(values, amount, torch.Generator().manual_seed(0)) - values).square().mean())
        for amount in (0.0, 0.5, 1.0)
    ]
    assert changes[0] < 1e-9 < changes[1] < changes[2] < 0.1


def test_units_that_part_images_and_keep_still_are_chosen_first() -> None:
    draws = np.random.default_rng(0)
    bits, mirrored = draws.random((2, 2000, 12)) < 0.5
    copies = bits.copy()
    copies[:, 6:] ^= draws.random((2000, 6)) < 0.1  # unstable units
    bits[:, 0] = copies[:, 0] = mirrored[:, 0] = True  # a unit without information
    chosen = choose_units(bits, copies, mirrored, count=2000, units=11)
    assert set(chosen[:5]) == {1, 2, 3, 4, 5}
    assert 0 not in chosen
    # 2000 images: 2e6 pairs, a fifth of one may collide: 2**23 or more.
    assert len(choose_units(*(np.concatenate([draws.random((2000, 64)) < 0.5])[:] for _ in range(3)), 2000)) >= 22


def test_thresholds_stand_where_images_differ_and_dead_units_get_none() -> None:
    draws = np.random.default_rng(0)
    one = np.stack([np.zeros(5000), np.where(draws.random(5000) < 0.5, 1.0, 3.0), draws.random(5000)], 1)
    mirrored = one[draws.permutation(5000)]
    copies = one + draws.normal(0, 0.1, one.shape) * [0, 1, 1]
    thresholds = choose_thresholds(*(part.astype(np.float32) for part in (one, copies, mirrored)))
    assert thresholds[0] == np.inf
    assert ((one > thresholds) != (copies > thresholds))[:, 1].mean() < 0.5
    assert 0 <= thresholds[2] < 1
