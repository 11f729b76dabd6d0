"""The verdict on a run's stability, from the lines of metrics.jsonl: whether it trains stably, or how it fails.

docs/stability.md explains the signals, and says on which runs the thresholds below were set, and how often the verdict
was right on other runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Name = Literal["stable", "discriminator_wins", "collapse", "oscillation", "diverged", "undecided"]
Row = Mapping[str, Any]
Values = npt.NDArray[np.float64]

SIGNALS = (
    *("step", "loss_d", "loss_g", "d_real", "d_fake"),
    *("sample_distance", "filter_swing", "filter_oscillation"),
)
"""The keys of metrics.jsonl that a verdict uses."""

MIN_LINES = 12  # log lines that a verdict needs, except `diverged`
RECENT = 0.5  # share of the lines, the newest ones, that are judged: a failure that is over does not count

# Diverged: a loss or gradient is not finite, or loss_d or loss_g exceeds this on a judged line, or on an earlier line
# of a run that now fails in another way. A discriminator that guesses has a loss of 0.69; the largest loss_g that was
# seen when the discriminator wins completely is 190.
LOSS_LIMIT = 500.0

# Collapse: the median of sample_distance over the judged lines is below COLLAPSED times that of real images, or below
# FALLEN times its own highest level (which counts at most as much as that of real images). If the distance of the real
# images is unknown, REAL_DISTANCE is used: photographs of things, faces, bedrooms, and drawn rooms have 0.70, 0.59,
# 0.61, 0.54.
REAL_DISTANCE = 0.6
COLLAPSED = 0.15
FALLEN = 0.4

# The discriminator wins: D(x) - D(G(z)), from 0 (D guesses) to 1 (D is certain), exceeds WIN_GAP on WIN_SHARE of the
# judged lines.
WIN_GAP = 0.8
WIN_SHARE = 0.75

# Oscillation of the generator's filters: the median of filter_swing or filter_oscillation (docs/metrics.md) over the
# judged lines exceeds its threshold. Lines before SETTLED do not count: their windows of 16 lines contain the start of
# training, when all activations change.
FILTER_SWING = 0.15
FILTER_SHARE = 0.3
SETTLED = 20
# Oscillation of a loss: over the judged lines, after subtraction of the linear trend, its autocorrelation falls below
# TROUGH at some lag and exceeds PEAK at a longer one (up to half the number of lines), and its standard deviation
# exceeds LOSS_SWING times its mean.
TROUGH, PEAK = -0.5, 0.5
LOSS_SWING = 0.25

# Undecided, although there are enough lines: the run does not fail, but has not learned anything yet. The distance of
# the samples has never reached UNBORN times that of real images, or D(x) - D(G(z)) has never reached IGNORANT.
UNBORN = 0.25
IGNORANT = 0.1

AT_THRESHOLD = 0.5  # score of a signal at its threshold


@dataclass(frozen=True)
class Verdict:
    """The verdict on a run.

    Attributes:
        name: the verdict. For a run that fails in several ways, the first of `diverged`, `collapse`,
            `discriminator_wins`, `oscillation`.
        reason: the numbers that decided, as text.
        signals: all numbers, by name.
        score: an objective to be maximised, in [0, 1]: above 0.5 if and only if the run is stable, 0 if it diverged,
            otherwise the score of the worst signal.
    """

    name: Name
    reason: str
    signals: dict[str, float]
    score: float


def judge(rows: Sequence[Row], *, diverged: bool = False, real_distance: float | None = None) -> Verdict:
    """Judge a run, finished or not, by its lines so far.

    Args:
        rows: lines of metrics.jsonl, the oldest first. Lines without losses are skipped; null is not finite.
        diverged: whether the run ended because a loss or gradient was not finite.
        real_distance: `sample_distance` of the real images; None if unknown.
    """
    lines = [row for row in rows if "loss_d" in row]
    return judge_columns(
        {name: _column(lines, name) for name in SIGNALS}, diverged=diverged, real_distance=real_distance
    )


def judge_columns(
    columns: Mapping[str, Values], *, diverged: bool = False, real_distance: float | None = None
) -> Verdict:
    """Judge a run by the columns of its lines.

    Args:
        columns: `SIGNALS` by name, each (lines,); NaN for values that are not finite or unknown.
        diverged: see `judge`.
        real_distance: see `judge`.
    """
    losses = np.stack([columns["loss_d"], columns["loss_g"]], 1)
    count, highest = len(losses), losses.max(1)
    broken = np.flatnonzero(~np.isfinite(highest))
    if diverged or len(broken):
        when = _by_step(columns["step"][broken[0]]) if len(broken) else ""
        return Verdict("diverged", f"a loss or gradient is not finite{when}", {}, 0.0)
    first = count - math.ceil(count * RECENT)
    verdict = Verdict("undecided", f"only {count} log lines: it takes {MIN_LINES}", {}, AT_THRESHOLD)
    if count >= MIN_LINES:
        verdict = _weigh(columns, losses, first, REAL_DISTANCE if real_distance is None else real_distance)
    exploded = np.flatnonzero(highest > LOSS_LIMIT)
    if len(exploded) and (exploded[-1] >= first or verdict.name not in ("stable", "undecided")):
        worst = int(highest.argmax())
        reason = f"losses exploded: {highest[worst]:,.0f}{_by_step(columns['step'][worst])}"
        return Verdict("diverged", reason, verdict.signals, 0.0)
    return verdict


def _by_step(step: float) -> str:
    return f" by step {int(step):,}" if math.isfinite(step) else ""


def _weigh(columns: Mapping[str, Values], losses: Values, first: int, real: float) -> Verdict:
    """Judge finite losses, (lines, 2), and the other signals; the lines from `first` on are the judged ones."""
    distances, gaps = columns["sample_distance"], columns["d_real"] - columns["d_fake"]
    best_distance, best_gap = _highest_level(distances), _highest_level(gaps)
    distance, real, settled = _median(distances[first:]), max(real, 1e-9), max(first, SETTLED)
    measured = {
        "gap": _median(gaps[first:]),
        "lasting_gap": _quantile(gaps[first:], 1 - WIN_SHARE),
        "distance": distance,
        "distance_of_real": distance / real,
        "distance_of_best": distance / max(min(best_distance, real), 1e-9),
        "filter_swing": _median(columns["filter_swing"][settled:]),
        "filter_oscillation": _median(columns["filter_oscillation"][settled:]),
        "loss_swing": max(_swing(values) for values in losses[first:].T),
    }
    signals = {name: value for name, value in measured.items() if math.isfinite(value)}
    health = _health(signals)
    score = min(health.values())
    failure = next((name for name, value in health.items() if value <= AT_THRESHOLD), None)
    if failure is not None:
        return Verdict(failure, _reason(failure, signals), signals, score)
    start = ""
    if best_distance < UNBORN * real:
        start = f"samples of different z have never differed by more than {best_distance:.3f}"
    elif best_gap < IGNORANT:
        start = f"D(x) - D(G(z)) has never exceeded {best_gap:.3f}"
    if start:
        return Verdict("undecided", f"not begun: {start}", signals, min(score, AT_THRESHOLD))
    return Verdict("stable", _reason("stable", signals), signals, score)


def _column(lines: Sequence[Row], key: str) -> Values:
    """Return the values of a key, NaN for null and missing ones."""
    return np.array([row.get(key) for row in lines], np.float64)  # None becomes NaN


def _median(values: Values) -> float:
    """Return the median of the finite values, NaN if there are none."""
    known = np.sort(values[np.isfinite(values)])  # for so few values, np.median takes five times as long
    middle = len(known) // 2
    return float(known[middle] + known[-1 - middle]) / 2 if len(known) else math.nan


def _highest_level(values: Values) -> float:
    """Return the highest median of three successive finite values, NaN if there are fewer than three."""
    known = values[np.isfinite(values)]
    if len(known) < 3:
        return math.nan
    a, b, c = known[:-2], known[1:-1], known[2:]
    return float(np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)).max())


def _quantile(values: Values, share: float) -> float:
    """Return a quantile like `np.quantile`, but faster for few values; NaN if a value is NaN."""
    ordered = np.sort(values)
    if np.isnan(ordered[-1]):
        return math.nan
    index = (len(ordered) - 1) * share
    below = ordered[int(index)]
    return float(below + (ordered[math.ceil(index)] - below) * (index - int(index)))


def _swing(values: Values) -> float:
    """Return the standard deviation divided by the mean if the values oscillate (see `TROUGH`), else 0."""
    count = len(values)
    time = np.arange(count) - (count - 1) / 2
    rest = values - values.mean() - time * (time @ values) / (time @ time)
    power = float(rest @ rest) / count
    if power <= 0:
        return 0.0
    lags = np.arange(1, count // 2 + 1)
    correlations = np.correlate(rest, rest, "full")[count:][: len(lags)] / (count - lags) / power
    fell = np.flatnonzero(correlations < TROUGH)
    if not len(fell) or not (correlations[fell[0] :] > PEAK).any():
        return 0.0
    return math.sqrt(power) / max(float(np.abs(values).mean()), 1e-12)


def _health(signals: Mapping[str, float]) -> dict[Name, float]:
    """Return a number for each kind of failure, in order of precedence: 1 is best, 0.5 the threshold, 0 worst.

    Unknown signals count as good.
    """

    def of(name: str, best: float, threshold: float, worst: float) -> float:
        value = signals.get(name, best)
        share = (value - threshold) / (best - threshold)
        if share >= 0:
            return min(AT_THRESHOLD + share * (1 - AT_THRESHOLD), 1.0)
        return max(AT_THRESHOLD * (value - worst) / (threshold - worst), 0.0)

    return {
        "collapse": min(of("distance_of_best", 1, FALLEN, 0), of("distance_of_real", 2 * UNBORN, COLLAPSED, 0)),
        "discriminator_wins": of("lasting_gap", 0.5, WIN_GAP, 1),
        "oscillation": min(
            of("filter_swing", 0, FILTER_SWING, 3 * FILTER_SWING),
            of("filter_oscillation", 0, FILTER_SHARE, 1),
            of("loss_swing", 0, LOSS_SWING, 3 * LOSS_SWING),
        ),
    }


def _reason(name: str, signals: Mapping[str, float]) -> str:
    swings = ["filters swing by {filter_swing:.0%}", "{filter_oscillation:.0%} of them periodically"]
    parts = {
        "collapse": ["samples of different z are alike: distance {distance:.3f}", "{distance_of_best:.0%} of its best"],
        "discriminator_wins": [f"D(x) - D(G(z)) exceeds {{lasting_gap:.2f}} on {WIN_SHARE:.0%} of the judged lines"],
        "oscillation": [*swings, "losses swing by {loss_swing:.0%}"],
        "stable": ["D(x) - D(G(z)) {gap:.2f}", "distance of samples {distance:.2f}", *swings],
    }
    known = [part for part in parts[name] if any(f"{{{key}:" in part for key in signals)]
    return ", ".join(known).format(**signals)
