"""How well a conditional generator has the distribution of its data (appendix of the paper, Table 3).

A 1-nearest-neighbour classifier (Euclidean distance of pixels) is trained on generated images with the labels that
they were asked for, and judged by real test images; the control is the same classifier on real training images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dcgan_dist.config import ModelConfig
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.evaluation.baselines import NearestNeighbours
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.labelled import Labels
from dcgan_dist.evaluation.tasks import Partition, Rows, Values, predict_all, wilson
from dcgan_dist.models.network import Generator
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import sample_feature_maps, to_uint8
from dcgan_dist.training.trained import load_generator

_BATCH = 250


def sample_batches(
    generator: Generator, model: ModelConfig, count: int, seed: int, device: torch.device
) -> Iterator[Pixels]:
    """Yield the first `count` samples of a generator as uint8 images (n, S, S, C), in batches.

    Sample i is a function of (seed, i), whatever `count` is; a conditional generator is asked for its classes in turn.

    Raises:
        RunDirectoryError: they are not finite.
    """
    generator = generator.to(device)
    classes = model.classes or 0
    for number, start in enumerate(range(0, count, _BATCH)):
        # Always whole batches, since samples may be normalised with the statistics of theirs.
        y = one_hot(torch.arange(start, start + _BATCH) % max(classes, 1), classes).to(device)
        z = draw_z(seed, "evaluate", number, _BATCH, model.z_dim, model.z_distribution).to(device)
        images, _ = sample_feature_maps(generator, z, y, model)
        if not torch.isfinite(images).all():
            raise RunDirectoryError("the samples of the generator are not finite: the run has diverged, score another")
        yield to_uint8(images, generator.image_range)[: count - start]


def generate(location: str, step: int, count: int, seed: int, device: torch.device) -> tuple[Array, Labels, str]:
    """Return `count` images of a run's generator as rows of uint8, their labels (in turn), and the digest.

    Raises:
        RunDirectoryError, StorageError: see `load_discriminator`.
    """
    generator, model, digest = load_generator(location, step)
    labels = np.arange(count, dtype=np.int64) % max(model.classes or 0, 1)
    batches = sample_batches(generator, model, count, seed, device)
    return np.concatenate([images.reshape(len(images), -1) for images in batches]), labels, digest


def nearest_neighbour_score(
    values: Values, labels: Labels, rows: Rows, test_values: Values, partition: Partition, device: torch.device
) -> tuple[float, tuple[float, float], int]:
    """Return the accuracy in percent of a 1-NN classifier fitted to `rows`, its interval and the number of images."""
    (models,) = NearestNeighbours(device).fit(values, labels, [rows], (1.0,), partition.classes)
    found = predict_all(models, test_values, partition.test, device)[0].numpy()
    right = int((found == partition.test_labels[partition.test]).sum())
    return 100 * right / len(found), wilson(right, len(found)), len(found)
