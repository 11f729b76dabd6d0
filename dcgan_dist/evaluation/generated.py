"""How well a conditional generator has the distribution of its data (appendix of the paper, Table 3).

A 1-nearest-neighbour classifier (Euclidean distance of pixels) is trained on generated images with the labels that
they were asked for, and judged by real test images; the control is the same classifier on real training images.
"""

from __future__ import annotations

import numpy as np
import torch

from dcgan_dist.evaluation.baselines import NearestNeighbours
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.features import load_generator
from dcgan_dist.evaluation.labelled import Labels
from dcgan_dist.evaluation.tasks import Partition, Rows, Values, predict_all, wilson
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import sample_feature_maps, to_uint8

_BATCH = 250


def generate(location: str, step: int, count: int, seed: int, device: torch.device) -> tuple[Array, Labels, str]:
    """Return `count` images of a run's generator as rows of uint8, their labels (in turn), and the digest.

    Raises:
        RunDirectoryError, StorageError: see `load_discriminator`.
    """
    generator, model, digest = load_generator(location, step)
    generator = generator.to(device)
    classes = model.classes or 0
    labels = np.arange(count, dtype=np.int64) % max(classes, 1)
    rows = []
    for number, start in enumerate(range(0, count, _BATCH)):
        y = one_hot(torch.from_numpy(labels[start : start + _BATCH]), classes).to(device)
        z = draw_z(seed, "evaluate", number, len(y), model.z_dim, model.z_distribution).to(device)
        images, _ = sample_feature_maps(generator, z, y, model)
        rows.append(to_uint8(images, generator.image_range).reshape(len(y), -1))
    return np.concatenate(rows), labels, digest


def nearest_neighbour_score(
    values: Values, labels: Labels, rows: Rows, test_values: Values, partition: Partition, device: torch.device
) -> tuple[float, tuple[float, float], int]:
    """Return the accuracy in percent of a 1-NN classifier fitted to `rows`, its interval and the number of images."""
    (models,) = NearestNeighbours(device).fit(values, labels, [rows], (1.0,), partition.classes)
    found = predict_all(models, test_values, partition.test, device)[0].numpy()
    right = int((found == partition.test_labels[partition.test]).sum())
    return 100 * right / len(found), wilson(right, len(found)), len(found)
