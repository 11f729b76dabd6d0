"""The first GAN (Goodfellow et al. 2014) and its conditional form (Mirza and Osindero 2014): only dense layers.

In a conditional network, the one-hot label is concatenated to the input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.models.family import Family
from dcgan_dist.models.network import Discriminator, Generator, join, layer, leaky_relu


class MlpGenerator(Generator):
    """z (and label) -> hidden layers of `generator_units` with LeakyReLU -> tanh, an image in [-1, 1]."""

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__(config.z_dim, classes, (-1.0, 1.0))
        self.layers = nn.ModuleList()
        inputs = config.z_dim + classes
        for units in config.generator_units:
            self.layers.append(layer(dense=nn.Linear(inputs, units), activation=leaky_relu(config)))
            inputs = units
        shape = (channels, image_size, image_size)
        self.image = layer(dense=nn.Linear(inputs, math.prod(shape)), activation=nn.Tanh(), maps=nn.Unflatten(1, shape))

    def feature_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations (n, units) of the hidden layers in order, and the image last."""
        values: list[Tensor] = []
        for stage in self.layers:
            values.append(stage(values[-1] if values else join(z, y)))
        return [*values, self.image(values[-1])]


class Maxout(nn.Module):
    """The maximum over the `pieces` linear functions of each unit (Goodfellow et al. 2013)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, values: Tensor) -> Tensor:
        """Return (n, units) for (n, units * pieces)."""
        largest: Tensor = values.unflatten(1, (-1, self.pieces)).amax(dim=2)
        return largest


class MlpDiscriminator(Discriminator):
    """Image (and label) -> hidden layers of `discriminator_units`, LeakyReLU or maxout -> logit.

    Dropout follows each hidden layer if its draws are given, which is only the case in training.
    """

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.dropout_units = sum(config.discriminator_units) if config.dropout else 0
        self.layers = nn.ModuleList()
        inputs = channels * image_size**2 + classes
        for units in config.discriminator_units:
            pieces = config.maxout or 1
            activation = Maxout(pieces) if config.maxout else leaky_relu(config)
            self.layers.append(layer(dense=nn.Linear(inputs, units * pieces), activation=activation))
            inputs = units
        self.head = nn.Linear(inputs, 1)

    def feature_maps(self, image: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations (n, units) of the hidden layers in order, without dropout."""
        return self._activations(image, y, None)

    def classify(self, features: Tensor, y: Tensor) -> Tensor:
        """Return logits, (n,), for the last of the `feature_maps`."""
        logits: Tensor = self.head(features)
        return logits.squeeze(1)

    def forward(self, image: Tensor, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """See `Discriminator`."""
        return self.classify(self._activations(image, y, draws)[-1], y)

    def _activations(self, image: Tensor, y: Tensor, draws: Tensor | None) -> list[Tensor]:
        values: list[Tensor] = []
        first = 0
        for stage in self.layers:
            out: Tensor = stage(values[-1] if values else join(image.flatten(1), y))
            if self.dropout and draws is not None:
                kept = draws[:, first : first + out.shape[1]] >= self.dropout
                out = torch.where(kept, out / (1 - self.dropout), 0.0)
                first += out.shape[1]
            values.append(out)
        return values


_SETTINGS = frozenset({"generator_units", "discriminator_units", "maxout", "dropout"})
FAMILIES = tuple(
    Family(
        name=name,
        is_conditional=is_conditional,
        generator=MlpGenerator,
        discriminator=MlpDiscriminator,
        settings=_SETTINGS,
        is_dense=True,
    )
    for name, is_conditional in (("gan", False), ("cgan", True))
)
