"""Whether a run trains stably, and what has gone wrong where it does not: a verdict from the lines of metrics.jsonl.

Every failure has one number, its severity, that crosses its threshold when the run fails that way. docs/stability.md
explains each, says on which runs the thresholds were set, and how often the verdict was right on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Name = Literal["stable", "discriminator_wins", "collapse", "oscillation", "diverged", "undecided"]

MIN_LINES = 12  # log lines without which there is no verdict, but that a run diverged
RECENT = 0.5  # share of the lines, the newest, that are judged: what has passed is forgiven

# Exploding: -log of a probability that a sound discriminator never gives. 0.69 is ignorance, 5 a certain win.
LOSS_LIMIT = 50.0  # loss_d or loss_g, median of the judged lines

# The discriminator wins where D(x) - D(G(z)), from 0 (ignorant) to 1 (certain), exceeds WIN_GAP for long.
WIN_GAP = 0.9
WIN_SHARE = 0.75  # of the judged lines

# The generator collapses where sample_distance falls below this share of its own highest level (the highest median of
# LEVEL lines in a row), or of the real images' where known; or below this level: such samples look alike to the eye.
COLLAPSE_SHARE = 0.4
COLLAPSE_LEVEL = 0.1
LEVEL = 3

# The game oscillates where a loss swings away and comes back: in the judged lines, less their linear trend, its
# autocorrelation falls below TROUGH at some lag and exceeds PEAK at a longer one, and its standard deviation exceeds
# SWING of its mean. Filters of the generator do so by filter_oscillation (docs/metrics.md), median of the judged lines.
TROUGH, PEAK = -0.5, 0.5
SWING = 0.25
FILTER_SHARE = 0.3


@dataclass(frozen=True)
class Verdict:
    """What became of a run.

    Attributes:
        name: the verdict. Where a run fails in several ways, the first of `diverged`, `collapse`, `discriminator_wins`,
            `oscillation`.
        reason: one sentence with the figures that decided.
        signals: those figures by name; docs/stability.md lists them.
        score: an objective to be maximised, from 0 to 1: above 0.5 if and only if the run is stable.
    """

    name: Name
    reason: str
    signals: dict[str, float]
    score: float


def judge(rows: Sequence[Mapping[str, Any]], *, diverged: bool = False, real_distance: float | None = None) -> Verdict:
    """Judge a run, finished or not, by its lines so far.

    Args:
        rows: lines of metrics.jsonl, the oldest first; lines without losses and unknown keys are passed over.
        diverged: whether the run ended because a loss or gradient was not finite.
        real_distance: `sample_distance` of real images, where it is known.
    """
    lines = [row for row in rows if "loss_d" in row]
    losses = np.array([[_number(row, "loss_d"), _number(row, "loss_g")] for row in lines]).reshape(-1, 2)
    if diverged or not np.isfinite(losses).all():
        where = next(
            (int(row["step"]) for row, pair in zip(lines, losses, strict=True) if not np.isfinite(pair).all()), None
        )
        reason = "a loss or gradient is not finite" + (f" at step {where:,}" if where is not None else "")
        return Verdict("diverged", reason, {}, 0.0)
    if len(lines) < MIN_LINES:
        return Verdict("undecided", f"{len(lines)} log lines: a verdict needs {MIN_LINES}", {}, 0.5)
    recent = slice(len(lines) - math.ceil(len(lines) * RECENT), None)
    signals = {
        "loss": float(np.median(losses[recent].max(1))),
        **_winning(lines, recent),
        **_diversity(lines, recent, real_distance),
        **_swinging(lines, losses, recent),
    }
    health: dict[Name, float] = {
        "diverged": _health(signals["loss"], best=5.0, threshold=LOSS_LIMIT, worst=2 * LOSS_LIMIT),
        "collapse": min(
            _health(signals["distance_share"], best=1.0, threshold=COLLAPSE_SHARE, worst=0.0),
            _health(signals["distance"], best=2 * COLLAPSE_LEVEL, threshold=COLLAPSE_LEVEL, worst=0.0),
        ),
        "discriminator_wins": _health(signals["win_share"], best=0.0, threshold=WIN_SHARE, worst=1.0),
        "oscillation": min(
            _health(signals["loss_swing"], best=0.0, threshold=SWING, worst=2 * SWING),
            _health(signals["filter_oscillation"], best=0.0, threshold=FILTER_SHARE, worst=1.0),
        ),
    }
    score = min(health.values())
    for name, value in health.items():
        if value <= 0.5:
            return Verdict(name, _reason(name, signals), signals, score)
    return Verdict("stable", _reason("stable", signals), signals, score)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def _health(value: float, *, best: float, threshold: float, worst: float) -> float:
    """Return 1 at `best` and beyond, 0.5 at `threshold`, 0 at `worst` and beyond; between them in proportion."""
    order = np.sign(best - worst)
    return float(np.interp(order * value, order * np.array([worst, threshold, best]), [0.0, 0.5, 1.0]))


def _winning(lines: Sequence[Mapping[str, Any]], recent: slice) -> dict[str, float]:
    gaps = np.array([_number(row, "d_real") - _number(row, "d_fake") for row in lines])[recent]
    return {"gap": float(np.median(gaps)), "win_share": float((gaps > WIN_GAP).mean())}


def _diversity(lines: Sequence[Mapping[str, Any]], recent: slice, real: float | None) -> dict[str, float]:
    distances = np.array([_number(row, "sample_distance") for row in lines])
    levels = np.median(np.lib.stride_tricks.sliding_window_view(distances, LEVEL), axis=1)
    now = float(np.median(distances[recent]))
    return {"distance": now, "distance_share": now / max(float(levels.max()) if real is None else real, 1e-9)}


def _swinging(lines: Sequence[Mapping[str, Any]], losses: npt.NDArray[np.float64], recent: slice) -> dict[str, float]:
    filters = np.array([_number(row, "filter_oscillation") for row in lines])[recent]
    filters = filters[np.isfinite(filters)]
    return {
        "loss_swing": max(_swing(values) for values in losses[recent].T),
        "filter_oscillation": float(np.median(filters)) if len(filters) else 0.0,
    }


def _swing(values: npt.NDArray[np.float64]) -> float:
    """Return the relative amplitude of values that swing away and come back, else 0."""
    count = len(values)
    time = np.arange(count) - (count - 1) / 2
    rest = values - values.mean() - time * (time @ values) / (time @ time)
    power = float(rest @ rest)
    if power <= 0:
        return 0.0
    fell = False
    for lag in range(1, count // 2 + 1):
        correlation = float(rest[:-lag] @ rest[lag:]) / (count - lag) / (power / count)
        if fell and correlation > PEAK:
            return math.sqrt(power / count) / max(float(np.abs(values).mean()), 1e-12)
        fell = fell or correlation < TROUGH
    return 0.0


def _reason(name: str, signals: Mapping[str, float]) -> str:
    texts = {
        "diverged": "losses explode: {loss:.3g} in the middle of the judged lines",
        "collapse": "samples of different z are alike: distance {distance:.3f}, {distance_share:.0%} of its best level",
        "discriminator_wins": "D(x) - D(G(z)) above {limit:g} on {win_share:.0%} of the judged lines",
        "oscillation": "losses swing by {loss_swing:.0%} of their mean, {filter_oscillation:.0%} of filters oscillate",
        "stable": "D(x) - D(G(z)) {gap:.2f}, distance {distance:.2f}, {filter_oscillation:.0%} of filters oscillate",
    }
    return texts[name].format(limit=WIN_GAP, **signals)
