"""Colour profiles against the matrices of their standards, and values of more than 8 bits."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dcgan_dist.data import colours, images
from dcgan_dist.data.images import Target, decode, decode_fitted
from dcgan_dist.errors import DataError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Red, green and blue of Display P3 and of sRGB in CIE XYZ (D50), as their profiles have them.
P3_XYZ = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
SRGB_XYZ = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])


def profile_with(colorants: np.ndarray) -> bytes:
    """sRGB's profile, its texts too, with other colorants."""
    profile = bytearray(SRGB)
    for number in range(struct.unpack(">I", profile[128:132])[0]):
        name, offset, _ = struct.unpack(">4sII", profile[132 + 12 * number : 144 + 12 * number])
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = colorants[b"rgb".index(name[:1])]
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *np.round(values * 65536).astype(int).tolist())
    return bytes(profile)


P3 = profile_with(P3_XYZ)


def p3_to_srgb(image: np.ndarray) -> np.ndarray:
    """Convert by the definition: linear light, the two matrices, sRGB's curve."""
    share = image / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ P3_XYZ @ np.linalg.inv(SRGB_XYZ), 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def patches() -> np.ndarray:
    """48 colours, in squares of 8 x 8 pixels, so that a JPEG keeps them."""
    colours_ = np.random.default_rng(0).integers(30, 226, (6, 8, 3), dtype=np.uint8)
    return colours_.repeat(8, axis=0).repeat(8, axis=1)


def of(mode: str) -> Image.Image:
    image = Image.fromarray(patches())
    return image.quantize(64) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("JPEG", "RGB")],
)
def test_display_p3_becomes_srgb_whatever_the_texts_of_its_profile_say(kind, mode):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    content = saved(of(mode), kind, icc_profile=P3, **options)
    found = decode(content).astype(int)
    # The rounding of JPEG is not tested: compare the middle of each patch, within three levels.
    expected = p3_to_srgb(decode(saved(of(mode), kind, **options)))
    assert np.abs(found - expected)[4::8, 4::8].max() <= 3
    assert np.abs(found - patches()).max() > 20


def test_a_jpeg_that_speaks_of_srgb_elsewhere_is_converted_by_its_profile():
    content = saved(of("RGB"), "JPEG", quality=100, subsampling=0, icc_profile=P3, comment=b"made for sRGB screens")
    assert b"for sRGB" in content[:65536]
    expected = p3_to_srgb(patches())
    assert np.abs(decode(content).astype(int) - expected)[4::8, 4::8].max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_of_srgb_changes_nothing(kind):
    image = Image.fromarray(patches())
    np.testing.assert_array_equal(decode(saved(image, kind, icc_profile=SRGB)), decode(saved(image, kind)))


def test_a_grey_image_with_a_profile_of_colours_is_converted_as_its_three_equal_colours_would_be():
    dark = profile_with(SRGB_XYZ * 0.5)
    grey = Image.fromarray(np.arange(0, 256, dtype=np.uint8).repeat(8).reshape(32, 64))
    found = decode(saved(grey, "PNG", icc_profile=dark))
    np.testing.assert_array_equal(found, decode(saved(grey.convert("RGB"), "PNG", icc_profile=dark)))


@pytest.mark.parametrize(
    "profile", [b"x" * 200, P3[:90], P3[:300], bytes(3 << 20)], ids=["text", "cut", "half", "long"]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_damaged_profile_is_as_none_and_counted(profile, kind):
    content = saved(Image.fromarray(patches()), kind, icc_profile=profile)
    expected = decode(saved(Image.fromarray(patches()), kind))
    found, remarks = decode_fitted(content, Target(48))
    np.testing.assert_array_equal(decode(content), expected)
    np.testing.assert_array_equal(found, images.fit(expected, 48, 3))
    assert remarks.profiles == 1


def deep_png(values: np.ndarray) -> bytes:
    """Return a PNG of 16 bits with 1, 3 or 4 channels, written by hand, since Pillow only writes grey ones."""
    rows, columns, channels = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", columns, rows, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


RAMP = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)


def deep(kind: str) -> bytes:
    if kind == "PNG":
        return deep_png(RAMP[..., None])
    if kind == "PGM":
        return b"P5\n16 16\n65535\n" + RAMP.astype(">u2").tobytes()
    if kind == "TIFF of 32 bits":
        return saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF")
    if kind == "TIFF of floats":
        return saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    return saved(Image.fromarray(RAMP), "TIFF")


@pytest.mark.parametrize("kind", ["PNG", "PGM", "TIFF", "TIFF of 32 bits", "TIFF of floats"])
def test_12_bit_values_fill_the_range_where_white_is_4095(kind):
    found, remarks = decode_fitted(deep(kind), Target(16, 1, white=4095))
    np.testing.assert_array_equal(found[..., 0], np.floor(RAMP / 4095 * 255 + 0.5))
    assert (remarks.deep, remarks.highest, remarks.over) == (1, 4095, 0)
    found, remarks = decode_fitted(deep(kind), Target(16, 1, white=2000))
    assert (found[..., 0] == 255).sum() >= (RAMP > 2000).sum()
    assert remarks.over == 1


@pytest.mark.parametrize("kind", ["PNG", "PGM", "TIFF", "TIFF of 32 bits"])
def test_the_range_of_16_bits_is_noticed(kind):
    found, remarks = decode_fitted(deep(kind), Target(16, 1))
    assert found.max() == 16
    assert (remarks.deep, remarks.highest) == (1, 4095)


@pytest.mark.parametrize("channels", [3, 4])
def test_dark_colours_of_16_bits_are_noticed_and_not_stretched(channels):
    values = np.stack([RAMP, RAMP, RAMP, np.full_like(RAMP, 65535)][:channels], axis=2)
    _, remarks = decode_fitted(deep_png(values), Target(16))
    assert (remarks.deep, remarks.highest < 1 << 13 or channels == 4) == (1, True)
    with pytest.raises(DataError, match="convert it to 8 bits"):
        decode_fitted(deep_png(values), Target(16, white=4095))


def test_values_that_no_rule_makes_grey_levels_of_are_refused():
    with pytest.raises(DataError, match=r"go up to 4095: say with white_value which becomes white"):
        decode(deep("TIFF of floats"))
    with pytest.raises(DataError, match=r"go from -5 to"):
        decode_fitted(saved(Image.fromarray(RAMP.astype(np.int32) - 5), "TIFF"), Target(16, white=10))
    nan = np.full((4, 4), np.nan, np.float32)
    with pytest.raises(DataError, match="nan"):
        decode_fitted(saved(Image.fromarray(nan), "TIFF"), Target(16, white=10))
    with pytest.raises(DataError, match="go up to 70000"):
        decode(saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"))


def test_remarks_are_added_up():
    first, second = colours.Remarks(1, 0, 1, 4095, 0), colours.Remarks(2, 1, 1, 100, 1)
    assert first + second == colours.Remarks(3, 1, 2, 4095, 1)
