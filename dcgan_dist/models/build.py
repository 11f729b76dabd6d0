"""Build networks from settings, and initialise their weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dcgan_dist.config import ModelConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.models.family import family_of
from dcgan_dist.models.network import Discriminator, Generator

WEIGHT_STD = 0.02  # section 4: all weights from a normal distribution with this standard deviation


def build_networks(config: ModelConfig) -> tuple[Generator, Discriminator]:
    """Return a generator and a discriminator, on the CPU in float32; `initialise` sets their weights.

    Raises:
        ConfigError: `image_size`, `channels` or, for a conditional model, `classes` is None; there is no such family,
            or it does not have a setting that was changed.
    """
    family = family_of(config)
    size, channels = config.image_size, config.channels
    if size is None or channels is None:
        key = "image_size" if size is None else "channels"
        raise ConfigError(f"model.{key} is None: give it, or take it from the data, before the networks are built")
    if family.is_conditional and config.classes is None:
        raise ConfigError(f"model.classes is None: give it, or take it from the data, before {config.name} is built")
    of_images = (size, channels, config.classes or 0)
    return family.generator(config, *of_images), family.discriminator(config, *of_images)


@torch.no_grad()
def initialise(network: nn.Module, config: ModelConfig, seed: int) -> None:
    """Initialise all parameters and buffers of `network`, in place (section 4).

    Weights are N(0, 0.02), biases 0, and batch norm's gains 1 or, with `norm_gain_init` `released`, N(1, 0.02). In
    families with only dense layers, to which section 4 does not apply, weights and biases are U(-1/√n, 1/√n) for n
    inputs. Random numbers are drawn on the CPU in float32, so that a seed gives the same network on every device, and
    in every precision and memory format.
    """
    random = torch.Generator().manual_seed(seed)
    is_dense = family_of(config).is_dense

    def draw(parameter: torch.Tensor, mean: float) -> None:
        parameter.copy_(torch.empty(parameter.shape).normal_(mean, WEIGHT_STD, generator=random))

    for module in network.modules():
        if is_dense and isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in (module.weight, module.bias):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=random))
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            draw(module.weight, 0.0)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, _NormBase):
            module.reset_running_stats()
            if module.affine:
                if config.norm_gain_init == "released":
                    draw(module.weight, 1.0)
                else:
                    module.weight.fill_(1.0)
                module.bias.zero_()
        else:
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert not own, f"no rule to initialise {type(module).__name__}"
