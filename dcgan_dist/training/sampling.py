"""Images from a generator: samples of given z, and grids of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcgan_dist.config import ModelConfig
from dcgan_dist.training.batch_norm import evaluation
from dcgan_dist.training.draws import draw_labels, draw_z, one_hot

_BATCH, _MEASURED = 64, 1024  # samples that statistics are measured on, together and in all


def fixed_inputs(config: ModelConfig, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the z (count, z_dim) and one-hot y (count, classes) whose samples are shown all through a run.

    A conditional model's grid has one class a row, in turn.
    """
    classes = config.classes or 0
    z = draw_z(seed, "fixed", 0, count, config.z_dim, config.z_distribution)
    labels = draw_labels(seed, "fixed", 0, count, classes)
    if classes:
        labels = (torch.arange(count) // grid_columns(count, classes)) % classes
    return z, one_hot(labels, classes)


@torch.no_grad()
def sample_feature_maps(
    generator: nn.Module, z: torch.Tensor, y: torch.Tensor, config: ModelConfig
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the images (n, C, S, S) of z and the activations of every hidden layer; the generator is not changed."""
    with evaluation(generator, batch_statistics=config.sample_statistics == "batch"):
        *hidden, images = generator.feature_maps(z, y)  # type: ignore[operator]
    return images, hidden


@torch.no_grad()
def measure_statistics(generator: nn.Module, config: ModelConfig, seed: int) -> None:
    """Set the running statistics of a generator's batch norm to those of 1,024 samples, and leave it in evaluation.

    Each batch of 64 is normalised by its own. A conditional model's samples are of all classes in turn.
    """
    layers: list[nn.Module] = [part for part in generator.modules() if isinstance(part, _BatchNorm)]
    if layers:
        momenta = [part.momentum for part in layers]
        for part in layers:
            part.reset_running_stats()  # type: ignore[operator]
            part.momentum = None  # type: ignore[assignment]  # the mean over all batches
        generator.train()
        like, classes = next(generator.parameters()), config.classes or 0
        for number in range(_MEASURED // _BATCH):
            z = draw_z(seed, "statistics", number, _BATCH, config.z_dim, config.z_distribution)
            y = one_hot((torch.arange(_BATCH) + number * _BATCH) % max(classes, 1), classes)
            generator(z.to(like.device, like.dtype), y.to(like.device, like.dtype))
        for part, momentum in zip(layers, momenta, strict=True):
            part.momentum = momentum
    generator.eval()


def to_real(images: torch.Tensor, image_range: tuple[float, float], dtype: torch.dtype) -> torch.Tensor:
    """Scale uint8 images (n, S, S, C) to the range that the networks work in, as (n, C, S, S) lying channels last."""
    low, high = image_range
    return images.permute(0, 3, 1, 2).to(dtype).mul_((high - low) / 255).add_(low)


def to_uint8(images: torch.Tensor, image_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Scale images (n, C, S, S) back to uint8 (n, S, S, C)."""
    low, high = image_range
    scaled = (images.float() - low) * (255 / (high - low))
    array: npt.NDArray[np.uint8] = scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def grid_columns(count: int, classes: int = 0) -> int:
    """Columns of a grid of `count` images: as square as can be, with a row for each class where it has enough."""
    square = math.ceil(math.sqrt(count))
    return min(square, math.ceil(count / classes)) if 0 < classes <= count else square


def make_grid(images: npt.NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> npt.NDArray[np.uint8]:
    """Lay out uint8 images (n, S, S, C) in rows of `columns`, with white lines of `gap` pixels between them."""
    count, height, width, channels = images.shape
    columns = columns or grid_columns(count)
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid
