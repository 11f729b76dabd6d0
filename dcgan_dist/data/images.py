"""Single images: decoding what people have, fitting it to a square of S x S pixels, and encoding it for shards.

Images are uint8 arrays of shape (rows, columns, channels), with 1 channel (grey) or 3 (red, green, blue).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
import webp
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from dcgan_dist.errors import DataError

Pixels = npt.NDArray[np.uint8]
Encoding = Literal["jpg", "png", "raw"]

# Pillow's readers of other formats are not asked: some start programs, and none is needed for photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"),
)
# Of files that lie beside images and are none, whatever they hold.
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
# Pillow refuses longer texts and colour profiles in a PNG; ours are of whole files of at most 256 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26
MAX_PIXELS = 100_000_000
JPEG_QUALITY = 95

# What Pillow's and simplejpeg's readers raise on damaged content.
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
# What tells of an orientation in a JPEG stands in its first segments, of less than 64 KiB each.
_TURNED_REACH = 1 << 17
_TURNED_MARKS = (b"Exif\0\0", b"tiff:Orientation")
_ORIENTATION = 0x0112  # the EXIF tag; 1 means upright
# Flags of an extended WebP: colour profile, transparency, EXIF, XMP (which may tell of an orientation), animation.
_WEBP_EXTRAS = 0x20 | 0x10 | 0x08 | 0x04 | 0x02
_SCALES = (8, 4, 2)


def decode(content: bytes, channels: int = 3) -> Pixels:
    """Decode an image file of one of `FORMATS` to an array of shape (rows, columns, channels).

    The format is told by the content, not by a name. Of an animation the first frame is taken; EXIF orientation is
    applied; transparent pixels are laid over white; palettes, CMYK and 16-bit values become 8-bit RGB or grey.

    Raises:
        DataError: not such an image, damaged or cut short, or of more than `MAX_PIXELS` pixels.
    """
    return _to_channels(_decoded(content, None), channels)


def decode_fitted(content: bytes, size: int, channels: int = 3) -> Pixels:
    """Decode an image file and `fit` it: as `decode` and `fit` one after the other, but faster for large JPEGs.

    A JPEG is decoded at a half, a quarter or an eighth of its resolution where at least 2 * `size` pixels are left of
    its shorter side: it then keeps all frequencies that `fit` does. Photographs of 256 pixels fitted to 64 differ from
    the slow way by 0.4 of 255 grey levels on average (49 dB). The centre that is kept may lie a quarter of a new pixel
    elsewhere, since it starts at a whole pixel.

    Raises:
        DataError: see `decode`.
    """
    return fit(_decoded(content, size), size, channels)


def _decoded(content: bytes, size: int | None) -> Pixels:
    """Return the image of shape (rows, columns, 1 or 3), perhaps smaller than it is where `size` is what is needed."""
    try:
        image: Pixels | None = None
        if content[:3] == b"\xff\xd8\xff":
            image = None if _is_turned(content) or _has_profile(content) else _decode_plain_jpeg(content, size)
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            image = _decode_plain_webp(content)
        if image is not None:
            return image
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each image that Pillow finds odd would be a line
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                _check_pixels(*opened.size)
                return _to_array(ImageOps.exif_transpose(opened))
    except DataError:
        raise
    except UnidentifiedImageError as error:  # whose text has an address in memory, another one each time
        raise DataError("it is no readable image (its format is none of those known)") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"it is no readable image ({' '.join(str(error).split()) or type(error).__name__})") from error


def looks_like_image(content: bytes) -> bool:
    """Whether a file begins as one of `FORMATS` does."""
    return (
        content.startswith(_BEGINNINGS)
        or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")
        or (content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"))
        or (content[:1] == b"P" and content[1:2] in b"123456" and content[2:3] in b" \t\r\n#")
    )


def _has_profile(content: bytes) -> bool:
    """Whether a JPEG's colours are other than sRGB, by a profile in it."""
    return content.find(b"ICC_PROFILE\0", 0, _TURNED_REACH) >= 0 and not _is_srgb(content[:_TURNED_REACH])


def _is_srgb(profile: bytes) -> bool:
    """Whether a colour profile calls itself sRGB."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return an image in sRGB, if it has a colour profile that says otherwise and can be read."""
    profile = image.info.get("icc_profile")
    if not profile or _is_srgb(profile) or image.mode not in ("L", "RGB", "CMYK"):
        return image
    try:
        converted = ImageCms.profileToProfile(
            image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one for other colours: as if there were none
        return image
    return converted if converted is not None else image


def _is_turned(content: bytes) -> bool:
    """Whether a JPEG is to be turned or mirrored."""
    if all(content.find(mark, 0, _TURNED_REACH) < 0 for mark in _TURNED_MARKS):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
            return bool(opened.getexif().get(_ORIENTATION, 1) != 1)


def _decode_plain_jpeg(content: bytes, size: int | None) -> Pixels | None:
    """Decode a JPEG three times as fast as Pillow, with the same result; None for one that Pillow should look at."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        _check_pixels(width, height)
        if colours not in ("YCbCr", "Gray"):
            return None
        # The content's size alone decides, so that every machine makes the same image.
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
    except ValueError:  # also of harmless oddities, such as stray bytes between two segments
        return None
    return image


def _decode_plain_webp(content: bytes) -> Pixels | None:
    """Decode a WebP twice as fast as Pillow, with the same result; None for one that Pillow should look at."""
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


def _to_array(image: Image.Image) -> Pixels:
    """Return 8-bit grey or RGB values, shape (rows, columns, 1 or 3)."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return ((values * 255 + 32767) // 65535).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise DataError(f"its pixels have an unusual type ({image.mode})")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        profile = image.info.get("icc_profile")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        image.info["icc_profile"] = profile
    if image.mode in ("L", "RGB", "CMYK"):
        image = _to_srgb(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _to_channels(array: Pixels, channels: int) -> Pixels:
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    return np.asarray(Image.fromarray(array).convert("L"))[..., None]  # ITU-R 601 luma


def fit(image: Pixels, size: int, channels: int) -> Pixels:
    """Return the central square of an image at `size` x `size` pixels, shape (size, size, channels).

    The shorter side becomes `size`. Shrinking averages over the exact area of each new pixel, in integers (no aliasing,
    the same on every machine); a smaller image is enlarged bilinearly.
    """
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    square = _to_channels(image[top : top + side, left : left + side], channels)
    if side == size:
        return np.ascontiguousarray(square)
    if side < size:
        small = Image.fromarray(square if channels == 3 else square[..., 0])
        large = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
        return large.reshape(size, size, channels)
    if side % size == 0:
        return _whole_areas(square, side // size)
    by_row = _area_sums(square.reshape(side, side * channels), size)
    by_column = np.ascontiguousarray(by_row.reshape(size, side, channels).swapaxes(0, 1)).reshape(side, size * channels)
    area = side * side  # of each new pixel, in units of 1 / size**2 of an old one
    average = ((_area_sums(by_column, size) + area // 2) // area).astype(np.uint8)
    return np.ascontiguousarray(average.reshape(size, size, channels).swapaxes(0, 1))


def _whole_areas(square: Pixels, factor: int) -> Pixels:
    """Average over areas of `factor` x `factor` whole pixels, rounded half up."""
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


def _area_sums(rows: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.integer]:
    """Add up `rows` (n, m) over `size` equal stretches of length n, where each row has the length `size`."""
    count = len(rows)
    # From bytes to sums over rows, and from these to sums over areas: at most 255 * count of them, twice.
    whole = np.int64 if rows.dtype != np.uint8 and 255 * count * count >= 1 << 31 else np.int32
    at, rest = np.divmod(np.arange(size + 1) * count, size)
    first, last, rest = at[:-1], at[1:], rest[:, None].astype(whole)
    sums: npt.NDArray[np.integer] = np.multiply(rows[first], size - rest[:-1], dtype=whole)
    for step in range(1, int((last - first).max())):
        inside = np.where(first + step < last, size, 0).astype(whole)[:, None]
        sums += np.multiply(rows[np.minimum(first + step, count - 1)], inside, dtype=whole)
    sums += np.multiply(rows[np.minimum(last, count - 1)], rest[1:], dtype=whole)
    return sums


def encode(image: Pixels, encoding: Encoding) -> bytes:
    """Return the bytes that a shard stores for an image of shape (rows, columns, 1 or 3).

    `jpg` is JPEG of quality 95 with the colours at full resolution (4:4:4), since at 64x64 pixels halved ones show;
    `png` and `raw` (the values in the order rows, columns, channels) lose nothing.
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
    """Decode an image as `encode` wrote it; shape (size, size, channels).

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
