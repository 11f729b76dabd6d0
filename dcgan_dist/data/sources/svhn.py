"""SVHN as it is distributed: cropped digits in MATLAB files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.data.sources.archives import digest_of_file
from dcgan_dist.data.sources.base import Item, RawImage, Source, Split
from dcgan_dist.errors import DataError

_CLASSES = tuple("0123456789")
_SHAPE = (32, 32, 3)
# The errors of scipy's reader on damaged content, in addition to its own MatReadError (a subclass of Exception). scipy
# is imported only where it is used: its import takes as long as the rest of this package.
_READER_ERRORS = (
    *(OSError, EOFError, LookupError, TypeError, ValueError, ArithmeticError, NotImplementedError),
    *(MemoryError, AttributeError, struct.error, zlib.error),
)


@dataclass(frozen=True, kw_only=True)
class SvhnSource(Source):
    """Cropped digits of 32x32 pixels; the label 10 stands for the digit 0.

    The file is one compressed block, so all its images are in memory at once: 3 KB each, 1.6 GB for `extra`.
    """

    path: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        import scipy.io

        try:
            # Nothing in such a file is executed: it can only contain arrays, structures and opaque bytes.
            content = scipy.io.loadmat(self.path, variable_names=("X", "y"))
            images, labels = content["X"], content["y"].ravel()
        except (*_READER_ERRORS, scipy.io.matlab.MatReadError) as error:
            raise _bad(self.path, error) from error
        if images.dtype != np.uint8 or images.shape[:3] != _SHAPE or images.shape[3:] != labels.shape:
            raise _bad(self.path, f"X is {images.dtype} of shape {images.shape}, y has {labels.size} labels")
        if labels.dtype.kind not in "ui" or not ((labels >= 0) & (labels <= 10)).all():
            raise _bad(self.path, "a label in y is not in 0 to 10")
        for number, label in enumerate(labels.tolist()):
            category = _CLASSES[label % 10]
            if not self.only or category in self.only:
                image = np.ascontiguousarray(images[..., number])
                yield Item(f"image {number}", (category,), RawImage(image), (number + 1) / len(labels))


def _bad(path: Path, reason: object) -> DataError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return DataError(f"{path} is damaged or no file of SVHN's cropped digits ({text}): get it again")


def svhn_source(path: Path, split: Split, only: tuple[str, ...]) -> SvhnSource:
    """Open ``train_32x32.mat``, ``test_32x32.mat`` or ``extra_32x32.mat``; `path` is its folder, or the file itself.

    Raises:
        DataError: it is missing, or is not such a file.
    """
    name = f"{split}_32x32.mat"
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path} holds no {name}: svhn takes the folder of the cropped digits (format 2), or the file")
    if file.name != name and file.name.endswith("_32x32.mat"):
        raise DataError(f"input {str(path)!r} is not of the split {split}: name {name}, or give --split")
    return SvhnSource(
        name="svhn",
        where=str(file),
        identity={"input": file.name, "input_bytes": file.stat().st_size, "input_digest": digest_of_file(file)},
        image_size=32,
        classes=_CLASSES,
        count=None if only else _count(file),
        only=only,
        path=file,
    )


def _count(path: Path) -> int:
    """Return the number of images in a file; only the headers of its arrays are read."""
    import scipy.io

    try:
        shapes: dict[str, Any] = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    except (*_READER_ERRORS, scipy.io.matlab.MatReadError) as error:
        raise _bad(path, error) from error
    shape = shapes.get("X", ())
    if len(shape) != 4 or shape[:3] != _SHAPE or "y" not in shapes:
        raise _bad(path, f"it has {', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'no arrays'}")
    return int(shape[3])
