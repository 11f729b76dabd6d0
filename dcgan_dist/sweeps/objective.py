"""The objective of a sweep (one score, several, or their weighted sum), and the ranking of trials by it.

A trial that diverged, or whose samples collapsed, has no objective, whatever its newest scores are: nobody would use
its networks, and a discriminator can have a high score although the generator draws only one picture. Such trials rank
below all others, ordered by their steps; a scheduler stops them, and the importance of settings counts them like the
worst trial with an objective. A discriminator that wins, and oscillation, do not void a score: they lower it, and they
lower the score `stability`, which can be part of the objective.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dcgan_dist.errors import ConfigError
from dcgan_dist.settings import as_list
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import ScoreConfig

OF_SAMPLES = ("precision", "recall", "density", "coverage", "distance_ratio", "frechet_distance")
"""Scores that compare samples with real images."""
SCORES = ("representation", "stability", *OF_SAMPLES)
MINIMISED = ("frechet_distance",)
VOID_VERDICTS = ("diverged", "collapse")
"""Verdicts of trials that have no objective."""

FRECHET_SAMPLES = 5000
"""Samples that `frechet_distance` needs; with fewer, it depends more on their number than on the samples."""


@dataclass(frozen=True)
class Objective:
    """The objective to be maximised.

    Attributes:
        names: names of the scores.
        weights: weights of the scores in a weighted sum; None if the first score is maximised, and the others only
            count for the Pareto front.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, scores: str | Sequence[str], known: Collection[str] = SCORES) -> Objective:
        """Parse the setting `objective`, such as `representation`, `representation,coverage` or `coverage:1,recall:2`.

        Args:
            scores: the setting, or its text.
            known: names of all scores.

        Raises:
            ConfigError: there is no such score, or a weight is not a positive number.
        """
        names: list[str] = []
        weights: list[float] = []
        text = ",".join(as_list(scores))
        for part in text.split(","):
            name, colon, weight = (word.strip() for word in part.partition(":"))
            if name not in known:
                raise ConfigError(f"objective is {text!r}: there is no score {name!r}: take some of {', '.join(known)}")
            if name in names:
                raise ConfigError(f"objective is {text!r}: it has {name} twice")
            names.append(name)
            if colon:
                weights.append(_parse_weight(weight, text))
        if weights and len(weights) < len(names):
            raise ConfigError(f"objective is {text!r}: give each score a weight, or none")
        return cls(tuple(names), tuple(weights) if weights else None)

    @property
    def label(self) -> str:
        """Name of the maximised number: the first score, or `score` for a weighted sum."""
        return "score" if self.weights else self.names[0]

    @property
    def is_multiple(self) -> bool:
        """Whether there are several scores without weights, compared by a Pareto front."""
        return self.weights is None and len(self.names) > 1

    def check(self, score: ScoreConfig) -> None:
        """Check that the trials will have the scores of the objective.

        Raises:
            ConfigError: a score will be missing; the message names the setting.
        """
        for name in self.names:
            if name == "representation" and score.task == "none":
                raise ConfigError("objective names representation, but score.task is none: name a task")
            if name in OF_SAMPLES and score.count == 0:
                raise ConfigError(f"objective names {name}, but score.count is 0: take 100 or more")
            if name == "frechet_distance" and score.count < FRECHET_SAMPLES:
                raise ConfigError(
                    f"objective names {name}, but score.count is {score.count}: take {FRECHET_SAMPLES} or more"
                )

    def value(self, scores: Mapping[str, float], verdict: str | None = None) -> float | None:
        """Return the number to be maximised.

        Args:
            scores: scores by name, as measured; the sign of scores to be minimised is changed here.
            verdict: verdict on the trial's stability.

        Returns:
            The number; None if a score is missing or not finite, or the trial diverged or collapsed.
        """
        needed = self if self.weights else Objective(self.names[:1])
        values = needed.values(scores, verdict)
        if values is None or self.weights is None:
            return values[0] if values else None
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def values(self, scores: Mapping[str, float], verdict: str | None = None) -> list[float] | None:
        """Return all scores as numbers to be maximised, in the order of `names`.

        Args:
            scores: scores by name, as measured.
            verdict: verdict on the trial's stability.

        Returns:
            The numbers; None if a score is missing or not finite, or the trial diverged or collapsed.
        """
        if verdict in VOID_VERDICTS:
            return None
        found = [scores.get(name) for name in self.names]
        signs = [-1.0 if name in MINIMISED else 1.0 for name in self.names]
        values = [sign * value for sign, value in zip(signs, found, strict=True) if value is not None]
        return values if len(values) == len(found) and all(map(math.isfinite, values)) else None


def _parse_weight(text: str, objective: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(f"objective is {objective!r}: the weight {text!r} is not a positive number")
    return weight


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials, the best first; trials without an objective are last, ordered by their steps.

    Finalists come before all others, ordered by their full scores, because scores of a cheaper protocol cannot be
    compared with these.
    """

    def rank(record: TrialRecord) -> tuple[bool, bool, float, int, str]:
        value = record.objective if record.full_objective is None else record.full_objective
        return (value is None, record.full_objective is None, -(value or 0.0), -record.step, record.trial)

    return sorted(records, key=rank)


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the first of the ranked trials, None if no trial has an objective."""
    first = next(iter(ranked(records)), None)
    return None if first is None or first.objective is None else first


def pareto_front(records: Iterable[TrialRecord], names: Sequence[str]) -> list[str]:
    """Return the names of the trials that no other trial dominates (better in one score, as good in all others).

    Args:
        records: records of the trials; trials that diverged or collapsed, or lack a score, are left out.
        names: names of the scores.

    Returns:
        The names, sorted; of trials with equal scores, all or none are in the front.
    """
    objective = Objective(tuple(names))
    scored = [(record.trial, objective.values(record.values, _verdict(record))) for record in records]
    points = [(trial, tuple(values)) for trial, values in scored if values is not None]
    return sorted(trial for trial, point in points if not any(_dominates(other, point) for _, other in points))


def _verdict(record: TrialRecord) -> str | None:
    return "diverged" if record.status == "diverged" else record.verdict


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


__all__ = ["SCORES", "Objective", "best_of", "pareto_front", "ranked"]
