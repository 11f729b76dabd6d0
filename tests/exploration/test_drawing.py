"""The canvas keeps the pixels of images and the order of blocks, and prints texts unchanged."""

import io

import numpy as np
from PIL import Image

from dcgan_dist.exploration.drawing import Canvas, Panel, animation


def picture(canvas: Canvas) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB"))


def images(count: int, colour: tuple[int, int, int], side: int = 16) -> np.ndarray:
    return np.full((count, side, side, 3), colour, np.uint8)


def test_blocks_come_from_the_top_down_and_panels_side_by_side():
    canvas = Canvas("Title", "of a run")
    canvas.images(Panel("left", images(4, (255, 0, 0))), Panel("right", images(4, (0, 255, 0))))
    canvas.text("between")
    canvas.images(Panel("below", images(9, (0, 0, 255), side=8)))
    axes = canvas.plots(2)
    axes[0].plot([0, 1], [0, 1])
    pixels = picture(canvas)
    assert pixels.shape[1] == round(7.2 * 300)
    places = {}
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        places[name] = (rows.min(), rows.max(), columns.min(), columns.max())
    assert places["red"][:2] == places["green"][:2]
    assert places["red"][3] < places["green"][2]
    assert places["red"][1] < places["blue"][0]
    # Grids of two by two images with a gap of 2 pixels are square.
    top, bottom, left, right = places["red"]
    assert abs((bottom - top) - (right - left)) <= 2


def test_images_are_shown_pixel_by_pixel_in_rows():
    canvas = Canvas("t")
    four = np.concatenate([images(1, (value, value, value), side=4) for value in (10, 60, 110, 160)])
    canvas.images(Panel("four", four, columns=2))
    pixels = picture(canvas).reshape(-1, 3)
    for value in (10, 60, 110, 160):
        assert ((pixels == value).all(axis=1)).sum() > 500


def test_grey_images_are_shown_as_they_are():
    canvas = Canvas("t")
    canvas.images(Panel("grey", np.full((1, 8, 8, 1), 77, np.uint8)))
    assert ((picture(canvas) == 77).all(axis=2)).sum() > 500


def test_texts_are_not_parsed_as_mathematics_and_long_ones_are_wrapped():
    canvas = Canvas("$\\frac{broken" * 20, "x_$ " * 100)
    canvas.images(Panel("$_{", images(1, (9, 9, 9)), marks=["$^"]))
    canvas.text("word " * 200)
    pixels = picture(canvas)
    right = pixels[:, -20:]
    assert (right == 255).all()  # no text crosses the margin


def test_an_animation_plays_forwards_and_backwards_in_a_loop():
    frames = np.stack([images(1, (value, 0, 0), side=4)[0] for value in (0, 100, 200)])
    moving = Image.open(io.BytesIO(animation(frames, seconds=1, scale=2)))
    assert (moving.n_frames, moving.size, moving.info["loop"]) == (4, (8, 8), 0)
    shown = []
    for number in range(4):
        moving.seek(number)
        shown.append(moving.convert("RGB").getpixel((0, 0))[0])
    assert np.allclose(shown, [0, 100, 200, 100], atol=3)
