"""From settings to networks: refused settings, and initial weights."""

import re

import pytest
import torch
from torch import nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.models import Generator, build_networks, initialise

CONFIG = ModelConfig(image_size=32, channels=3, ngf=32, ndf=32, conv_bias=True, norm_gain_init="released")


def generator(config: ModelConfig = CONFIG) -> Generator:
    return build_networks(config)[0]


def values(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name].to(value.dtype)), name


@pytest.mark.parametrize("gains", ["paper", "released"])
def test_first_weights_have_the_published_distribution(gains: str) -> None:
    config = ModelConfig(
        image_size=32,
        channels=3,
        ngf=64,
        ndf=64,
        conv_bias=True,
        projection_norm="released",
        norm_gain_init=gains,  # type: ignore[arg-type]
    )
    for network, seed in zip(build_networks(config), (1, 2), strict=True):
        initialise(network, config, seed)
        for name, part in network.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                weights, count = part.weight.detach().double(), part.weight.numel()
                # Five standard errors of the mean and of the standard deviation of `count` normal values.
                assert abs(weights.mean()) < 5 * 0.02 / count**0.5, name
                assert abs(weights.std() - 0.02) < 5 * 0.02 / (2 * count) ** 0.5, name
                assert abs((weights.abs() < 0.02).double().mean() - 0.6827) < 5 * (0.22 / count) ** 0.5, name
                assert part.bias is not None
                assert not part.bias.any(), name
            elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                gain, count = part.weight.detach().double(), part.weight.numel()
                if gains == "paper":
                    assert torch.equal(gain, torch.ones_like(gain)), name
                else:
                    assert abs(gain.mean() - 1) < 5 * 0.02 / count**0.5, name
                    assert abs(gain.std() - 0.02) < 5 * 0.02 / (2 * count) ** 0.5, name
                assert not part.bias.any(), name


def test_the_same_seed_gives_the_same_network_whatever_was_drawn_or_trained_before() -> None:
    first = generator()
    initialise(first, CONFIG, 7)
    expected = values(first)
    torch.rand(100)
    first(torch.randn(4, 100), torch.zeros(4, 0))  # moves the running statistics
    for parameter in first.parameters():
        parameter.data.add_(1)
    initialise(first, CONFIG, 7)
    assert_equal(expected, values(first))
    other = generator()
    initialise(other, CONFIG, 8)
    weights = [name for name, value in expected.items() if name.endswith("weight")]
    assert weights
    for name in weights:
        assert not torch.equal(expected[name], other.state_dict()[name]), name


def test_the_same_seed_gives_the_same_network_in_every_precision_and_memory_format() -> None:
    plain, channels_last, double = generator(), generator(), generator()
    channels_last.to(memory_format=torch.channels_last)
    double.double()
    for network in (plain, channels_last, double):
        initialise(network, CONFIG, 7)
    assert_equal(values(plain), values(channels_last))
    assert_equal(values(plain), values(double))
    assert channels_last.layers[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_first_weights_leave_the_global_random_state_alone() -> None:
    network = generator()
    state = torch.get_rng_state()
    initialise(network, CONFIG, 7)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(channels=3), "model.image_size is None"),
        (ModelConfig(image_size=64), "model.channels is None"),
        (ModelConfig(name="cdcgan", image_size=28, channels=1), "model.classes is None"),
        (ModelConfig(name="cgan", image_size=28, channels=1), "model.classes is None"),
    ],
)
def test_settings_that_the_data_has_not_completed_are_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_networks(config)
