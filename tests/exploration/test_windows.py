"""Boxes become positions, maps are dropped and restored, and the measured changes are the true ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_dist.data.images import Pixels
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.errors import ConfigError, DataError, InputError, NeedsChoice
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES
from dcgan_dist.exploration.boxes import boxes_content, read_boxes, samples_of
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.exploration.room_judge import MAP, Judged
from dcgan_dist.exploration.windows import (
    WindowsConfig,
    activations,
    balanced_positions,
    chosen_layer,
    compared,
    draw,
    dropped,
    finding,
    fit_region,
    inside,
    judge_before,
    judged_boxes,
    measure,
    painted,
    pixel_changes,
    with_boxes,
)

ROOMS = [draw_room(5, number) for number in range(24)]
ROOM_IMAGES: Pixels = np.stack([image for image, _ in ROOMS])


class KnowingJudge:
    """Knows the truth about the rooms of the test, which it recognises by their bytes."""

    def __init__(self) -> None:
        self._known = {image.tobytes(): about for image, about in ROOMS}

    def __call__(self, images: Pixels) -> Judged:
        found = [self._known[image.tobytes()] for image in images]
        attributes = {
            name: np.array([values.index(one[name]) for one in found])
            for name, values in ROOM_ATTRIBUTES.items()
            if name != "window"
        }
        attributes["window"] = np.array([int(one["window_box"] is not None) for one in found])
        maps = np.zeros((len(found), MAP, MAP), np.float32)
        for window_map, one in zip(maps, found, strict=True):
            if one["window_box"] is not None:
                left, top, right, bottom = (round(edge / 4) for edge in one["window_box"])
                window_map[top : max(bottom, top + 2), left : max(right, left + 2)] = 1
        return Judged(attributes, {}, maps)


def truth(name: str) -> list[Any]:
    return [about[name] for _, about in ROOMS]


def test_positions_inside_boxes_are_those_whose_centre_is() -> None:
    mask = inside([(16, 8, 32, 24), (60, 60, 64, 64)], 16, 64)
    assert [(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)] == [
        *((y, x) for y in range(2, 6) for x in range(4, 8)),
        (15, 15),
    ]
    # Centres are at 8, 24, 40, 56 pixels. The box from 25 to 39 contains none; its own centre is in the third position.
    assert np.argwhere(inside([(25, 0, 39, 16)], 4, 64)).tolist() == [[0, 2]]


def test_as_many_positions_outside_as_inside() -> None:
    mask = inside([(0, 0, 8, 12)], 8, 16)
    positive, negative = balanced_positions(mask, np.random.default_rng(0))
    assert mask.ravel()[positive].all()
    assert not mask.ravel()[negative].any()
    assert len(positive) == len(set(negative.tolist())) == mask.sum()
    wide = inside([(0, 0, 16, 14)], 8, 16)
    positive, negative = balanced_positions(wide, np.random.default_rng(0))
    assert len(positive) == len(negative) == (~wide).sum()


def test_regression_finds_the_maps_that_speak_for_the_region() -> None:
    random = np.random.default_rng(0)
    is_inside = random.random(600) < 0.5
    values = random.standard_normal((600, 6))
    values[:, 2] += 2 * is_inside
    values[:, 4] -= 2 * is_inside
    values[:, 5] = 0  # a dead map
    found = fit_region(values, is_inside, np.arange(600) // 20)
    assert found.weights.argmax() == 2
    assert found.weights.argmin() == 4
    assert found.weights[5] == 0
    assert 5 not in found.maps()
    assert found.maps() == [number for number in range(6) if found.weights[number] > 0]
    assert found.maps(1) == [2]
    assert 0.9 < found.accuracy < 1
    noise = fit_region(random.standard_normal((600, 6)), is_inside, np.arange(600) // 20)
    assert 0.4 < noise.accuracy < 0.6


@pytest.mark.parametrize("family", ["dcgan", "cdcgan"])
def test_dropped_maps_are_zero_everywhere_and_are_restored(opened: Callable[..., Trained], family: str) -> None:
    run = opened(family)
    layer = chosen_layer(run, 2)
    z, y = run.draw_z("test", 5), run.y(5, "0" if run.classes else None)
    before, images = activations(run, layer, z, y), run.generate(z, y)
    hidden = run.generator_maps(z, y)
    own = [maps for maps in hidden[:-1] if maps.dim() == 4][1]
    assert torch.equal(before, own)
    with dropped(layer, [1, 3]):
        maps = run.generator_maps(z, y)
        without = run.generate(z, y)
    after = [part for part in maps[:-1] if part.dim() == 4][1]
    assert not after[:, [1, 3]].any()
    others = [number for number in range(layer.maps) if number not in (1, 3)]
    assert torch.equal(after[:, others], own[:, others])
    # Only the last layer follows: it gets the maps without those two.
    cut = own.clone()
    cut[:, [1, 3]] = 0
    last = run.generator.layers[-1]
    tail = last(torch.cat((cut, y[:, :, None, None].expand(-1, -1, *cut.shape[2:])), dim=1))
    assert torch.allclose(maps[-1], tail, atol=1e-6)
    assert not np.array_equal(without, images)
    assert np.array_equal(run.generate(z, y), images)


def test_layer_of_the_paper_is_the_one_below_the_highest_hidden_one(opened: Callable[..., Trained]) -> None:
    run = opened("dcgan")
    assert chosen_layer(run, None).number == 1
    with pytest.raises(ConfigError, match=r"layer is 3.*1 \(8 maps of 4x4\), 2 \(4 maps of 8x8\)"):
        chosen_layer(run, 3)
    with pytest.raises(ConfigError, match="only dense layers"):
        chosen_layer(opened("gan"), None)


def test_shares_are_those_of_what_is_truly_there() -> None:
    judge = KnowingJudge()
    before = judge_before(ROOM_IMAGES, judge, RandomConv())
    shift = np.roll(np.arange(len(ROOMS)), 1)
    found = compared(before, ROOM_IMAGES[shift], judge, RandomConv())
    had = np.array([box is not None for box in truth("window_box")])
    has = had[shift]
    assert found.has_window.value == has.mean()
    assert found.lost.value == pytest.approx((had & ~has).sum() / had.sum())
    assert found.lost.n == had.sum()
    assert found.gained.value == pytest.approx((~had & has).sum() / (~had).sum())
    for name in ("view", "bed_colour", "rug"):
        values = truth(name)
        flips = [values[place] != value for place, value in zip(shift, values, strict=True)]
        assert found.flipped[name].value == pytest.approx(np.mean(flips))
    low, high = found.has_window.ci95
    assert low < has.mean() < high


def test_change_elsewhere_ignores_the_window() -> None:
    judge = KnowingJudge()
    before = judge_before(ROOM_IMAGES, judge, RandomConv())
    bricked = painted(ROOM_IMAGES, before.boxes)
    assert not np.array_equal(bricked, ROOM_IMAGES)
    darker = (ROOM_IMAGES * 0.8).astype(np.uint8)

    def same(_: Pixels) -> Judged:
        return before.judged

    assert compared(before, bricked, same, RandomConv()).elsewhere.distance == pytest.approx(0, abs=1e-6)
    slight = compared(before, darker, same, RandomConv()).elsewhere
    assert slight.ci95[0] > 0
    assert slight.relative < 1


def test_change_elsewhere_between_different_rooms_equals_the_distance_of_two_samples() -> None:
    def blind(images: Pixels) -> Judged:
        return Judged({"window": np.zeros(len(images), np.int64)}, {}, np.zeros((len(images), MAP, MAP), np.float32))

    before = judge_before(ROOM_IMAGES, blind, RandomConv())
    shifted = compared(before, np.roll(ROOM_IMAGES, 1, axis=0), blind, RandomConv()).elsewhere
    assert shifted.relative == pytest.approx(1)


def test_pixel_changes_are_measured_inside_and_outside_the_boxes() -> None:
    before = np.full((2, 8, 8, 1), 100, np.uint8)
    after = before.copy()
    boxes = [[(0, 0, 4, 4), (2, 2, 6, 6)], [(6, 6, 8, 8)]]
    after[0, 0:4, 0:4] += 10
    after[1, 0, 0] = 90
    union, rest = 16 + 16 - 4, 64 - 28
    assert pixel_changes(before, after, boxes) == pytest.approx((160 / (union + 4), 10 / (rest + 60)))


def test_boxes_are_drawn_where_they_are() -> None:
    images = np.zeros((1, 64, 64, 1), np.uint8)
    drawn = with_boxes(images, [[(2, 3, 10, 12)]])
    assert drawn.shape == (1, 64, 64, 3)
    rows, columns = np.nonzero(drawn[0].any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 47, 8, 39)
    assert not drawn[0, 14:46, 10:38].any()


def boxes_file(run: Trained, path: Path, **changes: object) -> str:
    boxes: dict[int, Any] = {number: [(2, 4, 9, 12)] for number in (0, 3, 4, 70)}
    path.write_text(json.dumps(boxes_content(run, boxes, None) | changes))
    return str(path)


def test_boxes_are_read_as_they_were_written(opened: Callable[..., Trained], tmp_path: Path) -> None:
    run = opened()
    assert read_boxes(boxes_file(run, tmp_path / "b.json"), run, None) == {n: [(2, 4, 9, 12)] for n in (0, 3, 4, 70)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, "of seed 7, but the samples here have 0"),
        ({"checkpoint_digest": "abc"}, "checkpoint_digest 'abc'"),
        ({"image_size": 64}, "image_size 64"),
        ({"label": "3"}, "label '3'"),
        ({"boxes": []}, "no box"),
        ({"boxes": [{"id": 1, "box": [3, 3, 17, 9]}]}, r"\[3, 3, 17, 9\] of sample 1 is not inside"),
        ({"boxes": [{"id": 1, "box": [3, 3, 3, 9]}]}, "not inside"),
        ({"boxes": [{"id": -1, "box": [3, 3, 5, 9]}]}, "is no box"),
        ({"boxes": [{"id": 1, "box": [3, 3, 5.5, 9]}]}, "is no box"),
        ({"boxes": [{"id": True, "box": [3, 3, 5, 9]}]}, "is no box"),
        ({"boxes": ["here"]}, "is no box"),
        ({"boxes": None}, "holds no boxes"),
    ],
)
def test_boxes_of_other_samples_are_refused(
    opened: Callable[..., Trained], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    run = opened()
    with pytest.raises(InputError, match=message) as raised:
        read_boxes(boxes_file(run, tmp_path / "b.json", **changes), run, None)
    assert "\n" not in str(raised.value)


def test_what_is_no_file_of_boxes_is_refused(opened: Callable[..., Trained], tmp_path: Path) -> None:
    run = opened()
    with pytest.raises(DataError, match="cannot be read"):
        read_boxes(str(tmp_path / "none.json"), run, None)
    (tmp_path / "b.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="no JSON"):
        read_boxes(str(tmp_path / "b.json"), run, None)


def test_samples_of_boxes_are_those_of_sample(opened: Callable[..., Trained]) -> None:
    for family in ("dcgan", "cdcgan"):
        run = opened(family)
        (images, _), (later, _) = run.samples.images(0, 80)
        every = np.concatenate([images, later])
        found = samples_of(run, [3, 66, 64], None)
        assert np.abs(found.astype(int) - every[[3, 66, 64]].astype(int)).max() <= 1


def test_figure_of_boxes_drawn_by_hand(opened: Callable[..., Trained], tmp_path: Path) -> None:
    run = opened()
    file = boxes_file(run, tmp_path / "b.json")
    config = WindowsConfig(boxes=file, region_name="bed", random_draws=2)
    measured = measure(config, run)
    numbers = measured.numbers
    assert numbers["dropped_maps"] == [n for n, weight in enumerate(numbers["weights"]) if weight > 0]
    assert [len(other) for other in numbers["random_maps"]] == [len(numbers["dropped_maps"])] * 2
    assert "judged" not in numbers
    assert "bed" in finding(measured)
    assert draw(measured).png().startswith(b"\x89PNG")
    assert measure(config, run).numbers == numbers


def test_missing_boxes_of_other_images_are_requested(opened: Callable[..., Trained]) -> None:
    with pytest.raises(NeedsChoice, match="explore boxes "):
        measure(WindowsConfig(region_name="bed"), opened())


def test_judge_says_which_samples_have_windows() -> None:
    found = judged_boxes(ROOM_IMAGES, KnowingJudge())
    assert list(found) == [number for number, box in enumerate(truth("window_box")) if box is not None]
    (box,) = found[next(iter(found))]
    wanted = truth("window_box")[next(iter(found))]
    assert max(abs(edge - true) for edge, true in zip(box, wanted, strict=True)) <= 4


@pytest.mark.parametrize(
    "setting",
    [
        {"region_name": ""},
        {"region_name": "<b>"},
        {"search": 1},
        {"layer": 0},
        {"count": 1},
        {"random_draws": 0},
        {"strongest": 0},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is"):
        WindowsConfig(**setting)  # type: ignore[arg-type]
