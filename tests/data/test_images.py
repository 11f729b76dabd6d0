import contextlib
import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcgan_dist.data import images
from dcgan_dist.data.images import decode, decode_stored, encode, fit
from dcgan_dist.errors import DataError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def area_average(square: np.ndarray, size: int) -> np.ndarray:
    """Box filter by its definition: the exact area that each old pixel shares with each new one."""
    side = len(square)
    step = Fraction(side, size)
    shares = [
        [max(Fraction(0), min((new + 1) * step, old + 1) - max(new * step, old)) for old in range(side)]
        for new in range(size)
    ]
    weights = np.array([[float(share / step) for share in row] for row in shares])
    return np.einsum("ai,bj,ijc->abc", weights, weights, square.astype(np.float64))


@settings(max_examples=25, deadline=None)
@given(side=st.integers(17, 90), size=st.integers(3, 16), channels=st.sampled_from((1, 3)), seed=st.integers(0, 99))
def test_shrinking_averages_over_exact_areas(side, size, channels, seed):
    square = noise(side, side, channels, seed=seed)
    expected = area_average(square, size)
    assert np.abs(fit(square, size, channels) - expected).max() <= 0.5 + 1e-9  # rounded once, to the nearest


@pytest.mark.parametrize(("side", "size"), [(256, 64), (192, 64), (1100, 64), (3001, 28), (2240, 28)])
def test_large_shrinking_averages_over_exact_areas(side, size):
    square = np.full((side, side, 3), 255, np.uint8)  # the largest sums
    square[: side // 3] = noise(side // 3, side, 3)
    sums = np.pad(square.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    at = np.arange(size + 1) * side / size
    low, part = np.minimum(at.astype(int), side - 1), at - np.minimum(at.astype(int), side - 1)
    sums = sums[low] * (1 - part)[:, None, None] + sums[low + 1] * part[:, None, None]
    sums = sums[:, low] * (1 - part)[:, None] + sums[:, low + 1] * part[:, None]
    expected = np.diff(np.diff(sums, axis=0), axis=1) / (side / size) ** 2
    assert np.abs(fit(square, size, 3) - expected).max() <= 0.5 + 1e-6


def test_shrinking_does_not_alias():
    """A pattern finer than the new pixels becomes uniform grey, unlike with nearest-neighbour sampling."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 64, 3)
    assert small.min() == small.max() == 128


def test_large_photographs_keep_their_mean():
    photograph = noise(1203, 1601, 3)
    square = photograph[:, 199 : 199 + 1203]
    np.testing.assert_allclose(fit(photograph, 64, 3).mean(), square.mean(), atol=0.1)


@pytest.mark.parametrize(("rows", "columns"), [(40, 100), (100, 40)])
def test_the_centre_is_kept(rows, columns):
    image = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - 40) // 2, (columns - 40) // 2
    image[top : top + 40, left : left + 40] = noise(40, 40, 3)
    np.testing.assert_array_equal(fit(image, 40, 3), image[top : top + 40, left : left + 40])
    assert fit(image, 16, 3).shape == (16, 16, 3)


def test_small_images_are_enlarged_smoothly():
    small = noise(28, 28, 1)
    large = fit(small, 64, 1)
    expected = np.asarray(Image.fromarray(small[..., 0]).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(large[..., 0], expected)
    assert fit(noise(1, 5000, 3), 64, 3).shape == (64, 64, 3)


def test_jpeg_decodes_as_pillow_does():
    content = saved(Image.fromarray(fit(noise(16, 16, 3), 64, 3)), "JPEG", quality=90)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content))))


def photograph(rows: int, columns: int) -> np.ndarray:
    """Edges, textures and smooth parts: noise at several scales."""
    layers = [
        np.asarray(Image.fromarray(noise(rows // step + 1, columns // step + 1, 3, seed=step)).resize((columns, rows)))
        for step in (2, 8, 32, 128)
    ]
    return np.average(layers, axis=0, weights=(1, 2, 4, 6)).astype(np.uint8)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(("rows", "columns"), [(256, 341), (401, 256), (600, 704), (255, 300), (64, 64), (40, 50)])
def test_a_jpeg_decoded_at_low_resolution_is_close_to_one_decoded_at_full_resolution(rows, columns, subsampling):
    content = saved(Image.fromarray(photograph(rows, columns)), "JPEG", quality=85, subsampling=subsampling)
    for channels in (1, 3):
        slow = fit(decode(content, channels), 64, channels)
        fast, _ = images.decode_fitted(content, images.Target(64, channels))
        assert fast.shape == slow.shape
        assert np.abs(fast.astype(int) - slow).mean() < 1
        if min(rows, columns) < 256:
            np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("options", [{"quality": 75}, {"lossless": True}])
def test_webp_decodes_as_pillow_does(options):
    content = saved(Image.fromarray(photograph(123, 201)), "WEBP", **options)
    assert images._decode_plain_webp(content) is not None
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_an_animated_turned_or_transparent_webp_is_read_by_pillow():
    picture = Image.fromarray(photograph(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(picture, "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(decode(turned), np.rot90(np.asarray(picture), -1))
    frames = saved(picture, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (30, 20))])
    np.testing.assert_array_equal(decode(frames), np.asarray(picture))
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 8, 4))
    over_white = decode(saved(clear, "WEBP", lossless=True))
    assert (over_white[:4] == (10, 20, 30)).all()
    assert (over_white[4:] == 255).all()


def test_a_webp_cut_short_or_too_large_is_refused():
    content = saved(Image.fromarray(photograph(100, 100)), "WEBP")
    for size in (11, 16, 25, 40, len(content) // 2, len(content) - 100):
        with pytest.raises(DataError):
            decode(content[:size])
    vp8 = bytearray(content)
    start = vp8.index(b"\x9d\x01\x2a") + 3
    vp8[start : start + 4] = struct.pack("<HH", 16383, 16383)
    with pytest.raises(DataError, match=str(images.MAX_PIXELS)):
        decode(bytes(vp8))


def test_stray_bytes_in_a_jpeg_do_no_harm():
    content = saved(Image.fromarray(fit(noise(8, 8, 3), 32, 3)), "JPEG")
    start = content.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode(content[:start] + bytes(5) + content[start:]), decode(content))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_all_formats_decode(kind):
    picture = Image.fromarray(noise(20, 30, 3)).quantize(32).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(picture.quantize(256) if kind == "GIF" else picture, kind, **options)
    np.testing.assert_array_equal(decode(content), np.asarray(picture))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content) == (255, 0, 0)).all()


def test_transparent_pixels_lie_over_white():
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:2] = (10, 20, 30, 255)
    content = saved(Image.fromarray(picture), "PNG")
    assert (decode(content)[:2] == (10, 20, 30)).all()
    assert (decode(content)[2:] == 255).all()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    assert decode(saved(palette, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_cmyk_and_16_bit_and_bilevel_become_8_bit():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(saved(cmyk, "JPEG", quality=100)).astype(int) - (255, 0, 0)).max() < 12
    deep = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert decode(saved(deep, "PNG"), 1).ravel().tolist() == [0, 1, 128, 255]
    assert decode(saved(Image.new("1", (4, 4), 1), "PNG"), 3).min() == 255


def test_orientation_is_applied():
    picture = Image.fromarray(fit(noise(4, 4, 3), 32, 3)[:16])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    content = saved(picture, "JPEG", quality=95, exif=exif)
    turned = np.rot90(np.asarray(Image.open(io.BytesIO(content))), -1)
    np.testing.assert_array_equal(decode(content), turned)


def test_an_upright_jpeg_with_exif_is_decoded_the_fast_way(monkeypatch):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "upright"
    content = saved(Image.fromarray(photograph(256, 300)), "JPEG", exif=exif)
    assert b"Exif" in content
    expected = fit(np.asarray(Image.open(io.BytesIO(content))), 64, 3)
    monkeypatch.setattr(images.ImageOps, "exif_transpose", None)
    assert np.abs(images.decode_fitted(content, images.Target(64))[0].astype(int) - expected).mean() < 1


def test_an_orientation_in_xmp_is_applied_too():
    picture = Image.fromarray(photograph(40, 60))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>3</tiff:Orientation></x:xmpmeta>'
    for kind in ("JPEG", "WEBP"):
        content = saved(picture, kind, xmp=xmp)
        upright = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(decode(content), np.rot90(upright, 2))


def test_grey_is_luma_and_grey_sources_become_colour():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    content = saved(Image.fromarray(colours), "PNG")
    np.testing.assert_allclose(decode(content, 1).ravel(), [76.2, 149.7, 29.1], atol=1)
    grey = saved(Image.fromarray(noise(5, 5)), "PNG")
    assert (np.ptp(decode(grey, 3), axis=2) == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("encoding", "tolerance"), [("raw", 0), ("png", 0), ("jpg", 6)])
def test_what_is_encoded_is_decoded(encoding, tolerance, channels):
    image = fit(noise(8, 8, channels), 64, channels)
    again = decode_stored(encode(image, encoding), encoding, 64, channels)
    assert again.shape == (64, 64, channels)
    assert np.abs(again.astype(int) - image).mean() <= tolerance


def test_jpeg_keeps_the_full_resolution_of_colours():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = 200
    again = decode(encode(stripes, "jpg")).astype(int)
    assert np.abs(again - stripes).max() < 30  # with halved colours it is about 100


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\xff\xd8\xff",
        saved(Image.new("RGB", (64, 64)), "PNG")[:60],
        saved(Image.fromarray(noise(64, 64, 3)), "JPEG")[:900],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        saved(Image.new("RGB", (4, 4)), "ICO"),
    ],
    ids=["empty", "text", "head", "png cut short", "jpeg cut short", "postscript", "icon"],
)
def test_what_is_no_readable_image_is_refused(content):
    with pytest.raises(DataError):
        decode(content)


def test_an_image_bomb_is_refused_before_it_is_unpacked():
    png = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(DataError):
        decode(bytes(png))
    jpeg = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(DataError, match=str(images.MAX_PIXELS)):
        decode(bytes(jpeg))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]))
    content = bytearray(saved(Image.fromarray(noise(16, 16, 3)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert decode(bytes(content), 3).shape[2] == 3


def test_a_stored_image_of_another_size_is_refused():
    with pytest.raises(DataError, match="bytes"):
        decode_stored(bytes(10), "raw", 16, 3)
    with pytest.raises(DataError, match="pixels"):
        decode_stored(encode(noise(8, 8, 3), "png"), "png", 16, 3)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "MPO", *(["AVIF"] if "AVIF" in images.FORMATS else [])])
def test_other_formats_of_photographs_are_read(kind):
    image = photograph(64, 80)
    content = saved(Image.fromarray(image), kind)
    assert images.looks_like_image(content)
    assert np.abs(decode(content).astype(int) - image).mean() < 12


@pytest.mark.parametrize(("rows", "columns"), [(60, 200), (200, 60), (37, 12), (10, 40), (9, 7), (64, 64), (3, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretched_and_padded_images_average_over_areas_and_are_enlarged_as_pillow_does(rows, columns, channels):
    image = photograph(rows, columns)
    wanted = image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]

    def areas(size, count):
        """Return the share of each of `count` old pixels in each of `size` new ones."""
        at, old = np.arange(size)[:, None] * count / size, np.arange(count)[None]
        return np.clip(np.minimum(at + count / size, old + 1) - np.maximum(at, old), 0, 1) * size / count

    def expected(height, width):
        by_row, by_column = areas(min(height, rows), rows), areas(min(width, columns), columns)
        small = np.floor(np.einsum("ri,ijc,sj->rsc", by_row, wanted, by_column) + 0.5 + 1e-9).astype(np.uint8)
        whole = Image.fromarray(small if channels == 3 else small[..., 0])
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, channels)

    np.testing.assert_array_equal(fit(image, 16, channels, "stretch"), expected(16, 16))
    padded = fit(image, 16, channels, "pad")
    height = max(1, round(16 * rows / max(rows, columns)))
    width = max(1, round(16 * columns / max(rows, columns)))
    top, left = (16 - height) // 2, (16 - width) // 2
    framed = np.zeros_like(padded)
    framed[top : top + height, left : left + width] = expected(height, width)
    np.testing.assert_array_equal(padded, framed)


def test_a_share_is_cut_off_by_cropping_alone():
    image = noise(60, 200, 3)
    assert images.cut_off(image, "crop") == 700_000
    assert images.cut_off(image, "pad") == images.cut_off(image, "stretch") == 0
    _, remarks = images.decode_fitted(saved(Image.fromarray(image), "JPEG"), images.Target(16))
    assert remarks.cut == 700_000
