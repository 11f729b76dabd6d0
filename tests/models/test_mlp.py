"""The first GAN and its conditional form, against plain functional versions written by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dcgan_dist.config import ModelConfig
from dcgan_dist.models import build_networks, initialise

SMALL = {"image_size": 28, "channels": 1, "z_dim": 6, "generator_units": "9,7", "discriminator_units": "8,5"}


def mlp(name: str = "gan", **settings: object) -> ModelConfig:
    settings = SMALL | {"name": name, "classes": 3 if name == "cgan" else 0} | settings
    return ModelConfig(**settings)  # type: ignore[arg-type]


def inputs(count: int, config: ModelConfig, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    assert config.classes is not None
    z = torch.randn(count, config.z_dim, generator=torch.Generator().manual_seed(3), dtype=dtype)
    classes = config.classes
    y = functional.one_hot(torch.arange(count) % classes, classes).to(dtype) if classes else z[:, :0]
    return z, y


def networks(config: ModelConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    built = build_networks(config)
    for seed, network in enumerate(built):
        initialise(network, config, seed)
        for parameter in network.parameters():  # large enough to reveal mistakes
            parameter.data.mul_(10).add_(0.01)
        network.double()
    return built


def test_the_networks_of_the_seed_have_its_shapes() -> None:
    with torch.device("meta"):
        generator, discriminator = build_networks(ModelConfig(name="gan", image_size=28, channels=1, z_dim=64))
    assert [tuple(parameter.shape) for parameter in generator.parameters()] == [(256, 64), (256,), (784, 256), (784,)]
    assert [tuple(parameter.shape) for parameter in discriminator.parameters()] == [(128, 784), (128,), (1, 128), (1,)]


@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_networks_equal_their_layers_written_as_functions(name: str) -> None:
    config = mlp(name)
    generator, discriminator = networks(config)
    z, y = inputs(5, config)

    def hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.leaky_relu(x @ weight.t() + bias, 0.2)

    w, b, w2, b2, wx, bx = generator.parameters()
    h = hidden(torch.cat([z, y], 1), w, b)
    h2 = hidden(h, w2, b2)
    image = torch.tanh(h2 @ wx.t() + bx).reshape(5, 1, 28, 28)
    for ours, theirs in zip(generator.feature_maps(z, y), [h, h2, image], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)

    w, b, w2, b2, wy, by = discriminator.parameters()
    h = hidden(torch.cat([image.reshape(5, 784), y], 1), w, b)
    h2 = hidden(h, w2, b2)
    for ours, theirs in zip(discriminator.feature_maps(image, y), [h, h2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(discriminator(image, y), (h2 @ wy.t() + by)[:, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_images_of_every_shape_lie_in_minus_1_to_1_and_give_one_logit(name: str, size: int, channels: int) -> None:
    config = mlp(name, image_size=size, channels=channels)
    generator, discriminator = build_networks(config)
    z, y = inputs(4, config, torch.float32)
    image = generator(z, y)
    assert (generator.classes, generator.image_range) == (config.classes, (-1.0, 1.0))
    assert image.shape == (4, channels, size, size)
    assert -1 <= image.min() <= image.max() <= 1
    assert discriminator(image, y).shape == (4,)


def test_a_maxout_unit_is_the_largest_of_its_linear_functions() -> None:
    config = mlp(discriminator_units="4", maxout=3)
    _, discriminator = networks(config)
    image = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight, bias, _, _ = discriminator.parameters()
    expected = torch.empty(5, 4, dtype=torch.float64)
    for unit in range(4):
        pieces = [image.flatten(1) @ weight[3 * unit + piece] + bias[3 * unit + piece] for piece in range(3)]
        expected[:, unit] = torch.stack(pieces).max(0).values
    (values,) = discriminator.feature_maps(image, image[:, :0, 0, 0])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)


def test_dropout_silences_what_its_draws_say_scales_up_the_rest_and_is_off_without_draws() -> None:
    config = mlp(dropout=0.4)
    _, discriminator = networks(config)
    assert discriminator.dropout_units == 13
    image = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    none, draws = image[:, :0, 0, 0], torch.rand(6, 13, generator=torch.Generator().manual_seed(1))
    w, b, w2, b2, wy, by = discriminator.parameters()
    kept = (draws >= 0.4).double() / 0.6
    h = functional.leaky_relu(image.flatten(1) @ w.t() + b, 0.2) * kept[:, :8]
    h = functional.leaky_relu(h @ w2.t() + b2, 0.2) * kept[:, 8:]
    torch.testing.assert_close(discriminator(image, none, draws), (h @ wy.t() + by)[:, 0], rtol=1e-12, atol=1e-14)
    plain = networks(mlp())[1]
    torch.testing.assert_close(discriminator(image, none), plain(image, none))
    assert plain.dropout_units == 0


@pytest.mark.parametrize("settings", [{}, {"maxout": 2}, {"dropout": 0.5}, {"slope": -0.1}], ids=str)
def test_the_gradient_flows_to_every_parameter(settings: dict[str, object]) -> None:
    config = mlp("cgan", **settings)
    generator, discriminator = networks(config)
    z, y = inputs(16, config)
    draws = torch.rand(16, discriminator.dropout_units, generator=torch.Generator().manual_seed(1))
    discriminator(generator(z, y), y, draws).square().mean().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_first_weights_are_uniform_within_the_root_of_the_inputs_and_depend_on_the_seed(name: str) -> None:
    config = ModelConfig(name=name, image_size=28, channels=1, classes=10 if name == "cgan" else 0, z_dim=64)
    for network in build_networks(config):
        initialise(network, config, 3)
        for layer in (module for module in network.modules() if isinstance(module, torch.nn.Linear)):
            bound = layer.in_features**-0.5
            for values in (layer.weight, layer.bias):
                assert values.abs().max() <= bound
            share = layer.weight.abs().flatten().sort().values / bound  # of |U(-b, b)| / b, uniform in [0, 1]
            expected = torch.linspace(0, 1, len(share))
            assert (share - expected).abs().max() < 2 / len(share) ** 0.5  # Kolmogorov and Smirnov, p < 0.001
        before = [parameter.clone() for parameter in network.parameters()]
        initialise(network, config, 3)
        assert all(map(torch.equal, before, network.parameters()))
        initialise(network, config, 4)
        assert not any(map(torch.equal, before, network.parameters()))
