"""Single images: decode files of many formats, fit them to a square of S x S pixels, and encode them for shards.

Images are uint8 arrays of shape (rows, columns, channels), with 1 channel (grey) or 3 (red, green, blue).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
import webp
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from dcgan_dist.data.colours import Remarks, has_other_profile, is_deep, to_eight_bits, to_srgb
from dcgan_dist.errors import DataError

Pixels = npt.NDArray[np.uint8]
Encoding = Literal["jpg", "png", "raw"]
Fitting = Literal["crop", "pad", "stretch"]

# Pillow's readers of other formats are not used: some start programs, and photographs need none of them.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"),
)
# Suffixes of files in the same folders as images that are never images, whatever their content.
NO_IMAGES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".htm", ".pdf"),
    *(
        ".py",
        ".ipynb",
        ".sh",
        ".m",
        ".mat",
        ".npy",
        ".npz",
        ".pkl",
        ".pt",
        ".pth",
        ".h5",
        ".db",
        ".ini",
        ".lnk",
        ".url",
    ),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".parquet", ".mp4", ".mov", ".mp3", ".wav"),
)
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"II*\0", b"MM\0*")
# Pillow refuses longer texts and colour profiles in a PNG by default; our limit on files (256 MiB) is enough.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26
MAX_PIXELS = 100_000_000
JPEG_QUALITY = 95

# The errors of Pillow's and simplejpeg's readers on damaged content.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# The orientation of a JPEG is in its first segments, of less than 64 KiB each.
_TURNED_REACH = 1 << 17
_TURNED_MARKS = (b"Exif\0\0", b"tiff:Orientation")
_ORIENTATION = 0x0112  # the EXIF tag; 1 means upright
# Flags of an extended WebP: colour profile, transparency, EXIF and XMP (which may have an orientation), animation.
_WEBP_EXTRAS = 0x20 | 0x10 | 0x08 | 0x04 | 0x02
_SCALES = (8, 4, 2)


def decode(content: bytes, channels: int = 3) -> Pixels:
    """Decode an image file of one of `FORMATS` to an array of shape (rows, columns, channels).

    The content decides the format, not the name. Of an animation, the first frame is used; EXIF orientation is applied;
    transparent pixels are composed over white; palettes, CMYK and 16-bit values become 8-bit RGB or grey; a colour
    profile other than sRGB is converted.

    Raises:
        DataError: it is not such an image, damaged, truncated, or has more than `MAX_PIXELS` pixels.
    """
    return _to_channels(_decoded(content, None, None)[0], channels)


@dataclass(frozen=True, slots=True)
class Target:
    """The form that images are converted to.

    Attributes:
        size: side in pixels.
        channels: 1 (grey) or 3 (colour).
        fitting: how they are made square; see `fit`.
        white: the value of an image of more than 8 bits that becomes white; see `colours.to_eight_bits`.
    """

    size: int
    channels: int = 3
    fitting: Fitting = "crop"
    white: float | None = None


def decode_fitted(content: bytes, target: Target) -> tuple[Pixels, Remarks]:
    """Decode an image file and `fit` it: the same as `decode` followed by `fit`, but faster for large JPEGs.

    A JPEG is decoded at a half, a quarter or an eighth of its resolution if its shorter side then still has at least
    twice the wanted number of pixels, so that it keeps all frequencies that `fit` keeps. Photographs of 256 pixels
    fitted to 64 differ from the slow way by 0.4 of 255 grey levels on average (49 dB). The crop may be shifted by a
    quarter of a new pixel, since it starts at a whole pixel.

    Raises:
        DataError: see `decode`.
    """
    image, remarks = _decoded(content, target.size, target.white)
    fitted = fit(image, target.size, target.channels, target.fitting)
    return fitted, remarks + Remarks(cut=cut_off(image, target.fitting))


def _decoded(content: bytes, size: int | None, white: float | None) -> tuple[Pixels, Remarks]:
    """Return the image, shape (rows, columns, 1 or 3); it may have a lower resolution if `size` is given."""
    try:
        image: Pixels | None = None
        if content[:3] == b"\xff\xd8\xff":
            is_plain = not _is_turned(content) and not has_other_profile(content)
            image = _decode_plain_jpeg(content, size) if is_plain else None
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            image = _decode_plain_webp(content)
        if image is not None:
            return image, Remarks()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow would print a line for each unusual image
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                _check_pixels(*opened.size)
                deep = is_deep(opened)
                return _to_array(ImageOps.exif_transpose(opened), deep, white)
    except DataError:
        raise
    except UnidentifiedImageError as error:  # its text has a memory address, which would differ between runs
        raise DataError("it is no readable image (its format is none of those known)") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"it is no readable image ({' '.join(str(error).split()) or type(error).__name__})") from error


def looks_like_image(content: bytes) -> bool:
    """Return whether a file begins with the magic bytes of one of `FORMATS`."""
    return (
        content.startswith(_BEGINNINGS)
        or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")
        or (content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"))
        or (content[:1] == b"P" and content[1:2] in b"123456" and content[2:3] in b" \t\r\n#")
    )


def _is_turned(content: bytes) -> bool:
    """Return whether a JPEG has an orientation other than upright."""
    if all(content.find(mark, 0, _TURNED_REACH) < 0 for mark in _TURNED_MARKS):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
            return bool(opened.getexif().get(_ORIENTATION, 1) != 1)


def _decode_plain_jpeg(content: bytes, size: int | None) -> Pixels | None:
    """Decode a JPEG three times as fast as Pillow, with the same result; return None if Pillow should decode it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        _check_pixels(width, height)
        if colours not in ("YCbCr", "Gray"):
            return None
        # Only the image's size decides, so that every machine computes the same image.
        scale = 1 if size is None else next((scale for scale in _SCALES if min(height, width) >= 2 * size * scale), 1)
        image: Pixels = simplejpeg.decode_jpeg(
            content,
            "GRAY" if colours == "Gray" else "RGB",
            min_height=-(-height // scale),
            min_width=-(-width // scale),
            strict=True,
        )
    except DataError:
        raise
    except ValueError:  # also raised for harmless irregularities, such as stray bytes between two segments
        return None
    return image


def _decode_plain_webp(content: bytes) -> Pixels | None:
    """Decode a WebP twice as fast as Pillow, with the same result; return None if Pillow should decode it."""
    if content[12:16] == b"VP8X" and content[20:21] != b"" and content[20] & _WEBP_EXTRAS:
        return None
    try:
        data = webp.WebPData.from_buffer(content)
        about = webp.WebPDecoderConfig.new()
        about.read_features(data)
        _check_pixels(about.input.width, about.input.height)
        if about.input.has_alpha or about.input.has_animation:
            return None
        return data.decode(webp.WebPColorMode.RGB)
    except webp.WebPError:
        return None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"it has {width} x {height} pixels, more than {MAX_PIXELS}")


def _to_array(image: Image.Image, deep: bool, white: float | None) -> tuple[Pixels, Remarks]:
    """Return 8-bit grey or RGB values, shape (rows, columns, 1 or 3)."""
    remarks = Remarks()
    if deep:
        values, remarks = to_eight_bits(image, white)
        if image.mode not in ("L", "RGB", "RGBA", "LA", "CMYK"):
            return values[..., None], remarks
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info["icc_profile"] = profile
    image, is_profile_used = to_srgb(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None], remarks + Remarks(profiles=int(not is_profile_used))


def _to_channels(array: Pixels, channels: int) -> Pixels:
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    return np.asarray(Image.fromarray(array).convert("L"))[..., None]  # ITU-R 601 luma


def fit(image: Pixels, size: int, channels: int, fitting: Fitting = "crop") -> Pixels:
    """Resize an image to a square, shape (size, size, channels).

    Downscaling averages over the exact area of each new pixel, in integers (no aliasing, equal on every machine);
    upscaling is bilinear.

    Args:
        image: shape (rows, columns, 1 or 3).
        size: side of the square in pixels.
        channels: 1 (grey) or 3 (colour).
        fitting: `crop` scales the shorter side to `size` and crops the centre; `pad` scales the longer side to `size`
            and pads with black; `stretch` scales each side to `size`.
    """
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    if rows == columns or fitting == "crop":
        top, left = (rows - side) // 2, (columns - side) // 2
        return _fit_square(_to_channels(image[top : top + side, left : left + side], channels), size)
    image = _to_channels(image, channels)
    if fitting == "stretch":
        return _resized(image, size, size)
    longer = max(rows, columns)
    inner = _resized(image, max(1, round(rows * size / longer)), max(1, round(columns * size / longer)))
    fitted = np.zeros((size, size, channels), np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    fitted[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return fitted


def cut_off(image: Pixels, fitting: Fitting) -> int:
    """Return the share of an image that `fit` cuts off, in millionths."""
    rows, columns = image.shape[:2]
    return 1_000_000 - 1_000_000 * min(rows, columns) // max(rows, columns) if fitting == "crop" else 0


def _fit_square(square: Pixels, size: int) -> Pixels:
    side = len(square)
    is_whole = side > size and side % size == 0
    return _whole_areas(square, side // size) if is_whole else _resized(square, size, size)


def _resized(image: Pixels, rows: int, columns: int) -> Pixels:
    """Resize an image; each axis is downscaled by area averages or upscaled bilinearly."""
    old_rows, old_columns, channels = image.shape
    if (rows, columns) == (old_rows, old_columns):
        return np.ascontiguousarray(image)
    if rows > old_rows or columns > old_columns:
        image = _resized(image, min(rows, old_rows), min(columns, old_columns))
        small = Image.fromarray(image if channels == 3 else image[..., 0])
        return np.asarray(small.resize((columns, rows), Image.Resampling.BILINEAR)).reshape(rows, columns, channels)
    most = 255 * old_rows * old_columns
    by_row = _area_sums(image.reshape(old_rows, old_columns * channels), rows, 255 * old_rows)
    turned = by_row.reshape(rows, old_columns, channels).swapaxes(0, 1)
    by_column = _area_sums(np.ascontiguousarray(turned).reshape(old_columns, rows * channels), columns, most)
    area = old_rows * old_columns  # of each new pixel, in units of 1 / (rows * columns) of an old one
    average = ((by_column + area // 2) // area).astype(np.uint8).reshape(columns, rows, channels)
    return np.ascontiguousarray(average.swapaxes(0, 1))


def _whole_areas(square: Pixels, factor: int) -> Pixels:
    """Return the averages over areas of `factor` x `factor` pixels, rounded half up."""
    side, _, channels = square.shape
    size, area = side // factor, factor * factor
    whole = np.uint16 if 256 * area <= 1 << 16 else np.uint32
    rows = np.ascontiguousarray(square).reshape(size, factor, side * channels)
    sums = np.add.reduce(rows, axis=1, dtype=whole)
    average = np.empty((size, size, channels), np.uint8)
    for channel in range(channels):  # with the channel outermost, the loops inside NumPy are long
        total = sums[:, channel :: factor * channels] + whole(area // 2)
        for column in range(1, factor):
            total += sums[:, channel + column * channels :: factor * channels]
        average[..., channel] = total // whole(area)
    return average


def _area_sums(rows: npt.NDArray[np.integer], size: int, most: int) -> npt.NDArray[np.integer]:
    """Sum `rows` (n, m) over `size` equal intervals of length n, where each row has the length `size`.

    No sum exceeds `most`, which decides the integer type.
    """
    count = len(rows)
    whole = np.int64 if most >= 1 << 31 else np.int32
    sums: npt.NDArray[np.integer]
    if count == size:
        sums = np.multiply(rows, count, dtype=whole)
        return sums
    at, rest = np.divmod(np.arange(size + 1) * count, size)
    first, last, rest = at[:-1], at[1:], rest[:, None].astype(whole)
    sums = np.multiply(rows[first], size - rest[:-1], dtype=whole)
    for step in range(1, int((last - first).max())):
        inside = np.where(first + step < last, size, 0).astype(whole)[:, None]
        sums += np.multiply(rows[np.minimum(first + step, count - 1)], inside, dtype=whole)
    sums += np.multiply(rows[np.minimum(last, count - 1)], rest[1:], dtype=whole)
    return sums


def encode(image: Pixels, encoding: Encoding) -> bytes:
    """Return the bytes that a shard stores for an image of shape (rows, columns, 1 or 3).

    `jpg` is JPEG of quality 95 with the colours at full resolution (4:4:4), since halved colours are visible at 64x64
    pixels; `png` and `raw` (the values in the order rows, columns, channels) are lossless.
    """
    image = np.ascontiguousarray(image)
    if encoding == "raw":
        return image.tobytes()
    grey = image.shape[2] == 1
    if encoding == "jpg":
        colours, sampling = ("GRAY", "Gray") if grey else ("RGB", "444")
        jpeg: bytes = simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorspace=colours, colorsubsampling=sampling)
        return jpeg
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_stored(content: bytes, encoding: str, size: int, channels: int) -> Pixels:
    """Decode an image encoded by `encode`; shape (size, size, channels).

    Raises:
        DataError: it is damaged, or has another shape.
    """
    if encoding == "raw":
        if len(content) != size * size * channels:
            raise DataError(f"it has {len(content)} bytes, not {size * size * channels}")
        return np.frombuffer(content, dtype=np.uint8).reshape(size, size, channels)
    image = decode(content, channels)
    if image.shape != (size, size, channels):
        raise DataError(f"it has {image.shape[1]} x {image.shape[0]} pixels, not {size} x {size}")
    return image
