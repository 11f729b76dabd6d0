"""The fixed feature space `random-conv-v1`, in which images of all runs are compared, and which anyone can rebuild.

This is the complete recipe. An image of 32x32 RGB pixels (`data.images.fit` converts any other; grey is repeated) is
scaled to [-1, 1] and goes through six 3x3 convolutions without bias, zero-padded by one pixel, with 128, 128, 256, 256,
512 and 512 filters and strides 1, 2, 1, 2, 1, 2 (the discriminator of `configs/imagenet32.yaml`), each followed by a
LeakyReLU of slope 0.2. The 512 maps of 4x4 are averaged to 512 values.

There is no batch norm, so that the features of an image depend on no other image. Instead the weights are chosen so
that activations neither grow nor shrink from layer to layer:

- Filter f of layer l (from 0) has fan_in raw weights, in the order (input channel, row, column). Weight i of the layer,
  counted through all its filters, is the sum of the twelve 16-bit words of the 64-bit draws 3i, 3i + 1 and 3i + 2 of
  ``numpy.random.Philox(key=[1, 0], counter=[0, 0, l, 0])``, minus 6 * 65535, divided by 65536: nearly normal with mean
  0 and variance 1, in integers up to the division.
- From layer 1 on, the mean of a filter's weights is subtracted from them, so that the filter ignores the common part of
  its inputs (the mean that a LeakyReLU leaves). In layer 0, half of the mean of the filter's nine weights of each
  channel is subtracted from these nine, because brightness and colour would dominate everything else: without the
  subtraction, images and their blurred copies could hardly be distinguished; with the whole mean subtracted, colour
  images and their grey copies.
- All weights are multiplied by 1.5 / sqrt(fan_in), computed in float64, and rounded to float32.

Every operation is exact or rounded as IEEE 754 specifies, so the weights have the same bits everywhere;
`RANDOM_CONV_DIGEST` is the SHA-256 of the weights, little-endian, layer after layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.data.images import Pixels
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.training.sampling import to_real

RANDOM_CONV_DIGEST = "1210c52b6efe1b69b21a72f3994b1602f2d62e2546800cd975898c95e45c2a83"

_WIDTHS = (3, 128, 128, 256, 256, 512, 512)
_KEY = (1, 0)
_GAIN = 1.5
_SLOPE = 0.2
_WORDS = 12  # uniform 16-bit numbers whose sum is nearly normal, with the variance 2**32 - 1
_BATCH = 64  # on a CPU: its caches can hold the maps of so many
_BATCH_ON_GPU = 512


def random_conv_weights() -> list[npt.NDArray[np.float32]]:
    """Return the weights of `random-conv-v1`, one array (filters, channels, 3, 3) for each layer."""
    layers = []
    for number, (inputs, filters) in enumerate(pairwise(_WIDTHS)):
        fan_in = inputs * 9
        source = np.random.Philox(key=np.array(_KEY, np.uint64), counter=np.array([0, 0, number, 0], np.uint64))
        draws = source.random_raw(filters * fan_in * _WORDS // 4).astype("<u8", copy=False)
        words = draws.view("<u2").reshape(filters, fan_in, _WORDS)
        raw = words.sum(axis=2, dtype=np.int64) - _WORDS // 2 * 65535
        # Both sides are multiplied by the number of weights in the mean, so that the subtraction stays in integers.
        parts = raw.reshape(filters, -1, fan_in if number else 9)
        multiple = fan_in if number else 18
        centred = parts * multiple - parts.sum(axis=2, keepdims=True)
        scaled = centred / np.float64(multiple * 65536) * (_GAIN / np.sqrt(np.float64(fan_in)))
        layers.append(scaled.astype(np.float32).reshape(filters, inputs, 3, 3))
    return layers


def weights_digest(layers: Sequence[npt.NDArray[np.float32]]) -> str:
    """Return the SHA-256 of weights, little-endian, layer after layer, as 64 hex digits."""
    digest = hashlib.sha256()
    for weights in layers:
        digest.update(np.ascontiguousarray(weights, dtype="<f4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class RandomConv:
    """The extractor `random-conv-v1` (see `feature_files.Extractor`)."""

    device: str = "cpu"
    key: str = "random-conv-v1"
    image_size: int = 32
    channels: int = 3
    dimension: int = _WIDTHS[-1]
    dtype: str = "float32"

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> Array:
        """See `Extractor`."""
        network = _random_conv(self.device)
        rows = np.empty((len(images), self.dimension), dtype=np.float32)
        size = _BATCH if self.device == "cpu" else _BATCH_ON_GPU
        for start in range(0, len(images), size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + size])).to(self.device)
            maps = network(to_real(batch, (-1.0, 1.0), torch.float32))
            rows[start : start + size] = maps.mean(dim=(2, 3)).cpu().numpy()
        return rows


@lru_cache(maxsize=1)
def _random_conv(device: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, weights in enumerate(random_conv_weights()):
        filters, inputs = weights.shape[:2]
        convolution = nn.Conv2d(inputs, filters, 3, 1 + number % 2, 1, bias=False)
        convolution.weight = nn.Parameter(torch.from_numpy(weights), requires_grad=False)
        layers += [convolution, nn.LeakyReLU(_SLOPE, inplace=True)]
    network = nn.Sequential(*layers).eval().to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
