"""Sources of images, one file per kind.

A source yields its items one after the other, in a fixed order. Nothing is decoded here: an item knows how to make its
image, so that worker processes can do it.
"""

from dcgan_dist.data.sources.base import (
    Content,
    EncodedImage,
    Folders,
    Item,
    Part,
    RawImage,
    Source,
    Split,
    Unreadable,
    classes_of,
    nothing_found,
    shuffled,
    single_class_of,
)
from dcgan_dist.data.sources.cifar10 import CIFAR10_CLASSES, read_cifar_batch
from dcgan_dist.data.sources.opening import open_source
from dcgan_dist.data.sources.rooms import room_source

__all__ = [
    "CIFAR10_CLASSES",
    "Content",
    "EncodedImage",
    "Folders",
    "Item",
    "Part",
    "RawImage",
    "Source",
    "Split",
    "Unreadable",
    "classes_of",
    "nothing_found",
    "open_source",
    "read_cifar_batch",
    "room_source",
    "shuffled",
    "single_class_of",
]
