"""Colour profiles, and values of more than 8 bits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile

from dcgan_dist.errors import DataError

WHITE = 65535
_PROFILE_MARK = b"ICC_PROFILE\0"
_PROFILE_REACH = 1 << 17  # a JPEG's profile is in its first segments, of less than 64 KiB each
_SAME_LEVELS = 2  # of 255: the difference between sRGB profiles of different makers
_SPACES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}


@dataclass(frozen=True, slots=True)
class Remarks:
    """What was noticed while images were decoded and fitted; `+` combines the remarks of several images.

    Attributes:
        cut: sum over the images of the share that was cut off, in millionths.
        profiles: number of images whose colour profile could not be used.
        deep: number of images of more than 8 bits per value.
        highest: the highest value in these.
        over: number of images with values above the one that becomes white.
    """

    cut: int = 0
    profiles: int = 0
    deep: int = 0
    highest: int = 0
    over: int = 0

    def __add__(self, other: Remarks) -> Remarks:
        return Remarks(
            self.cut + other.cut,
            self.profiles + other.profiles,
            self.deep + other.deep,
            max(self.highest, other.highest),
            self.over + other.over,
        )


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    """Return whether a colour profile leaves some test colours, light and dark, unchanged."""
    mode = _SPACES[profile[16:20]]
    grey = np.linspace(0, 255, 18, dtype=np.uint8)
    probe = np.stack([grey, np.roll(grey, 5), np.roll(grey, 11)], axis=1)[None] if mode == "RGB" else grey[None]
    converted = np.asarray(_converted(Image.fromarray(probe), profile))
    expected = np.asarray(Image.fromarray(probe).convert("RGB"))
    return bool(np.abs(converted.astype(int) - expected).max() <= _SAME_LEVELS)


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it is None only for conversion in place
    return converted


def to_srgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Convert an image of mode L, RGB or CMYK to sRGB; also return whether its profile, if any, could be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image, True
    space = _SPACES.get(profile[16:20])
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if space != image.mode:  # the profile is for another kind of colours
        return image, False
    try:
        return (image if space != "CMYK" and _is_srgb(profile) else _converted(image, profile)), True
    except (ImageCms.PyCMSError, OSError):
        return image, False


def has_other_profile(jpeg: bytes) -> bool:
    """Return whether a JPEG has a colour profile that is not known to be sRGB."""
    mark = jpeg.find(_PROFILE_MARK, 0, _PROFILE_REACH)
    if mark < 0:
        return False
    # A segment: its length (2 bytes, included in it), the mark, the number of this part of the profile and the number
    # of parts (1 byte each), the part.
    start = mark + len(_PROFILE_MARK) + 2
    profile = jpeg[start : mark - 2 + int.from_bytes(jpeg[mark - 2 : mark], "big")]
    try:
        return jpeg[start - 2 : start] != b"\1\1" or profile[16:20] != b"RGB " or not _is_srgb(profile)
    except (ImageCms.PyCMSError, OSError):
        return True


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an image that is not loaded yet has more than 8 bits per value."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or any(";16" in str(tile) for tile in image.tile)


def to_eight_bits(image: Image.Image, white: float | None) -> tuple[npt.NDArray[np.uint8], Remarks]:
    """Convert an image that `is_deep` to 8-bit values; also return the range of its values.

    Args:
        image: of mode I, F or I;16, with grey levels; or of another mode, which Pillow has converted to 8 bits already.
        white: the value that becomes 255, as all values above it; None for 65,535.

    Raises:
        DataError: `white` is needed for its values, or cannot be applied to them.
    """
    values = np.asarray(image)
    if values.dtype == np.uint8:
        if white is not None:
            raise DataError("it has 16-bit colours, which white_value cannot stretch: convert it to 8 bits")
        return values, Remarks(deep=1, highest=int(values.max(initial=0)) * 257)
    lowest, highest = float(values.min()), float(values.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)) or lowest < 0:
        raise DataError(f"its values go from {lowest:g} to {highest:g}, and only 0 and more are taken")
    if white is None and (highest > WHITE or values.dtype.kind == "f"):
        raise DataError(f"its values go up to {highest:g}: say with white_value which becomes white")
    remarks = Remarks(deep=1, highest=int(highest), over=int(white is not None and highest > white))
    if white is None or white == WHITE:
        return ((values.astype(np.uint32) * 255 + WHITE // 2) // WHITE).astype(np.uint8), remarks
    return np.floor(np.minimum(values / white, 1) * 255 + 0.5).astype(np.uint8), remarks
