from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from dcgan_dist.data.rooms import draw_room
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES
from dcgan_dist.exploration.attributes import (
    AttributeJudge,
    class_attributes,
    confidence,
    first_z,
    judge_samples,
    room_phrases,
    share,
    shows,
)
from dcgan_dist.exploration.networks import Trained
from tests.exploration.judges import by_brightness

Opened = Callable[..., Trained]


def _knowing_rooms(truth: dict[bytes, dict[str, int]]) -> AttributeJudge:
    def judge(images: np.ndarray) -> dict[str, np.ndarray]:
        known = [truth[image.tobytes()] for image in images]
        return {
            name: np.eye(len(values))[[attributes[name] for attributes in known]]
            for name, values in ROOM_ATTRIBUTES.items()
        }

    values = {name: tuple(map(str, values)) for name, values in ROOM_ATTRIBUTES.items()}
    return AttributeJudge(values, room_phrases(), {}, judge)


def test_a_concept_is_shown_by_the_rooms_that_have_what_it_says() -> None:
    rooms = [draw_room(11, number) for number in range(60)]
    truth = {}
    for image, attributes in rooms:
        seen = attributes | {"window": attributes["window_box"] is not None}
        truth[image.tobytes()] = {name: values.index(seen[name]) for name, values in ROOM_ATTRIBUTES.items()}
    judge = _knowing_rooms(truth)
    judged = judge.probabilities(np.stack([image for image, _ in rooms]))
    found = shows(judged, judge.read("no window, view left,  lamp"))
    by_hand = [a["window_box"] is None and a["view"] == "left" and a["lamp_on"] for _, a in rooms]
    assert found.tolist() == by_hand
    assert 0 < found.sum() < 60
    found = shows(judged, judge.read("bed red"))
    assert found.tolist() == [a["bed_colour"] == "red" for _, a in rooms]
    assert found.any()


def test_every_value_of_a_room_has_a_phrase_that_reads_back() -> None:
    judge = _knowing_rooms({})
    for name, values in ROOM_ATTRIBUTES.items():
        for number in range(len(values)):
            assert judge.read(judge.words({name: number})) == {name: number}


@pytest.mark.parametrize(
    ("text", "reason"), [("window, roof", "'roof'.*take of window"), ("window, no window", "two values of window")]
)
def test_unknown_and_contradicting_phrases_are_refused(text: str, reason: str) -> None:
    judge = AttributeJudge({}, {"window": ("window", 1), "no window": ("window", 0)}, {}, lambda images: {})
    with pytest.raises(ConfigError, match=reason):
        judge.read(text)


def test_class_names_may_have_commas() -> None:
    judge = AttributeJudge({}, {"cat, small": ("class", 0), "dog": ("class", 1)}, {}, lambda images: {})
    assert judge.read("cat, small") == {"class": 0}


def test_confidence_is_the_product_over_attributes() -> None:
    judged = {"a": np.array([[0.3, 0.7], [0.9, 0.1]]), "b": np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])}
    assert np.allclose(confidence(judged, {"a": 1, "b": 2}), [0.7 * 0.3, 0.1 * 0.8])
    assert shows(judged, {"a": 0, "b": 2}).tolist() == [False, True]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 20), (100, 100)])
def test_shares_have_wilson_intervals(right: int, n: int) -> None:
    found = share(np.arange(n) < right)
    interval = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert found.value == right / n
    assert found.n == n
    assert found.ci95 == pytest.approx((interval.low, interval.high), abs=2e-5)  # 1.96 for the quantile


def test_judging_in_batches_equals_judging_all_samples_at_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcgan_dist.exploration.attributes._BATCH", 16)
    run, judge = opened("cdcgan"), by_brightness()
    z = first_z(run, 70)
    assert torch.equal(z, run.z(range(70)))
    judged = judge_samples(run, judge, z, "1", "looking")
    at_once = judge.probabilities(run.generate(z, run.y(70, "1")))
    assert np.allclose(judged["view"], at_once["view"], atol=0.02)
    assert judged["bright"].shape == (70, 2)


def _folder(tmp_path: Path, counts: dict[str, int], size: int, channels: int) -> Path:
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for one in range(count):
            shape = (size, size, 3) if channels == 3 else (size, size)
            pixels = random.integers(0, 90, shape) + 160 * number
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{one}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("family", ["dcgan", "cgan"])
def test_classes_of_labelled_images_are_distinguished(family: str, opened: Opened, tmp_path: Path) -> None:
    run = opened(family)
    folder = _folder(tmp_path, {"dark": 30, "light": 30}, run.image_size, run.channels)
    judge = class_attributes(run, str(folder))
    assert judge.values == {"class": ("dark", "light")}
    assert judge.accuracy["class"] == 1.0
    shape = (5, run.image_size, run.image_size, run.channels)
    random = np.random.default_rng(1)
    dark, light = random.integers(0, 90, shape, np.uint8), random.integers(160, 250, shape, np.uint8)
    judged = judge.probabilities(np.concatenate([dark, light]))
    assert shows(judged, judge.read("light")).tolist() == [False] * 5 + [True] * 5
    assert np.allclose(judged["class"].sum(axis=1), 1)


def test_a_class_of_few_images_is_refused(opened: Opened, tmp_path: Path) -> None:
    run = opened("dcgan")
    folder = _folder(tmp_path, {"dark": 3, "light": 20}, run.image_size, run.channels)
    with pytest.raises(DataError, match="3 images of class 'dark'"):
        class_attributes(run, str(folder))
