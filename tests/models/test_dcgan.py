"""The DCGANs against tables written by hand, and against the PyTorch example's plain `nn.Sequential`."""

import pytest
import torch
from torch import nn

from dcgan_dist.config import IMAGE_SIZES, ModelConfig
from dcgan_dist.models import Discriminator, Generator, build_networks, initialise

LSUN = {"image_size": 64, "channels": 3}
IMAGENET = {"image_size": 32, "channels": 3, "z_dim": 256, "kernel_size": 3, "convs_per_scale": 2}
SVHN = {"image_size": 32, "channels": 3, "ngf": 64, "ndf": 64}
TUTORIAL = {"image_size": 64, "channels": 3, "ngf": 64, "ndf": 64, "kernel_size": 4}
RELEASED = {"norm_gain_init": "released", "projection_norm": "released", "norm_eps": 1e-8}
SMALL = {"image_size": 16, "channels": 3, "z_dim": 7, "ngf": 4, "ndf": 4}


def networks(*parts: dict[str, object], **settings: object) -> tuple[Generator, Discriminator, ModelConfig]:
    merged: dict[str, object] = {}
    for part in (*parts, settings):
        merged |= part
    config = ModelConfig(**merged)  # type: ignore[arg-type]
    return *build_networks(config), config


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters()]


def images(count: int, config: ModelConfig, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    assert config.channels is not None
    assert config.image_size is not None
    random = torch.Generator().manual_seed(5)
    size = (count, config.channels, config.image_size, config.image_size)
    return torch.rand(size, generator=random, dtype=dtype) * 2 - 1


def noise(count: int, config: ModelConfig, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(count, config.z_dim, generator=torch.Generator().manual_seed(6), dtype=dtype) * 2 - 1


def no_labels(count: int) -> torch.Tensor:
    return torch.zeros(count, 0)


# Weights, and for each batch norm its gains and biases, in the order of the layers.
LSUN_G = [
    (16384, 100), (1024,), (1024,),
    (1024, 512, 5, 5), (512,), (512,),
    (512, 256, 5, 5), (256,), (256,),
    (256, 128, 5, 5), (128,), (128,),
    (128, 3, 5, 5),
]  # fmt: skip
LSUN_D = [
    (128, 3, 5, 5),
    (256, 128, 5, 5), (256,), (256,),
    (512, 256, 5, 5), (512,), (512,),
    (1024, 512, 5, 5), (1024,), (1024,),
    (1, 16384),
]  # fmt: skip
FACES_G = [(16384, 100), (16384,), (16384,), *LSUN_G[3:]]
IMAGENET_G = [
    (8192, 256), (8192,), (8192,),
    (512, 512, 3, 3), (512,), (512,),
    (512, 256, 3, 3), (256,), (256,),
    (256, 256, 3, 3), (256,), (256,),
    (256, 128, 3, 3), (128,), (128,),
    (128, 128, 3, 3), (128,), (128,),
    (128, 3, 3, 3),
]  # fmt: skip
IMAGENET_D = [
    (128, 3, 3, 3),
    (128, 128, 3, 3), (128,), (128,),
    (256, 128, 3, 3), (256,), (256,),
    (256, 256, 3, 3), (256,), (256,),
    (512, 256, 3, 3), (512,), (512,),
    (512, 512, 3, 3), (512,), (512,),
    (1, 8192),
]  # fmt: skip
SVHN_G = [
    (4096, 100), (4096,), (4096,),
    (256, 128, 5, 5), (128,), (128,),
    (128, 64, 5, 5), (64,), (64,),
    (64, 3, 5, 5),
]  # fmt: skip
SVHN_D = [
    (64, 3, 5, 5),
    (128, 64, 5, 5), (128,), (128,),
    (256, 128, 5, 5), (256,), (256,),
    (1, 4096),
]  # fmt: skip
TUTORIAL_G = [
    (8192, 100), (512,), (512,),
    (512, 256, 4, 4), (256,), (256,),
    (256, 128, 4, 4), (128,), (128,),
    (128, 64, 4, 4), (64,), (64,),
    (64, 3, 4, 4),
]  # fmt: skip
TUTORIAL_D = [
    (64, 3, 4, 4),
    (128, 64, 4, 4), (128,), (128,),
    (256, 128, 4, 4), (256,), (256,),
    (512, 256, 4, 4), (512,), (512,),
    (1, 8192),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "of_generator", "of_discriminator"),
    [
        (LSUN, LSUN_G, LSUN_D),
        (LSUN | RELEASED, FACES_G, LSUN_D),
        (IMAGENET | RELEASED, IMAGENET_G, IMAGENET_D),
        (SVHN | RELEASED, SVHN_G, SVHN_D),
        (TUTORIAL, TUTORIAL_G, TUTORIAL_D),
    ],
    ids=["lsun", "faces", "imagenet32", "svhn", "tutorial64"],
)
def test_every_parameter_has_the_published_shape(
    settings: dict[str, object], of_generator: list[tuple[int, ...]], of_discriminator: list[tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        generator, discriminator, _ = networks(settings)
    assert shapes(generator) == of_generator
    assert shapes(discriminator) == of_discriminator


@pytest.mark.parametrize(
    ("settings", "of_generator", "of_discriminator"),
    [
        (
            LSUN,
            [(1024, 4), (512, 8), (256, 16), (128, 32), (3, 64)],
            [(128, 32), (256, 16), (512, 8), (1024, 4)],
        ),
        (
            IMAGENET,
            [(512, 4), (512, 8), (256, 8), (256, 16), (128, 16), (128, 32), (3, 32)],
            [(128, 32), (128, 16), (256, 16), (256, 8), (512, 8), (512, 4)],
        ),
        (SVHN, [(256, 4), (128, 8), (64, 16), (3, 32)], [(64, 16), (128, 8), (256, 4)]),
    ],
    ids=["lsun", "imagenet32", "svhn"],
)
def test_feature_maps_have_the_published_channels_and_sides(
    settings: dict[str, object], of_generator: list[tuple[int, int]], of_discriminator: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        generator, discriminator, config = networks(settings)
        z, y, image = torch.zeros(2, config.z_dim), torch.zeros(2, 0), torch.zeros(2, 3, *2 * [config.image_size])
        of_z, of_image = generator.feature_maps(z, y), discriminator.feature_maps(image, y)
    assert [tuple(maps.shape) for maps in of_z] == [(2, width, side, side) for width, side in of_generator]
    assert [tuple(maps.shape) for maps in of_image] == [(2, width, side, side) for width, side in of_discriminator]


@pytest.mark.parametrize(("settings", "count"), [(IMAGENET, 28_672), (SVHN, 7_168)], ids=["imagenet32", "svhn"])
def test_features_pooled_to_4x4_have_the_published_count(settings: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        _, discriminator, config = networks(settings)
        maps = discriminator.feature_maps(torch.zeros(1, 3, *2 * [config.image_size]), torch.zeros(1, 0))
        pooled = [nn.functional.max_pool2d(one, one.shape[-1] // 4).flatten(1) for one in maps]
    assert torch.cat(pooled, dim=1).shape == (1, count)


def pytorch_example() -> tuple[nn.Sequential, nn.Sequential]:
    """Write out the networks of the PyTorch example, D without its sigmoid."""
    generator = nn.Sequential(
        nn.ConvTranspose2d(100, 512, 4, 1, 0, bias=False),
        nn.BatchNorm2d(512),
        nn.ReLU(),
        nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 512, 4, 2, 1, bias=False),
        nn.BatchNorm2d(512),
        nn.LeakyReLU(0.2),
        nn.Conv2d(512, 1, 4, 1, 0, bias=False),
    )
    return generator.double(), discriminator.double()


def test_tutorial_networks_equal_the_pytorch_example_in_float64_with_gradients_and_statistics() -> None:
    generator, discriminator, config = networks(TUTORIAL, norm_gain_init="released")
    initialise(generator, config, 1)
    initialise(discriminator, config, 2)
    generator.double()
    discriminator.double()
    plain_generator, plain_discriminator = pytorch_example()
    for ours, theirs in ((generator, plain_generator), (discriminator, plain_discriminator)):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            # z 1x1 -> 4x4 is (inputs, outputs, 4, 4) there; the dense layer here is (outputs * 16, inputs).
            values = mine.detach()
            is_projection = ours is generator and mine.dim() == 2
            other.data.copy_((values.t() if is_projection else values).reshape(other.shape))

    z = noise(3, config, torch.float64)
    image, plain_image = generator(z, no_labels(3)), plain_generator(z[:, :, None, None])
    torch.testing.assert_close(image, plain_image, rtol=1e-12, atol=1e-12)
    logits, plain_logits = discriminator(image, no_labels(3)), plain_discriminator(plain_image).flatten()
    torch.testing.assert_close(logits, plain_logits, rtol=1e-12, atol=1e-12)

    nn.functional.softplus(-logits).mean().backward()
    nn.functional.softplus(-plain_logits).mean().backward()
    for ours, theirs in ((generator, plain_generator), (discriminator, plain_discriminator)):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            is_projection = ours is generator and mine.dim() == 2
            gradient = mine.grad.t() if is_projection else mine.grad
            torch.testing.assert_close(gradient.reshape(other.shape), other.grad, rtol=1e-9, atol=1e-14)
        for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_images_of_every_size_have_their_shape_and_range_and_give_one_logit(size: int, channels: int) -> None:
    generator, discriminator, config = networks(SMALL, image_size=size, channels=channels, ngf=2, ndf=2)
    assert (generator.z_dim, generator.classes, generator.image_range) == (7, 0, (-1.0, 1.0))
    image = generator(noise(3, config), no_labels(3))
    assert image.shape == (3, channels, size, size)
    assert -1 <= image.min() <= image.max() <= 1
    assert discriminator(image, no_labels(3)).shape == (3,)


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3}, {"kernel_size": 4}, {"kernel_size": 5}]
    + [{"kernel_size": size, "convs_per_scale": 2} for size in (3, 5)],
    ids=str,
)
@pytest.mark.parametrize("size", [28, 32])
def test_every_kernel_doubles_and_halves_exactly(settings: dict[str, object], size: int) -> None:
    generator, discriminator, config = networks(SMALL, settings, image_size=size)
    image = generator(noise(2, config), no_labels(2))
    assert image.shape[2:] == (size, size)
    assert discriminator.feature_maps(image, no_labels(2))[-1].shape[2:] == 2 * ((7, 7) if size == 28 else (4, 4))[:1]
    kernels = {part.kernel_size for part in generator.modules() if isinstance(part, nn.ConvTranspose2d)}
    assert kernels == {(config.kernel_size, config.kernel_size)}


VARIANTS = [
    {},
    {"batch_norm": "all"},
    {"batch_norm": "none"},
    {"projection_norm": "released"},
    {"projection_norm": "released", "batch_norm": "none"},
    {"conv_bias": True},
    {"conv_bias": True, "batch_norm": "none"},
    {"head": "average_pool"},
    {"convs_per_scale": 2},
    {"slope": 0.0},
    {"slope": -0.1},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_gradient_flows_to_every_parameter(settings: dict[str, object]) -> None:
    generator, discriminator, config = networks(SMALL, settings)
    initialise(generator, config, 1)
    initialise(discriminator, config, 2)
    discriminator(generator(noise(8, config), no_labels(8)), no_labels(8)).square().mean().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            # Batch norm takes away a bias before it, so that its gradient is zero up to rounding.
            is_cancelled = config.batch_norm != "none" and name.endswith(("conv.bias", "dense.bias"))
            assert is_cancelled or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_activations_in_place_change_neither_images_nor_gradients(settings: dict[str, object]) -> None:
    def run(in_place: bool) -> list[torch.Tensor]:
        generator, discriminator, config = networks(SMALL, settings)
        for network, seed in ((generator, 1), (discriminator, 2)):
            initialise(network, config, seed)
            network.double()
            for module in network.modules():
                if isinstance(module, nn.ReLU | nn.LeakyReLU) and not in_place:
                    module.inplace = False
        z = noise(4, config, torch.float64)
        maps = generator.feature_maps(z, no_labels(4))
        seen = discriminator.feature_maps(maps[-1], no_labels(4))
        logits = discriminator.classify(seen[-1], no_labels(4))
        logits.square().mean().backward()
        gradients = [parameter.grad for network in (generator, discriminator) for parameter in network.parameters()]
        return [*maps, *seen, logits, *[gradient for gradient in gradients if gradient is not None]]

    for one, other in zip(run(in_place=True), run(in_place=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def batch_norms(network: nn.Module) -> list[str]:
    return [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_batch_norm_is_in_the_layers_that_the_setting_names() -> None:
    generator, discriminator, _ = networks(SMALL)
    assert batch_norms(generator) == ["projection.norm", "layers.0.norm"]
    assert batch_norms(discriminator) == ["layers.1.norm"]
    generator, discriminator, _ = networks(SMALL, batch_norm="all")
    assert batch_norms(generator) == ["projection.norm", "layers.0.norm", "layers.1.norm"]
    assert batch_norms(discriminator) == ["layers.0.norm", "layers.1.norm"]
    generator, discriminator, _ = networks(SMALL, batch_norm="none")
    assert batch_norms(generator) == batch_norms(discriminator) == []


def test_projection_norm_is_per_channel_or_per_unit() -> None:
    for setting, groups in (("paper", (0, 2, 3)), ("released", (0,))):
        generator, _, config = networks(SMALL, projection_norm=setting)
        initialise(generator, config, 1)
        seen: list[torch.Tensor] = []
        generator.projection.norm.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.clone()))
        generator(noise(64, config), no_labels(64))
        units = seen[0].detach().reshape(64, 8, 4, 4)
        assert units.mean(groups).abs().max() < 1e-5
        assert (units.var(groups, correction=0) - 1).abs().max() < 0.1
    assert units.mean((0, 2, 3)).abs().max() < 1e-5


def test_norm_eps_and_momentum_reach_every_batch_norm() -> None:
    generator, discriminator, config = networks(SMALL, norm_eps=0.5, norm_momentum=0.25, batch_norm="all")
    initialise(generator, config, 1)
    norms = [part for network in (generator, discriminator) for part in network.modules()]
    norms = [part for part in norms if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 5
    assert {(part.eps, part.momentum) for part in norms} == {(0.5, 0.25)}
    z = noise(16, config)
    values = generator.projection[:2](z).mean((0, 2, 3))
    generator(z, no_labels(16))
    torch.testing.assert_close(generator.projection.norm.running_mean, values * 0.25)


@pytest.mark.parametrize(
    ("settings", "acts_on_generator"),
    [({"slope": 0.5}, False), ({"norm_eps": 0.1}, True), ({"batch_norm": "none"}, True), ({"batch_norm": "all"}, True)],
    ids=str,
)
def test_a_switch_without_its_own_weights_changes_the_output(
    settings: dict[str, object], acts_on_generator: bool
) -> None:
    def outputs(*parts: dict[str, object]) -> tuple[torch.Tensor, torch.Tensor]:
        generator, discriminator, config = networks(SMALL, *parts)
        initialise(generator, config, 1)
        initialise(discriminator, config, 2)
        z, image = noise(8, config), images(8, config)
        return generator(z, no_labels(8)).detach(), discriminator(image, no_labels(8)).detach()

    before, after = outputs(), outputs(settings)
    assert torch.equal(before[0], after[0]) != acts_on_generator
    assert not torch.allclose(before[1], after[1], rtol=1e-3, atol=0)


def test_conv_bias_gives_every_layer_with_weights_a_bias() -> None:
    for wanted in (False, True):
        generator, discriminator, _ = networks(SMALL, conv_bias=wanted)
        for network in (generator, discriminator):
            parts = [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
            assert [part.bias is not None for part in parts] == [wanted] * 3


def test_average_pooling_reduces_each_channel_to_its_mean() -> None:
    _, discriminator, config = networks(SMALL, head="average_pool")
    initialise(discriminator, config, 2)
    assert shapes(discriminator)[-1] == (1, 8)
    image = images(4, config)
    features = discriminator.feature_maps(image, no_labels(4))[-1]
    weight = list(discriminator.parameters())[-1]
    expected = (features.flatten(2).mean(2) * weight).sum(1)
    torch.testing.assert_close(discriminator.classify(features, no_labels(4)), expected)


def test_channels_last_gives_the_same_images_and_logits() -> None:
    generator, discriminator, config = networks(SMALL, image_size=32)
    initialise(generator, config, 1)
    initialise(discriminator, config, 2)
    generator.double()
    discriminator.double()
    z, y = noise(4, config, torch.float64), no_labels(4)
    image = generator(z, y)
    logits = discriminator(image, y)
    generator.to(memory_format=torch.channels_last)
    discriminator.to(memory_format=torch.channels_last)
    same = generator(z, y)
    assert same.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(same, image, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(discriminator(same, y), logits, rtol=1e-12, atol=1e-14)
