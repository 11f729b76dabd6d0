"""Where images come from, one file per kind of source.

A source lists what it has one item after the other, in an order that does not change. Nothing is decoded here: an item
says how to make its picture, so that worker processes can.
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
