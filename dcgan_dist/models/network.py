"""The interface of networks to the training loop, and the layers that they are built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
from torch import Tensor, nn

from dcgan_dist.config import ModelConfig


class Generator(nn.Module, ABC):
    """A map from noise, and a label if the family is conditional, to images.

    Attributes:
        z_dim: length of the noise vector.
        classes: width of the one-hot label; 0 for an unconditional generator.
        image_range: minimum and maximum value of a pixel; real images are scaled to it.
    """

    def __init__(self, z_dim: int, classes: int, image_range: tuple[float, float]) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.classes = classes
        self.image_range = image_range

    @abstractmethod
    def feature_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of all hidden layers in order, and the image last.

        Args:
            z: noise, (n, z_dim).
            y: one-hot labels, (n, classes).
        """

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images, (n, channels, size, size), for noise (n, z_dim) and one-hot labels (n, classes)."""
        return self.feature_maps(z, y)[-1]


class Discriminator(nn.Module, ABC):
    """A map from images, and their labels if the family is conditional, to logits of being real.

    Attributes:
        dropout_units: number of units per image to which dropout applies in training; 0 without dropout.
    """

    dropout_units: int = 0

    @abstractmethod
    def feature_maps(self, image: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of all convolutional layers in order; in dense families, of the hidden layers.

        Args:
            image: (n, channels, size, size), in the generator's `image_range`.
            y: one-hot labels, (n, classes).
        """

    @abstractmethod
    def classify(self, features: Tensor, y: Tensor) -> Tensor:
        """Return logits, (n,), for the last of the `feature_maps` and one-hot labels (n, classes)."""

    def forward(self, image: Tensor, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return logits, (n,), for images and their labels.

        Args:
            image: (n, channels, size, size), in the generator's `image_range`.
            y: one-hot labels, (n, classes).
            draws: (n, dropout_units) from U[0, 1), which decide the units that dropout sets to 0; None for no dropout.
        """
        return self.classify(self.feature_maps(image, y)[-1], y)


def base_side(image_size: int) -> int:
    """Return the side of the smallest feature maps in pixels: 7 for 28x28 images, else 4."""
    return 7 if image_size == 28 else 4


def scale_count(image_size: int) -> int:
    """Return how often the side of the smallest feature maps is doubled to that of the image: 4 for 64x64."""
    return (image_size // base_side(image_size)).bit_length() - 1


def convolution(config: ModelConfig, inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Return a convolution that keeps (stride 1) or halves (stride 2) the side of its maps."""
    # (k - 1) // 2 is k // 2 for the odd kernels, and 1 for the 4x4 kernel.
    padding = (config.kernel_size - 1) // 2
    return nn.Conv2d(inputs, outputs, config.kernel_size, stride, padding, bias=config.conv_bias)


def transposed_convolution(config: ModelConfig, inputs: int, outputs: int, stride: int) -> nn.ConvTranspose2d:
    """Return a fractionally-strided convolution that keeps (stride 1) or doubles (stride 2) the side of its maps."""
    size = config.kernel_size
    # Without it, the output of an odd kernel with stride 2 would lack one row and column.
    extra = 1 if stride == 2 and size % 2 else 0
    return nn.ConvTranspose2d(inputs, outputs, size, stride, (size - 1) // 2, extra, bias=config.conv_bias)


def join(values: Tensor, y: Tensor) -> Tensor:
    """Concatenate one-hot labels (n, classes) to vectors, (n, c), or, as constant maps, to images, (n, c, h, w)."""
    y = y.to(values.dtype)
    if values.dim() == 2:
        return torch.cat((values, y), dim=1)
    return torch.cat((values, y[:, :, None, None].expand(-1, -1, *values.shape[2:])), dim=1)


def layer(**parts: nn.Module | None) -> nn.Sequential:
    """Return a layer of named modules, applied in the given order; those that are None are left out."""
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if part is not None))


def leaky_relu(config: ModelConfig) -> nn.LeakyReLU:
    """Return D's activation; in place, to save memory, unless the slope is negative, where autograd refuses that."""
    return nn.LeakyReLU(config.slope, inplace=config.slope >= 0)


def norm_of_maps(config: ModelConfig, channels: int, wanted: bool, affine: bool = True) -> nn.BatchNorm2d | None:
    """Return batch norm over each of the `channels`; None if not `wanted`."""
    return nn.BatchNorm2d(channels, config.norm_eps, config.norm_momentum, affine) if wanted else None


def norm_of_units(config: ModelConfig, units: int, wanted: bool, affine: bool = True) -> nn.BatchNorm1d | None:
    """Return batch norm over each of the `units` of a dense layer; None if not `wanted`."""
    return nn.BatchNorm1d(units, config.norm_eps, config.norm_momentum, affine) if wanted else None


def projection(config: ModelConfig, inputs: int, channels: int, side: int, affine: bool = True) -> nn.Sequential:
    """Return the layer from a vector, (n, inputs), to maps, (n, channels, side, side): dense, batch norm, ReLU.

    A dense layer with reshaped output is the same map as the 1x1 to 4x4 transposed convolution of the PyTorch example.
    With `projection_norm` `released`, batch norm is over each unit of it, else over each channel.
    """
    units = channels * side * side
    dense = nn.Linear(inputs, units, bias=config.conv_bias)
    maps = nn.Unflatten(1, (channels, side, side))
    normed = config.batch_norm != "none"
    if config.projection_norm == "released":
        norm = norm_of_units(config, units, normed, affine)
        return layer(dense=dense, norm=norm, activation=nn.ReLU(inplace=True), maps=maps)
    per_channel = norm_of_maps(config, channels, normed, affine)
    # Without batch norm in between, an activation in place would write to the view returned by `maps`.
    return layer(dense=dense, maps=maps, norm=per_channel, activation=nn.ReLU(inplace=normed))
