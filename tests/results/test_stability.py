"""Verdicts: on synthetic rows for each failure, at every threshold, and on lines of real runs labelled by eye."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dcgan_dist.results import stability
from dcgan_dist.results.stability import MIN_LINES, judge

RUNS = Path(__file__).with_name("runs")


def rows(count=40, **values):
    """Return rows of a stable run; given values are constants or functions of the line's number."""
    noise = np.random.default_rng(0).normal(size=(4, count))
    sound = {
        "loss_d": 1.0 + 0.1 * noise[0],
        "loss_g": 1.5 + 0.1 * noise[1],
        "d_real": 0.7 + 0.03 * noise[2],
        "d_fake": 0.3 + 0.03 * noise[3],
        "sample_distance": [0.5 * min(1, (line + 1) / 8) for line in range(count)],
        "filter_oscillation": [None if line < 15 else 0.02 for line in range(count)],
        "filter_swing": [None if line < 15 else 0.04 for line in range(count)],
    }
    made = []
    for line in range(count):
        row = {"step": 20 * (line + 1), **{key: column[line] for key, column in sound.items()}}
        made.append(row | {key: value(line) if callable(value) else value for key, value in values.items()})
    return made


def wave(period, amplitude=0.8):
    return lambda line: 2 + 2 * amplitude * math.sin(line * 2 * math.pi / period + 1)


FAILURES = {
    "collapse after a good start": ("collapse", {"sample_distance": lambda line: 0.5 if line < 10 else 0.15}),
    "collapse from the start": ("collapse", {"sample_distance": 0.03}),
    "the discriminator wins": ("discriminator_wins", {"d_real": 0.97, "d_fake": 0.04, "loss_g": 5.0}),
    "a loss swings": ("oscillation", {"loss_g": wave(6)}),
    "filters swing": ("oscillation", {"filter_swing": 0.3}),
    "filters swing periodically": ("oscillation", {"filter_oscillation": 0.6}),
    "a loss is not finite": ("diverged", {"loss_g": lambda line: 2.0 if line < 30 else None}),
    "a loss explodes": ("diverged", {"loss_d": lambda line: 1.0 if line < 35 else 10.0 ** (line - 32)}),
}


def test_a_healthy_run_is_stable():
    verdict = judge(rows())
    assert verdict.name == "stable"
    assert 0.5 < verdict.score <= 1


@pytest.mark.parametrize("what", FAILURES)
def test_each_failure_is_recognised_and_scores_below_one_half(what):
    name, values = FAILURES[what]
    verdict = judge(rows(**values))
    assert verdict.name == name
    assert 0 <= verdict.score < 0.5


@pytest.mark.parametrize(
    ("key", "threshold", "failure", "grows"),
    [
        ("filter_swing", stability.FILTER_SWING, "oscillation", True),
        ("filter_oscillation", stability.FILTER_SHARE, "oscillation", True),
        ("sample_distance", stability.COLLAPSED * stability.REAL_DISTANCE, "collapse", False),
        ("d_real", stability.WIN_GAP, "discriminator_wins", True),
    ],
)
def test_the_verdict_changes_at_its_threshold_where_the_score_is_one_half(key, threshold, failure, grows):
    others = {"d_fake": 0.0} if key == "d_real" else {}
    sign = 1 if grows else -1
    before, after = (judge(rows(**{key: threshold * (1 + sign * by)}, **others)) for by in (-0.02, 0.02))
    assert before.name != failure
    assert after.name == failure
    assert before.score >= 0.5 > after.score > 0.45


def test_the_score_decreases_steadily_as_a_signal_worsens():
    scores = [judge(rows(d_real=0.5 + gap / 2, d_fake=0.5 - gap / 2)).score for gap in np.linspace(0.5, 1, 11)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == 0.0
    assert scores[0] > 0.5


@pytest.mark.parametrize("period", [4, 5, 7, 9])
def test_a_periodic_loss_is_an_oscillation_and_a_rising_or_noisy_one_is_not(period):
    assert judge(rows(loss_g=wave(period))).name == "oscillation"
    assert judge(rows(loss_g=wave(period, amplitude=0.1))).name == "stable"
    assert judge(rows(loss_g=lambda line: 1 + line / 10)).name == "stable"


def test_collapse_is_relative_to_the_real_images_if_they_are_known():
    alike = rows(sample_distance=0.08)
    assert judge(alike).name == "collapse"
    assert judge(alike, real_distance=0.1).name == "stable"


def test_noise_that_settles_at_the_level_of_real_images_is_no_collapse():
    assert judge(rows(sample_distance=lambda line: 1.6 if line < 5 else 0.5)).name == "stable"


def test_a_failure_that_is_over_does_not_count_in_a_run_that_is_healthy_now():
    early = {
        "sample_distance": lambda line: 0.01 if line < 10 else 0.5,
        "d_real": lambda line: 0.999 if line < 15 else 0.7,
        "d_fake": lambda line: 0.001 if line < 15 else 0.3,
        "loss_d": lambda line: 900.0 if line == 3 else 1.0,
    }
    assert judge(rows(**early)).name == "stable"


def test_an_explosion_takes_precedence_over_failures_after_it():
    died = rows(loss_d=lambda line: 900.0 if line == 3 else 1.0, sample_distance=lambda line: 0.4 if line < 5 else 0.0)
    verdict = judge(died)
    assert verdict.name == "diverged"
    assert verdict.reason == "losses exploded: 900 by step 80"


def test_a_short_run_is_undecided_unless_it_diverged():
    assert judge(rows(MIN_LINES - 1)).name == "undecided"
    assert judge([]).name == "undecided"
    assert judge([], diverged=True).name == "diverged"
    assert judge(rows(3, loss_d=None)).name == "diverged"
    assert judge(rows(3, loss_d=1e6)).name == "diverged"


def test_a_run_that_has_not_learned_anything_yet_is_undecided():
    assert judge(rows(sample_distance=0.11)).name == "undecided"
    assert judge(rows(d_real=0.5, d_fake=0.5)).name == "undecided"


def test_signals_that_are_null_or_missing_are_left_out():
    missing = [{key: row[key] for key in ("step", "loss_d", "loss_g", "d_real", "d_fake")} for row in rows()]
    null = rows(sample_distance=None, filter_swing=None, filter_oscillation=None)
    for verdict in (judge(missing), judge(null)):
        assert verdict.name == "stable"
        assert "distance" not in verdict.signals
        assert all(math.isfinite(value) for value in verdict.signals.values())
        assert "nan" not in verdict.reason


def test_lines_without_losses_are_skipped():
    lineage = {"step": 400, "parent": "t0003", "parent_step": 400, "parent_digest": "d"}
    whole = rows()
    assert judge([*whole[:20], lineage, *whole[20:]]) == judge(whole)


def recorded(name):
    return [json.loads(line) for line in (RUNS / f"{name}.jsonl").read_text().splitlines()]


LABELLED = json.loads((RUNS / "labels.json").read_text())


@pytest.mark.parametrize("name", LABELLED)
def test_verdicts_on_real_runs_agree_with_their_labels(name):
    assert judge(recorded(name)).name == LABELLED[name]


# Their discriminators are far ahead until the generator has learned something.
LATE = ("faces-slow", "faces-linear-discriminator")


@pytest.mark.parametrize("name", [name for name, label in LABELLED.items() if label == "stable" and name not in LATE])
def test_a_healthy_run_has_no_failure_at_any_length(name):
    lines = recorded(name)
    assert {judge(lines[:count]).name for count in range(len(lines) + 1)} == {"stable", "undecided"}


@pytest.mark.parametrize("name", LATE)
def test_the_verdict_on_an_unfinished_run_changes_with_the_run(name):
    lines = recorded(name)
    assert judge(lines[:MIN_LINES]).name == "discriminator_wins"
    assert judge(lines).name == "stable"


@pytest.mark.parametrize("name", ["faces-beta1-0.9", "faces-beta1-0.99", "faces-no-norm", "faces-no-norm-lr-x10"])
def test_a_failure_is_seen_by_the_middle_of_the_run(name):
    lines = recorded(name)
    assert judge(lines[: len(lines) // 2]).name == LABELLED[name]
