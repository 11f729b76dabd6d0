"""What a sweep maximises: one score, several, or their weighted sum; and which trials are best by it.

A trial that diverged, or whose samples collapsed, has no objective, whatever its newest scores are: they are of a
network that nobody would train on, and the score of a discriminator can be high beside a generator that draws one
picture. So such trials rank below all others, the ones that got further first; a scheduler stops them, and the
importance of settings counts them as the worst trial that has an objective. A discriminator that wins, and
oscillation, do not void a score: they show in it, and in the score `stability`, which can be part of the objective.
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
"""Samples without which there is no `frechet_distance`: of fewer it tells more of their number than of them."""


@dataclass(frozen=True)
class Objective:
    """What is maximised.

    Attributes:
        names: of the scores.
        weights: of each in a weighted sum; None where the first score counts, and the others for the Pareto front.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, scores: str | Sequence[str], known: Collection[str] = SCORES) -> Objective:
        """Read the setting `objective`, such as `representation`, `representation,coverage` or `coverage:1,recall:2`.

        Args:
            scores: the setting, or its text.
            known: the scores that there are.

        Raises:
            ConfigError: there is no such score, or a weight is none.
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
        """Name of what is maximised."""
        return "score" if self.weights else self.names[0]

    @property
    def is_multiple(self) -> bool:
        """Whether several scores are weighed against each other by a Pareto front."""
        return self.weights is None and len(self.names) > 1

    def check(self, score: ScoreConfig) -> None:
        """Refuse an objective that the trials' scores will not hold.

        Raises:
            ConfigError: the message says which setting leaves it out.
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
            scores: by name; those to be minimised are as measured, and turned round here.
            verdict: of the trial's stability.

        Returns:
            None where a score is missing or not finite, or the trial diverged or collapsed.
        """
        needed = self if self.weights else Objective(self.names[:1])
        values = needed.values(scores, verdict)
        if values is None or self.weights is None:
            return values[0] if values else None
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def values(self, scores: Mapping[str, float], verdict: str | None = None) -> list[float] | None:
        """Return every score as a number to be maximised, in the order of `names`; None where `value` is, or one lacks.

        Args:
            scores: by name, as measured.
            verdict: of the trial's stability.
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
        raise ConfigError(f"objective is {objective!r}: the weight {text!r} is no positive number")
    return weight


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials, the best first; those without an objective last, the ones that got further first.

    Finalists come before the others, in the order of their full scores: those of a cheaper protocol are no match.
    """

    def place(record: TrialRecord) -> tuple[bool, bool, float, int, str]:
        value = record.objective if record.full_objective is None else record.full_objective
        return (value is None, record.full_objective is None, -(value or 0.0), -record.step, record.trial)

    return sorted(records, key=place)


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial with the highest objective, None where none has one."""
    first = next(iter(ranked(records)), None)
    return None if first is None or first.objective is None else first


def pareto_front(records: Iterable[TrialRecord], names: Sequence[str]) -> list[str]:
    """Return the names of the trials than which no other is better in one score and at least as good in all others.

    Args:
        records: of the trials; those that diverged or collapsed, or lack one of the scores, are left out.
        names: of the scores.

    Returns:
        By name; trials with the very same scores are all in it, or none.
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
