"""The samples of a generator that the scores use."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.models.network import Generator
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import sample_feature_maps, to_uint8

_BATCH = 250


def sample_batches(
    generator: Generator, model: ModelConfig, count: int, seed: int, device: torch.device
) -> Iterator[Pixels]:
    """Yield the first `count` samples of a generator as uint8 images (n, S, S, C), in batches.

    Sample i depends on (seed, i), not on `count`. The labels of a conditional generator are its classes in turn.

    Raises:
        RunDirectoryError: the samples are not finite.
    """
    generator = generator.to(device)
    classes = model.classes or 0
    for number, start in enumerate(range(0, count, _BATCH)):
        # Always whole batches: some generators normalise samples with the statistics of their batch.
        y = one_hot(torch.arange(start, start + _BATCH) % max(classes, 1), classes).to(device)
        z = draw_z(seed, "evaluate", number, _BATCH, model.z_dim, model.z_distribution).to(device)
        images, _ = sample_feature_maps(generator, z, y, model)
        if not torch.isfinite(images).all():
            raise RunDirectoryError("the samples of the generator are not finite: the run has diverged, score another")
        yield to_uint8(images, generator.image_range)[: count - start]
