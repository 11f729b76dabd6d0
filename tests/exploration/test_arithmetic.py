from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.exploration import arithmetic
from dcgan_dist.exploration.arithmetic import (
    ArithmeticConfig,
    Exemplars,
    Term,
    alike,
    combine,
    combine_pixels,
    derive_wanted,
    find_exemplars,
    measure_draws,
    neighbours,
    parse_formula,
    share_outside,
)
from dcgan_dist.exploration.attributes import AttributeJudge
from dcgan_dist.exploration.drawing import Canvas, Panel
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.explore import main
from tests.exploration.conftest import with_settings
from tests.exploration.judges import by_brightness

Opened = Callable[..., Trained]
A_MINUS_B_PLUS_C = [Term(1, "a"), Term(-1, "b"), Term(1, "c")]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """All panels that are added to a canvas."""
    seen: list[Panel] = []
    whole = Canvas.images

    def images(canvas: Canvas, *given: Panel) -> None:
        seen.extend(given)
        whole(canvas, *given)

    monkeypatch.setattr(Canvas, "images", images)
    return seen


def _middling(run: Trained, label: str | None = None) -> AttributeJudge:
    """A judge for which half of the samples are bright."""
    images = run.generate(run.z(range(64)), run.y(64, label))
    # Shifted a little, so that no image is exactly at the threshold.
    return by_brightness(float(np.median(images.astype(float).mean(axis=(1, 2, 3)))) + 1e-5)


def test_a_formula_is_read_with_names_that_have_hyphens_and_commas() -> None:
    read = parse_formula("a well-lit room, view left -  no window + x-y")
    assert read == [Term(1, "a well-lit room, view left"), Term(-1, "no window"), Term(1, "x-y")]


@pytest.mark.parametrize("text", ["", "a - ", "a - - b", "+ a"])
def test_a_formula_with_an_empty_concept_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="formula is"):
        ArithmeticConfig(formula=text)


@pytest.mark.parametrize(("a", "b", "c"), list(product(range(3), repeat=3)))
def test_wanted_is_the_value_of_a_where_a_and_b_differ_else_that_of_c(a: int, b: int, c: int) -> None:
    wanted = derive_wanted(A_MINUS_B_PLUS_C, [{"hair": a}, {"hair": b}, {"hair": c, "hat": 1}])
    assert wanted == {"hair": a if a != b else c, "hat": 1}


def test_values_that_are_only_subtracted_are_not_wanted() -> None:
    assert derive_wanted([Term(1, "a"), Term(-1, "b")], [{"x": 1}, {"y": 0}]) == {"x": 1}


def test_arithmetic_is_the_sum_of_means() -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.integers(0, 256, (3, 8, 8, 3), np.uint8) for _ in range(3))
    by_hand = np.clip(np.round(a.mean(0) - b.mean(0) + c.mean(0)), 0, 255)
    assert np.array_equal(combine_pixels([1, -1, 1], [a, b, c]), by_hand)
    means = [torch.from_numpy(random.random(5)) for _ in range(3)]
    assert torch.allclose(combine([1, -1, 1], means), means[0] - means[1] + means[2])


def test_neighbours_stand_around_the_centre_within_the_noise() -> None:
    centre = torch.linspace(-2, 2, 100)
    grid = neighbours(centre, 0.25, seed=3)
    assert grid.shape == (9, 100)
    assert torch.equal(grid[4], centre)  # not clipped to [-1, 1]
    noise = torch.cat([grid[:4], grid[5:]]) - centre
    assert noise.abs().max() <= 0.2501
    assert noise.std() == pytest.approx(0.25 / 3**0.5, rel=0.05)
    assert share_outside(centre) == pytest.approx(0.5)


def test_alike_is_the_share_of_equal_pairs() -> None:
    random = np.random.default_rng(0)
    seen = [np.eye(3)[random.integers(0, 3, 12)], np.eye(2)[random.integers(0, 2, 12)]]
    by_hand = [a[i].argmax() == a[j].argmax() for a in seen for i in range(12) for j in range(i)]
    assert alike({"a": seen[0], "b": seen[1]}).value == pytest.approx(np.mean(by_hand))
    low, high = alike({"a": seen[0], "b": seen[1]}).ci95
    assert low < np.mean(by_hand) < high
    assert alike({"a": np.eye(3)[[1, 1, 1]]}).ci95 == (1.0, 1.0)


def test_exemplars_are_the_clear_ones_the_clearest_first() -> None:
    judged = {"bright": np.array([[0.4, 0.6], [0.9, 0.1], [0.05, 0.95], [0.55, 0.45]])}
    judged["view"] = np.array([[0.9, 0.1], [1.0, 0.0], [0.8, 0.2], [1.0, 0.0]])
    found = find_exemplars(judged, by_brightness().read("bright, view left"))
    assert found == Exemplars((2, 0), 2)  # 0.76, 0.54; then 0.45, 0.1


@pytest.mark.parametrize("family", ["dcgan", "gan", "cgan"])
def test_shares_are_those_of_results_made_by_hand(family: str, opened: Opened) -> None:
    run = opened(family)
    label = "1" if run.classes else None
    judge = _middling(run, label)
    pools = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    wanted = judge.read("bright")
    (one,) = measure_draws(
        run, judge, A_MINUS_B_PLUS_C, [Exemplars(tuple(ids)) for ids in pools], wanted, [3], 4, label
    )
    # Every draw of three out of three exemplars is the same.
    a, b, c = (run.z(ids).numpy().mean(axis=0) for ids in pools)
    z = torch.from_numpy(a - b + c)[None]
    image = run.generate(z, run.y(1, label))
    assert one.latent.value == float(judge.probabilities(image)["bright"].argmax() == 1)
    x, y, w = (run.generate(run.z(ids), run.y(3, label)).mean(axis=0) for ids in pools)
    control = np.clip(x - y + w, 0, 255)[None]
    assert one.pixels.value == float(judge.probabilities(control)["bright"].argmax() == 1)
    assert one.latent.n == 4
    assert one.outside == pytest.approx(float((np.abs(a - b + c) > 1).mean()))


def test_with_many_draws_the_share_approaches_that_over_all_combinations(opened: Opened) -> None:
    run = opened("dcgan")
    judge = _middling(run)
    pools = [(0, 1, 2), (3, 4)]
    terms = [Term(1, "a"), Term(-1, "b")]
    (one,) = measure_draws(run, judge, terms, [Exemplars(ids) for ids in pools], judge.read("bright"), [1], 600, None)
    z = torch.cat([run.z([a]) - run.z([b]) for a, b in product(*pools)])
    expected = (judge.probabilities(run.generate(z, run.y(6)))["bright"].argmax(axis=1) == 1).mean()
    low, high = one.latent.ci95
    assert low - 0.03 <= expected <= high + 0.03


def test_picked_samples_make_the_picture(opened: Opened, panels: list[Panel]) -> None:
    run = opened("cdcgan")
    concepts = {"a": "0,5,9", "b": [1, 2, 3], "c": "20-22"}
    drawn = arithmetic.measure(ArithmeticConfig(formula="a - b + c", concept=concepts, label="1"), run)
    canvas = arithmetic.draw(drawn)
    assert [term["ids"] for term in drawn.numbers["formula"]] == [[0, 5, 9], [1, 2, 3], [20, 21, 22]]
    assert [one["exemplars"] for one in drawn.numbers["shown"]] == [1, 3]
    assert drawn.numbers["measured"] == []
    z = run.z([0, 5, 9]).mean(0) - run.z([1, 2, 3]).mean(0) + run.z([20, 21, 22]).mean(0)
    assert drawn.numbers["shown"][1]["outside"] == pytest.approx(float((z.abs() > 1).float().mean()))
    a, _, _, result, control = panels[5:]  # the row of three exemplars
    with_mean = torch.cat([run.z([0, 5, 9]), run.z([0, 5, 9]).mean(0, keepdim=True)])
    assert np.abs(a.images.astype(int) - run.generate(with_mean, run.y(4, "1"))).max() <= 1
    assert list(a.marks or ()) == ["0", "5", "9", "mean"]
    assert np.abs(result.images[4].astype(int) - run.generate(z[None], run.y(1, "1"))[0]).max() <= 1
    assert control.images.shape == (1, run.image_size, run.image_size, run.channels)
    assert canvas.png()[:4] == b"\x89PNG"


def test_found_concepts_are_measured(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened("dcgan")
    judge = _middling(run)
    monkeypatch.setattr(arithmetic, "class_attributes", lambda run, data: judge)
    config = ArithmeticConfig(
        formula="bright - dark + view left", data="x", search=64, draws=5, measured=(1, 2, 60), exemplars=(1, 2)
    )
    drawn = arithmetic.measure(config, run)
    judged = judge.probabilities(run.generate(run.z(range(64)), run.y(64)))
    bright, left = judged["bright"].argmax(axis=1) == 1, judged["view"].argmax(axis=1) == 0
    assert drawn.numbers["wanted"] == "bright, view left"
    assert drawn.numbers["base_rate"]["value"] == (bright & left).mean()
    assert drawn.numbers["formula"][0]["found"] == bright.sum()
    assert [one["exemplars"] for one in drawn.numbers["measured"]] == [1, 2]
    assert "of 5 results on z show bright, view left" in arithmetic.finding(drawn)


def test_too_few_exemplars_are_refused_with_their_number(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "class_attributes", lambda run, data: by_brightness(1000.0))
    config = ArithmeticConfig(formula="bright - dark", data="x", search=40)
    with pytest.raises(ConfigError, match="0 of 40 samples searched clearly show 'bright', but exemplars asks for 3"):
        arithmetic.measure(config, opened("dcgan"))


def test_a_person_has_to_choose_where_no_judge_knows_the_concept(opened: Opened) -> None:
    run = with_settings(opened("gan"), {"data": {"path": "photographs"}})
    with pytest.raises(NeedsChoice, match="explore sheet"):
        arithmetic.measure(ArithmeticConfig(), run)
    with pytest.raises(NeedsChoice, match=r"'c' cannot be looked for: .*explore sheet"):
        arithmetic.measure(ArithmeticConfig(formula="a - c", concept={"a": 3}), run)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["--formula", "a - b", "--concept", "{a: '1', b: x}"], "concept 'b' is 'x'"),
        (["--formula", "a - b", "--concept", "{a: 1, b: 2, c: 3}"], "concept lists 'c'"),
        (["--formula", "a - b", "--concept", "{a: 3,17,20}"], "concept '17' is None.* in quotes"),
        (["--formula", "a - b", "--concept", "{a: 1, b: 0-99999999999}"], "concept 'b' is .* at most"),
        (["--formula", "a - b", "--concept", "{a: 1, b: 2}", "--exemplars", "1,2"], "lists 1 samples"),
        (["--formula", "a - b", "--concept", "{a: 1, b: 2}", "--label", "3"], "unconditional"),
        (["--exemplars", "0"], "exemplars is '0'"),
        (["--noise", "-1"], "noise is -1"),
        (["--search", "0"], "search is 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    settings: list[str], reason: str, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures"
    arguments: list[Any] = ["arithmetic", "--run", opened("gan").location, "--output", str(output), *settings]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(reason, told), told
    assert not output.exists()
