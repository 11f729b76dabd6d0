from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.exploration.turn import (
    TurnConfig,
    draw,
    find_sides,
    measure,
    measure_vector,
    random_vectors,
    turn_vector,
)
from tests.exploration.conftest import with_settings
from tests.exploration.judges import by_brightness

Opened = Callable[..., Trained]


def test_the_vector_goes_from_the_left_mean_to_the_right_mean() -> None:
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(4, 10, generator=random), torch.randn(3, 10, generator=random)
    assert torch.allclose(left.mean(0) + turn_vector(left, right), right.mean(0))


def test_random_vectors_are_as_long_and_of_any_direction() -> None:
    vector = torch.arange(50.0)
    drawn = random_vectors(2000, vector, seed=1)
    assert torch.allclose(drawn.norm(dim=1), vector.norm().expand(2000), rtol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(drawn, vector[None])
    assert cosines.mean().abs() < 4 / (50 * 2000) ** 0.5
    assert cosines.std() == pytest.approx(50**-0.5, rel=0.1)


def test_sides_are_the_samples_of_which_the_judge_is_most_certain() -> None:
    judged = {"view": np.array([[0.9, 0.1], [0.2, 0.8], [0.97, 0.03], [0.4, 0.6], [0.01, 0.99]])}
    assert find_sides(by_brightness(), judged, 2) == ([2, 0], [4, 1])
    with pytest.raises(ConfigError, match="2 of 5 samples searched show 'view left', and exemplars asks for 3"):
        find_sides(by_brightness(), judged, 3)


@pytest.mark.parametrize("family", ["dcgan", "cgan"])
def test_measured_shares_are_those_of_samples_made_by_hand(family: str, opened: Opened) -> None:
    run = opened(family)
    label = "1" if run.classes else None
    z, parts = run.draw_z("new", 12), [-1.0, 0.0, 1.0]
    vector = run.draw_z("vector", 1)[0] * 3
    plain = run.generate(z, run.y(12, label)).astype(float)
    judge = by_brightness(float(np.median(plain.mean(axis=(1, 2, 3)))))
    measured = measure_vector(run, judge, z, vector, parts, label)
    half = run.image_size // 2
    right, bright = [], []
    for part in parts:
        grey = run.generate(z + part * vector, run.y(12, label)).astype(float).mean(axis=3)
        right.append(grey[:, :, half:].mean(axis=(1, 2)) > grey[:, :, :half].mean(axis=(1, 2)))
        bright.append(judge.probabilities(grey[..., None])["bright"].argmax(axis=1))
    assert [one.value for one in measured.right] == [mask.mean() for mask in right]
    changed = [at != bright[1] for at in bright]
    assert [one.mean for one in measured.changed] == [mask.mean() for mask in changed]
    assert measured.changed[1].mean == 0
    low, high = stats.norm.interval(0.95, changed[2].mean(), stats.sem(changed[2].astype(float)))
    if changed[2].any() and not changed[2].all():
        assert measured.changed[2].ci95 == pytest.approx((low, high), abs=1e-4)  # 1.96 for the quantile
    was_left = ~right[1]
    expected = None if not was_left.any() else right[2][was_left].mean()
    assert (measured.turned and measured.turned.value) == expected


@pytest.mark.parametrize("family", ["gan", "cdcgan"])
def test_picked_samples_make_a_picture_without_measurement(family: str, opened: Opened) -> None:
    run = opened(family)
    turn = measure(TurnConfig(left=("0-3",), right=("7", "8"), rows=2, columns=5, measured=0), run)
    numbers = turn.numbers
    assert (numbers["left"], numbers["right"]) == ([0, 1, 2, 3], [7, 8])
    assert numbers["parts"] == [-1, -0.5, 0, 0.5, 1]
    vector = run.z([7, 8]).mean(0) - run.z([0, 1, 2, 3]).mean(0)
    assert numbers["length"] == pytest.approx(float(vector.norm()))
    assert numbers["turn"] is None
    assert draw(turn).png()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"left": ("1",)}, "right is missing"),
        ({"left": ("1",), "right": ("b",)}, "right is 'b'"),
        ({"columns": 4}, "columns is 4"),
        ({"exemplars": 9, "search": 8}, "exemplars is 9"),
        ({"measured": -1}, "measured is -1"),
    ],
)
def test_bad_settings_name_the_way_out(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TurnConfig(**settings)  # type: ignore[arg-type]


def test_a_person_has_to_choose_the_sides_for_other_images_than_rooms(opened: Opened) -> None:
    run = with_settings(opened("gan"), {"data": {"path": "photographs"}})
    with pytest.raises(NeedsChoice, match="explore sheet"):
        measure(TurnConfig(), run)
