"""The DCGAN of Radford, Metz and Chintala (2015), section 3 and figure 1, for square images of 16 to 256 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from dcgan_dist.config import ModelConfig
from dcgan_dist.models.family import Family
from dcgan_dist.models.network import (
    Discriminator,
    Generator,
    base_side,
    convolution,
    layer,
    leaky_relu,
    norm_of_maps,
    projection,
    scale_count,
    transposed_convolution,
)


class DcganGenerator(Generator):
    """z -> projection to small maps -> fractionally-strided convolutions, each of which doubles the side -> image.

    There are `ngf` channels in the last hidden scale and twice as many in each earlier one: 64x64 images from
    4x4x(8 ngf), 8x8x(4 ngf), 16x16x(2 ngf), 32x32x(ngf). With two convolutions per scale, the first doubles the side
    and keeps the channels, the second halves the channels. ReLU, with tanh at the end.
    """

    def __init__(self, config: ModelConfig, image_size: int, channels: int, _classes: int = 0) -> None:
        super().__init__(config.z_dim, 0, (-1.0, 1.0))
        scales = scale_count(image_size)
        widths = [config.ngf << scale for scale in reversed(range(scales))]
        self.projection = projection(config, config.z_dim, widths[0], base_side(image_size))
        shapes: list[tuple[int, int, int]] = []  # input and output channels and stride of each convolution
        for width, next_width in zip(widths, [*widths[1:], channels], strict=True):
            if config.convs_per_scale == 2:
                shapes.append((width, width, 2))
                shapes.append((width, next_width, 1))
            else:
                shapes.append((width, next_width, 2))
        self.layers = nn.ModuleList()
        for index, (inputs, outputs, stride) in enumerate(shapes):
            is_last = index == len(shapes) - 1
            self.layers.append(
                layer(
                    conv=transposed_convolution(config, inputs, outputs, stride),
                    norm=norm_of_maps(config, outputs, wanted=_is_normed(config, is_outermost=is_last)),
                    activation=nn.Tanh() if is_last else nn.ReLU(inplace=True),
                )
            )

    def feature_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of all hidden layers in order, and the image last; `y` has width 0."""
        maps = [self.projection(z)]
        for stage in self.layers:
            maps.append(stage(maps[-1]))
        return maps


class DcganDiscriminator(Discriminator):
    """Image -> strided convolutions, each of which halves the side -> small maps -> one dense layer -> logit.

    There are `ndf` channels in the first scale and twice as many in each later one. With two convolutions per scale,
    the first sets the channels, the second halves the side. LeakyReLU in all layers.
    """

    def __init__(self, config: ModelConfig, image_size: int, channels: int, _classes: int = 0) -> None:
        super().__init__()
        strides = (1, 2) if config.convs_per_scale == 2 else (2,)
        self.layers = nn.ModuleList()
        width = channels
        for scale in range(scale_count(image_size)):
            for stride in strides:
                inputs, width = width, config.ndf << scale
                self.layers.append(
                    layer(
                        conv=convolution(config, inputs, width, stride),
                        norm=norm_of_maps(config, width, wanted=_is_normed(config, is_outermost=not self.layers)),
                        activation=leaky_relu(config),
                    )
                )
        self.pools = config.head == "average_pool"
        units = width if self.pools else width * base_side(image_size) ** 2
        self.head = nn.Linear(units, 1, bias=config.conv_bias)

    def feature_maps(self, image: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations, after LeakyReLU, of all convolutional layers in order; `y` has width 0."""
        maps: list[Tensor] = []
        for stage in self.layers:
            maps.append(stage(maps[-1] if maps else image))
        return maps

    def classify(self, features: Tensor, y: Tensor) -> Tensor:
        """Return logits, (n,), for the last of the `feature_maps`; `y` has width 0."""
        values = features.mean(dim=(2, 3)) if self.pools else features.flatten(1)
        logits: Tensor = self.head(values)
        return logits.squeeze(1)


def _is_normed(config: ModelConfig, is_outermost: bool) -> bool:
    """Return whether a convolution has batch norm; the outermost ones, next to the image, have it only with `all`."""
    return config.batch_norm == "all" or (config.batch_norm == "paper" and not is_outermost)


FAMILIES = (
    Family(
        name="dcgan",
        is_conditional=False,
        generator=DcganGenerator,
        discriminator=DcganDiscriminator,
        settings=frozenset(
            {
                *("ngf", "ndf", "kernel_size", "convs_per_scale", "conv_bias", "head"),
                *("batch_norm", "norm_gain_init", "projection_norm", "norm_eps", "norm_momentum"),
            }
        ),
    ),
)
