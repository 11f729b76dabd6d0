"""The judge of rooms: its training data is correct, and the trained judge is kept in the cache."""

import numpy as np
import pytest

from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES
from dcgan_dist.exploration import room_judge as module
from dcgan_dist.exploration.room_judge import MAP, Judged, room_judge


def test_it_learns_from_true_attributes_and_windows():
    images, labels, maps = module._rooms(40, 30, ProgressLine("rooms"))
    for number in range(30):
        image, attributes = draw_room(module._SEED, 40 + number)
        np.testing.assert_array_equal(images[number], image)
        box = attributes["window_box"]
        assert labels["window"][number] == (box is not None)
        for name in ("view", "bed_colour", "night"):
            assert ROOM_ATTRIBUTES[name][labels[name][number]] == attributes[name]
        for row in range(MAP):
            for column in range(MAP):
                x, y = 4 * column + 2, 4 * row + 2
                inside = box is not None and box[0] <= x < box[2] and box[1] <= y < box[3]
                assert maps[number, row, column] == inside


def judged(window_maps: np.ndarray, there: list[int]) -> Judged:
    return Judged({"window": np.array(there)}, {}, window_maps)


def test_a_window_is_the_bounding_box_of_its_positions():
    maps = np.zeros((4, MAP, MAP), np.float32)
    maps[0, 2:5, 6:8] = 0.9
    maps[1, 2:5, 6:8] = 0.9
    maps[2, 3, 3] = 0.9
    found = judged(maps, [1, 0, 1, 1])
    assert found.window_boxes(64) == [(24, 8, 32, 20), None, None, None]
    assert found.window_boxes(128)[0] == (48, 16, 64, 40)
    assert found.has_window.tolist() == [True, False, True, True]


@pytest.mark.slow
def test_the_trained_judge_is_kept_and_a_damaged_one_is_trained_again(tmp_path, monkeypatch):
    for name, value in (("_ROOMS", 256), ("_HELD_OUT", 64), ("_EPOCHS", 12), ("_BATCH", 32)):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "locks").mkdir()
    first = room_judge(tmp_path)
    assert first.accuracy["view"] > 0.75  # guessing gives 0.5
    assert 0 < first.window_overlap < 1
    images = np.stack([draw_room(9, number)[0] for number in range(20)])
    expected = first(images)
    (kept,) = (tmp_path / "judges").iterdir()
    monkeypatch.setattr(module, "_train", lambda device: pytest.fail("it was trained again"))
    again = room_judge(tmp_path)
    assert (again.accuracy, again.window_overlap) == (first.accuracy, first.window_overlap)
    np.testing.assert_array_equal(again(images).window_maps, expected.window_maps)
    assert np.array_equal(again(images).attributes["view"], expected.attributes["view"])
    monkeypatch.undo()
    for name, value in (("_ROOMS", 128), ("_HELD_OUT", 64), ("_EPOCHS", 1), ("_BATCH", 32)):
        monkeypatch.setattr(module, name, value)
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    mended = room_judge(tmp_path)
    np.testing.assert_array_equal(mended(images).window_maps, room_judge(tmp_path)(images).window_maps)


def test_images_of_other_sizes_are_judged():
    judge = module.RoomJudge(module._Network(), {}, 0.0)
    for side, channels in ((32, 3), (128, 3), (16, 1)):
        found = judge(np.zeros((3, side, side, channels), np.uint8))
        assert found.window_maps.shape == (3, MAP, MAP)
        assert {name: part.shape for name, part in found.probabilities.items()} == {
            name: (3, len(values)) for name, values in ROOM_ATTRIBUTES.items()
        }
