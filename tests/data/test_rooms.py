import hashlib

import numpy as np
import pytest

from dcgan_dist.config import IMAGE_SIZES
from dcgan_dist.data.rooms import BED_COLOURS, VIEWS, draw_room, room_attributes


def test_a_room_depends_only_on_seed_and_index():
    alone, attributes = draw_room(3, 17)
    for index in (16, 18):
        draw_room(3, index)
    again, same = draw_room(3, 17)
    np.testing.assert_array_equal(alone, again)
    assert attributes == same
    assert not np.array_equal(alone, draw_room(4, 17)[0])
    assert not np.array_equal(alone, draw_room(3, 18)[0])


def test_rooms_are_the_same_bytes_everywhere():
    digest = hashlib.sha256(b"".join(draw_room(0, index)[0].tobytes() for index in range(50))).hexdigest()
    assert digest == "2772bf0996a78fb1c626139ab61cc1c11fe68fbc3d27bf7704a9794ddcffd48b"


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_every_size_shows_the_same_room(size):
    image, attributes = draw_room(0, 5, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    left, top, right, bottom = attributes["window_box"]
    assert 0 <= left < right <= size
    assert 0 <= top < bottom <= size
    expected = draw_room(0, 5, 64)[0].mean(axis=(0, 1))
    np.testing.assert_allclose(image.mean(axis=(0, 1)), expected, atol=6)


def test_attributes_are_known_without_drawing():
    for index in range(30):
        drawn = draw_room(1, index)[1]
        assert {key: drawn[key] for key in room_attributes(1, index)} == room_attributes(1, index)
        assert (drawn["window_box"] is not None) == drawn["window"]


def test_all_attributes_vary():
    many = [room_attributes(0, index) for index in range(1000)]
    assert {room["view"] for room in many} == set(VIEWS)
    assert {room["bed_colour"] for room in many} == set(BED_COLOURS)
    for key, low, high in (("window", 0.5, 0.7), ("lamp_on", 0.4, 0.6), ("night", 0.1, 0.3)):
        assert low < np.mean([room[key] for room in many]) < high


def test_the_window_is_inside_its_box():
    """At night the glass is dark blue, by day bright: the inside of the box differs from the wall around it."""
    inside, around = [], []
    for index in range(300):
        image, attributes = draw_room(0, index)
        if not attributes["window"] or not attributes["night"] or attributes["lamp_on"]:
            continue
        left, top, right, bottom = attributes["window_box"]
        luma = image.mean(axis=2)
        inside.append(np.median(luma[top:bottom, left:right]))
        around.append(np.median(luma[top:bottom]))
    assert len(inside) > 10
    assert np.mean(np.array(inside) < np.array(around)) > 0.9


def test_the_bed_has_its_colour():
    """In the lower half, a room with a red bed is redder than one with a blue bed."""

    def redness(colour):
        rooms = [draw_room(2, index) for index in range(200)]
        lower = [image[32:].astype(float) for image, room in rooms if room["bed_colour"] == colour]
        return np.mean([image[..., 0].mean() - image[..., 2].mean() for image in lower])

    assert redness("red") > redness("blue") + 30


def test_the_lamp_lights_the_room():
    def brightness(on):
        rooms = [draw_room(5, index) for index in range(150)]
        return np.mean([image.mean() for image, room in rooms if room["night"] and room["lamp_on"] == on])

    assert brightness(True) > brightness(False) + 5
