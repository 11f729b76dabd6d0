"""The scores that the paper published (Radford, Metz, Chintala 2015, Tables 1 to 3), shown next to a run's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """How the paper measured the numbers of one of its tables.

    Attributes:
        table: name of the table.
        title: what is measured.
        trained_on: images on which the discriminator was trained.
        image_size: their side in pixels.
        method: row of the paper's own method in the table.
        how: the protocol in one sentence.
    """

    table: str
    title: str
    trained_on: str
    image_size: int
    method: str
    how: str


# Method, accuracy in percent, units; from the paper's Tables 1 to 3. Tables 2 and 3 give errors, here subtracted from
# 100; the numbers of Table 3 are for 50,000 samples.
PUBLISHED: dict[tuple[str, str], tuple[tuple[str, str, str], ...]] = {
    ("cifar10", "full"): (
        ("1-layer k-means", "80.6", "4800"),
        ("3-layer k-means, learned RF", "82.0", "3200"),
        ("view-invariant k-means", "81.9", "6400"),
        ("Exemplar CNN", "84.3", "1024"),
        ("DCGAN + L2-SVM", "82.8", "512"),
    ),
    ("cifar10", "400-per-class"): (
        ("1-layer k-means", "63.7 ± 0.7", "4800"),
        ("3-layer k-means, learned RF", "70.7 ± 0.7", "3200"),
        ("view-invariant k-means", "72.6 ± 0.7", "6400"),
        ("Exemplar CNN", "77.4 ± 0.2", "1024"),
        ("DCGAN + L2-SVM", "73.8 ± 0.4", "512"),
    ),
    ("one-nn", "1-nn"): (
        ("real data", "96.9", ""),
        ("GAN", "93.72", ""),
        ("DCGAN", "97.02", ""),
    ),
    ("svhn", "100-per-class"): (
        ("KNN", "22.07", ""),
        ("TSVM", "33.45", ""),
        ("M1+KNN", "34.37", ""),
        ("M1+TSVM", "45.67", ""),
        ("M1+M2", "63.98", ""),
        ("SWWAE without dropout", "72.17", ""),
        ("SWWAE with dropout", "76.44", ""),
        ("DCGAN + L2-SVM", "77.52", ""),
        ("supervised CNN, same architecture (validation)", "71.13", ""),
    ),
}

TABLE_3 = (
    ("real data", "3.1", ""),
    ("GAN", "6.28", "5.65"),
    ("DCGAN", "2.98", "1.48"),
    ("InfiMNIST", "", "2.6"),
    ("AlignMNIST", "", "1.4"),
)
"""Test errors in percent on MNIST of 1-NN classifiers that were trained on 50,000 and on 10 million images."""

SETUPS: dict[tuple[str, str], Setup] = {
    ("cifar10", "full"): Setup(
        "Table 1",
        "CIFAR-10, all labels",
        "ImageNet-1k",
        32,
        "DCGAN + L2-SVM",
        "L2-SVM on 28,672 values: every convolution's activations max-pooled to 4x4; 50,000 labels, 10,000 to test.",
    ),
    ("cifar10", "400-per-class"): Setup(
        "Table 1",
        "CIFAR-10, 400 labels per class",
        "ImageNet-1k",
        32,
        "DCGAN + L2-SVM",
        "L2-SVM on 28,672 values: every convolution's activations max-pooled to 4x4; 4,000 labels, several draws.",
    ),
    ("svhn", "100-per-class"): Setup(
        "Table 2",
        "SVHN, 1,000 labels",
        "SVHN",
        32,
        "DCGAN + L2-SVM",
        "L2-SVM on 7,168 values; 1,000 labels uniform over the classes, C chosen on 10,000 images, 100 draws.",
    ),
    ("one-nn", "1-nn"): Setup(
        "Table 3",
        "MNIST, nearest neighbour among generated images",
        "MNIST",
        28,
        "DCGAN",
        "1-nearest-neighbour classifier fitted to 50,000 generated, labelled images; 10,000 test images.",
    ),
}


def published_key(task: str, protocol: str) -> tuple[str, str]:
    """Return the key in `PUBLISHED` and `SETUPS` for a score's task and protocol (such as `400-per-class/bf16`)."""
    return task, protocol.partition("/")[0]
