"""The class-conditional DCGAN for 28x28 images that the paper's authors released beside it (appendix, table 3).

The label joins the input of every layer: as further values of a vector, as further constant maps of an image. Batch
norm has neither gain nor bias, G ends in a sigmoid, and both networks have a dense hidden layer of 1,024 units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.models.network import (
    Discriminator,
    Generator,
    base_side,
    convolution,
    layer,
    leaky_relu,
    norm_of_maps,
    norm_of_units,
    projection,
    transposed_convolution,
)

DENSE_UNITS = 1024


class CdcganGenerator(Generator):
    """z and label -> 1,024 units -> 7x7x(2 ngf) -> 14x14x(ngf) -> 28x28 image in [0, 1]."""

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__(config.z_dim, classes, (0.0, 1.0))
        wide, narrow, normed = 2 * config.ngf, config.ngf, config.batch_norm != "none"
        self.dense = layer(
            dense=nn.Linear(config.z_dim + classes, DENSE_UNITS, bias=config.conv_bias),
            norm=norm_of_units(config, DENSE_UNITS, normed, affine=False),
            activation=nn.ReLU(inplace=True),
        )
        self.projection = projection(config, DENSE_UNITS + classes, wide, base_side(image_size), affine=False)
        self.hidden = layer(
            conv=transposed_convolution(config, wide + classes, narrow, stride=2),
            norm=norm_of_maps(config, narrow, normed, affine=False),
            activation=nn.ReLU(inplace=True),
        )
        self.image = layer(
            conv=transposed_convolution(config, narrow + classes, channels, stride=2),
            norm=norm_of_maps(config, channels, config.batch_norm == "all", affine=False),
            activation=nn.Sigmoid(),
        )

    def feature_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of the three hidden layers in order, the first (n, 1024), and the image last."""
        values = self.dense(_join(z, y))
        small = self.projection(_join(values, y))
        large = self.hidden(_join(small, y))
        return [values, small, large, self.image(_join(large, y))]


class CdcganDiscriminator(Discriminator):
    """28x28 image and label -> 14x14x(ndf) -> 7x7x(2 ndf) -> 1,024 units -> logit."""

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        narrow, wide, normed = config.ndf, 2 * config.ndf, config.batch_norm != "none"
        self.layers = nn.ModuleList(
            [
                layer(
                    conv=convolution(config, channels + classes, narrow, stride=2),
                    norm=norm_of_maps(config, narrow, config.batch_norm == "all", affine=False),
                    activation=leaky_relu(config),
                ),
                layer(
                    conv=convolution(config, narrow + classes, wide, stride=2),
                    norm=norm_of_maps(config, wide, normed, affine=False),
                    activation=leaky_relu(config),
                ),
            ]
        )
        self.pools = config.head == "average_pool"
        units = wide if self.pools else wide * base_side(image_size) ** 2
        self.dense = layer(
            dense=nn.Linear(units + classes, DENSE_UNITS, bias=config.conv_bias),
            norm=norm_of_units(config, DENSE_UNITS, normed, affine=False),
            activation=leaky_relu(config),
        )
        self.head = nn.Linear(DENSE_UNITS + classes, 1, bias=config.conv_bias)

    def feature_maps(self, image: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations, after LeakyReLU, of the two convolutional layers."""
        large = self.layers[0](_join(image, y))
        return [large, self.layers[1](_join(large, y))]

    def classify(self, features: Tensor, y: Tensor) -> Tensor:
        """Return logits, (n,), for the last of the `feature_maps` and one-hot labels (n, classes)."""
        values = features.mean(dim=(2, 3)) if self.pools else features.flatten(1)
        logits: Tensor = self.head(_join(self.dense(_join(values, y)), y))
        return logits.squeeze(1)


def _join(values: Tensor, y: Tensor) -> Tensor:
    """Join labels to vectors, (n, c), or, as constant maps, to images, (n, c, h, w)."""
    if values.dim() == 2:
        return torch.cat((values, y.to(values.dtype)), dim=1)
    constant = y.to(values.dtype)[:, :, None, None].expand(-1, -1, *values.shape[2:])
    return torch.cat((values, constant), dim=1)
