"""The class-conditional DCGAN of the paper's released code (appendix, table 3), extended to all image sizes.

The label is concatenated to the input of every layer: to a vector as values, to feature maps as constant maps. Batch
norm has neither gain nor bias, G ends in a sigmoid, and both networks have a dense hidden layer of 1,024 units. The
released code is for 28x28 images; other sizes have more or fewer scales, as in `dcgan.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.models.family import Family
from dcgan_dist.models.network import (
    Discriminator,
    Generator,
    base_side,
    convolution,
    join,
    layer,
    leaky_relu,
    norm_of_maps,
    norm_of_units,
    projection,
    scale_count,
    transposed_convolution,
)

DENSE_UNITS = 1024


class CdcganGenerator(Generator):
    """z and label -> 1,024 units -> small maps -> maps twice as large each time -> image in [0, 1].

    28x28 images from 7x7x(2 ngf), 14x14x(ngf); 64x64 images from 4x4x(8 ngf), 8x8x(4 ngf) and so on.
    """

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__(config.z_dim, classes, (0.0, 1.0))
        widths = [config.ngf << scale for scale in reversed(range(scale_count(image_size)))]
        self.dense = layer(
            dense=nn.Linear(config.z_dim + classes, DENSE_UNITS, bias=config.conv_bias),
            norm=norm_of_units(config, DENSE_UNITS, config.batch_norm != "none", affine=False),
            activation=nn.ReLU(inplace=True),
        )
        self.projection = projection(config, DENSE_UNITS + classes, widths[0], base_side(image_size), affine=False)
        self.layers = nn.ModuleList()
        for width, next_width in zip(widths, [*widths[1:], channels], strict=True):
            is_last = len(self.layers) == len(widths) - 1
            wanted = config.batch_norm == "all" or (config.batch_norm == "paper" and not is_last)
            self.layers.append(
                layer(
                    conv=transposed_convolution(config, width + classes, next_width, stride=2),
                    norm=norm_of_maps(config, next_width, wanted, affine=False),
                    activation=nn.Sigmoid() if is_last else nn.ReLU(inplace=True),
                )
            )

    def feature_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of the hidden layers in order, the first (n, 1024), and the image last."""
        values = self.dense(join(z, y))
        maps = [self.projection(join(values, y))]
        for stage in self.layers:
            maps.append(stage(join(maps[-1], y)))
        return [values, *maps]


class CdcganDiscriminator(Discriminator):
    """Image and label -> maps half as large each time, from `ndf` channels twice as many -> 1,024 units -> logit."""

    def __init__(self, config: ModelConfig, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        width = channels
        for scale in range(scale_count(image_size)):
            wanted = config.batch_norm == "all" or (config.batch_norm == "paper" and scale > 0)
            inputs, width = width + classes, config.ndf << scale
            self.layers.append(
                layer(
                    conv=convolution(config, inputs, width, stride=2),
                    norm=norm_of_maps(config, width, wanted, affine=False),
                    activation=leaky_relu(config),
                )
            )
        self.pools = config.head == "average_pool"
        units = width if self.pools else width * base_side(image_size) ** 2
        self.dense = layer(
            dense=nn.Linear(units + classes, DENSE_UNITS, bias=config.conv_bias),
            norm=norm_of_units(config, DENSE_UNITS, config.batch_norm != "none", affine=False),
            activation=leaky_relu(config),
        )
        self.head = nn.Linear(DENSE_UNITS + classes, 1, bias=config.conv_bias)

    def feature_maps(self, image: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations, after LeakyReLU, of the convolutional layers in order."""
        maps: list[Tensor] = []
        for stage in self.layers:
            maps.append(stage(join(maps[-1] if maps else image, y)))
        return maps

    def classify(self, features: Tensor, y: Tensor) -> Tensor:
        """Return logits, (n,), for the last of the `feature_maps` and one-hot labels (n, classes)."""
        values = features.mean(dim=(2, 3)) if self.pools else features.flatten(1)
        logits: Tensor = self.head(join(self.dense(join(values, y)), y))
        return logits.squeeze(1)


FAMILIES = (
    Family(
        name="cdcgan",
        is_conditional=True,
        generator=CdcganGenerator,
        discriminator=CdcganDiscriminator,
        settings=frozenset(
            {
                *("ngf", "ndf", "kernel_size", "conv_bias", "head"),
                *("batch_norm", "projection_norm", "norm_eps", "norm_momentum"),
            }
        ),
    ),
)
