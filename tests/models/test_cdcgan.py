"""The class-conditional DCGAN against a table and a plain functional version, both written by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dcgan_dist.config import ModelConfig
from dcgan_dist.models import build_networks, initialise

RELEASED = {
    "name": "cdcgan",
    "image_size": 28,
    "channels": 1,
    "classes": 10,
    "ngf": 64,
    "ndf": 64,
    "projection_norm": "released",
    "norm_eps": 1e-8,
}
SMALL = RELEASED | {"z_dim": 6, "ngf": 4, "ndf": 4, "classes": 3}


def conditional(**settings: object) -> ModelConfig:
    return ModelConfig(**settings)  # type: ignore[arg-type]


def labels(count: int, classes: int) -> Tensor:
    return functional.one_hot(torch.arange(count) % classes, classes).float()


def draws(count: int, config: ModelConfig) -> tuple[Tensor, Tensor]:
    assert config.classes is not None
    z = torch.rand(count, config.z_dim, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return z, labels(count, config.classes)


def test_every_parameter_has_the_released_shape() -> None:
    with torch.device("meta"):
        generator, discriminator = build_networks(conditional(**RELEASED))
    assert [tuple(parameter.shape) for parameter in generator.parameters()] == [
        (1024, 110),
        (6272, 1034),
        (138, 64, 5, 5),
        (74, 1, 5, 5),
    ]
    assert [tuple(parameter.shape) for parameter in discriminator.parameters()] == [
        (64, 11, 5, 5),
        (128, 74, 5, 5),
        (1024, 6282),
        (1, 1034),
    ]


def normalised(values: Tensor) -> Tensor:
    """Apply batch norm without gain and bias, by its definition."""
    groups = (0,) if values.dim() == 2 else (0, 2, 3)
    mean = values.mean(groups, keepdim=True)
    return (values - mean) / ((values - mean).square().mean(groups, keepdim=True) + 1e-8).sqrt()


def joined(values: Tensor, y: Tensor) -> Tensor:
    if values.dim() == 2:
        return torch.cat([values, y], 1)
    return torch.cat([values, y[:, :, None, None] * torch.ones(len(y), y.shape[1], *values.shape[2:])], 1)


def test_networks_equal_the_released_layers_written_as_functions_in_float64() -> None:
    config = conditional(**RELEASED)
    generator, discriminator = build_networks(config)
    initialise(generator, config, 1)
    initialise(discriminator, config, 2)
    generator.double()
    discriminator.double()
    z, y = (part.double() for part in draws(5, config))

    w, w2, w3, wx = generator.parameters()
    h = normalised(joined(z, y) @ w.t()).relu()
    h2 = normalised(joined(h, y) @ w2.t()).relu().reshape(5, 128, 7, 7)
    h3 = normalised(functional.conv_transpose2d(joined(h2, y), w3, None, 2, 2, 1)).relu()
    image = functional.conv_transpose2d(joined(h3, y), wx, None, 2, 2, 1).sigmoid()
    for ours, theirs in zip(generator.feature_maps(z, y), [h, h2, h3, image], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(generator(z, y), image, rtol=1e-10, atol=1e-12)

    w, w2, w3, wy = discriminator.parameters()
    h = functional.leaky_relu(functional.conv2d(joined(image, y), w, None, 2, 2), 0.2)
    h2 = functional.leaky_relu(normalised(functional.conv2d(joined(h, y), w2, None, 2, 2)), 0.2)
    h3 = functional.leaky_relu(normalised(joined(h2.flatten(1), y) @ w3.t()), 0.2)
    logits = (joined(h3, y) @ wy.t())[:, 0]
    for ours, theirs in zip(discriminator.feature_maps(image, y), [h, h2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(discriminator(image, y), logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_images_lie_in_0_to_1_and_give_one_logit(channels: int, kernel_size: int) -> None:
    config = conditional(**SMALL | {"channels": channels, "kernel_size": kernel_size})
    generator, discriminator = build_networks(config)
    assert (generator.z_dim, generator.classes, generator.image_range) == (6, 3, (0.0, 1.0))
    z, y = draws(4, config)
    image = generator(z, y)
    assert image.shape == (4, channels, 28, 28)
    assert 0 <= image.min() <= image.max() <= 1
    assert discriminator(image, y).shape == (4,)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_images_of_every_size_are_made_from_maps_that_double_with_the_label_at_every_layer(size: int) -> None:
    config = conditional(**SMALL | {"image_size": size, "channels": 3, "ngf": 2, "ndf": 2})
    generator, discriminator = build_networks(config)
    z, y = draws(4, config)
    first, *maps = generator.feature_maps(z, y)
    sides = [4 << scale for scale in range(size.bit_length() - 2)]
    assert first.shape == (4, 1024)
    assert [layer.shape[2] for layer in maps] == sides
    assert [layer.shape[1] for layer in maps] == [*(size // side for side in sides[:-1]), 3]
    seen = discriminator.feature_maps(maps[-1], y)
    assert [(layer.shape[1], layer.shape[2]) for layer in seen] == [(size // side, side) for side in sides[-2::-1]]
    assert discriminator(maps[-1], y).shape == (4,)
    for network in (generator, discriminator):
        for stage in network.layers:
            inputs = stage.conv.weight.shape[0 if network is generator else 1]
            assert inputs - 3 in {3, *(2 << scale for scale in range(8))}


def test_the_label_changes_the_image_and_the_logit() -> None:
    config = conditional(**SMALL)
    generator, discriminator = build_networks(config)
    initialise(generator, config, 1)
    initialise(discriminator, config, 2)
    z, y = draws(6, config)
    other = y.roll(1, dims=1)
    image = generator(z, y)
    assert not torch.allclose(image, generator(z, other))
    assert not torch.allclose(discriminator(image, y), discriminator(image, other))


def norms(network: nn.Module) -> list[str]:
    return [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("setting", "of_generator", "of_discriminator"),
    [
        ("paper", ["dense.norm", "projection.norm", "layers.0.norm"], ["layers.1.norm", "dense.norm"]),
        (
            "all",
            ["dense.norm", "projection.norm", "layers.0.norm", "layers.1.norm"],
            ["layers.0.norm", "layers.1.norm", "dense.norm"],
        ),
        ("none", [], []),
    ],
)
def test_batch_norm_is_in_the_layers_that_the_setting_names(
    setting: str, of_generator: list[str], of_discriminator: list[str]
) -> None:
    generator, discriminator = build_networks(conditional(**SMALL | {"batch_norm": setting}))
    assert norms(generator) == of_generator
    assert norms(discriminator) == of_discriminator


VARIANTS = [
    {},
    {"batch_norm": "all"},
    {"batch_norm": "none"},
    {"conv_bias": True, "batch_norm": "none"},
    {"head": "average_pool"},
    {"projection_norm": "paper"},
    {"projection_norm": "paper", "batch_norm": "none"},
    {"slope": 0.0},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_gradient_flows_to_every_parameter_and_every_switch_changes_the_logits(settings: dict[str, object]) -> None:
    def run(changes: dict[str, object]) -> Tensor:
        config = conditional(**SMALL | changes)
        generator, discriminator = build_networks(config)
        initialise(generator, config, 1)
        initialise(discriminator, config, 2)
        z, y = draws(8, config)
        logits: Tensor = discriminator(generator(z, y), y)
        logits.square().mean().backward()
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        return logits.detach()

    assert torch.allclose(run(settings), run({}), rtol=1e-4, atol=0) == (not settings)


def test_average_pooling_and_biases_change_the_shapes() -> None:
    config = conditional(**SMALL | {"head": "average_pool", "conv_bias": True})
    _, discriminator = build_networks(config)
    shapes = [tuple(parameter.shape) for parameter in discriminator.parameters()]
    assert shapes == [(4, 4, 5, 5), (4,), (8, 7, 5, 5), (8,), (1024, 11), (1024,), (1, 1027), (1,)]
