"""Verdicts: each failure is recognised on rows made for it, and a sound run never is one."""

import math

import numpy as np
import pytest

from dcgan_dist.results.stability import MIN_LINES, judge


def rows(count=40, **values):
    """Rows of a sound run; a value given is a constant, a list, or a function of the line's number."""
    noise = np.random.default_rng(0).normal(size=(4, count))
    sound = {
        "loss_d": 1.0 + 0.1 * noise[0],
        "loss_g": 1.5 + 0.1 * noise[1],
        "d_real": 0.7 + 0.03 * noise[2],
        "d_fake": 0.3 + 0.03 * noise[3],
        "sample_distance": [0.5 * min(1, (line + 1) / 8) for line in range(count)],
        "filter_oscillation": [None if line < 15 else 0.02 for line in range(count)],
    }
    made = []
    for line in range(count):
        row = {"step": 20 * (line + 1), **{key: column[line] for key, column in sound.items()}}
        for key, value in values.items():
            row[key] = value(line) if callable(value) else value
        made.append(row)
    return made


FAILURES = {
    "collapse": {"sample_distance": lambda line: 0.5 if line < 10 else 0.02},
    "discriminator_wins": {"d_real": 0.99, "d_fake": 0.01, "loss_g": 5.0},
    "oscillation": {"loss_g": lambda line: 2 + 1.5 * math.sin(line * 2 * math.pi / 6)},
    "diverged": {"loss_g": lambda line: 2.0 if line < 30 else None},
}


def test_a_sound_run_is_stable():
    verdict = judge(rows())
    assert verdict.name == "stable"
    assert verdict.score > 0.5


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_is_recognised_and_scores_below_one_half(name):
    verdict = judge(rows(**FAILURES[name]))
    assert verdict.name == name
    assert 0 <= verdict.score <= 0.5


def test_a_short_run_is_undecided_but_one_that_diverged():
    assert judge(rows(MIN_LINES - 1)).name == "undecided"
    assert judge([]).name == "undecided"
    assert judge([], diverged=True).name == "diverged"
