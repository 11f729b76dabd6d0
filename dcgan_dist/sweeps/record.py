"""The record of one trial of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dcgan_dist.config import Config
from dcgan_dist.settings import as_text, modernised, settings_in, typed

TrialStatus = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED = ("finished", "stopped", "diverged", "failed")


# Types of the fields of a record in JSON.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("trial", "status", "reason", "verdict_reason"), str),
    **dict.fromkeys(("step", "steps", "attempts"), int),
    **dict.fromkeys(("objective", "full_objective", "started", "ended"), int | float | None),
    **dict.fromkeys(("parameters", "scores", "full_scores"), dict),
    **{"verdict": str | None, "milestones": list | tuple, "parent": dict | None, "seconds": int | float},
}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial in sweep.json.

    Attributes: trial: name of the trial, `t0000` and so on in order of creation. parameters: values from the search
        space, by dotted name. status: status of the trial; `stopped` if the scheduler ended it early. A trial that is
        `running` in a sweep that
            is not running was interrupted, and resumes with the sweep.
        reason: reason of any status but `finished`; while `running`, the reason why the previous attempt ended.
        step: steps of training done.
        steps: steps of its whole run, 0 while unknown.
        verdict: verdict on its stability; None before there is one.
        verdict_reason: reason of the verdict.
        scores: the newest scores, by name: ``{"value", "ci95", "n"}``.
        objective: value of the objective for the newest scores; None if it has none (see `objective`).
        full_scores: scores of a finalist, by the whole protocol of `evaluate`; like `scores`.
        full_objective: objective for the full scores; finalists rank by it, before all other trials.
        milestones: the milestones that it reached, ``{"step", "objective", "verdict", "scores": {name: value}}``.
        parent: the newest source checkpoint from which it continued, ``{"trial", "step", "digest"}``; None if it has
            none.
        attempts: number of times it was started.
        started: time of the first start, in seconds since the epoch.
        ended: time of its end, in seconds since the epoch.
        seconds: time that it ran, over all attempts.
    """

    trial: str
    parameters: Mapping[str, Any]
    status: TrialStatus = "waiting"
    reason: str = ""
    step: int = 0
    steps: int = 0
    verdict: str | None = None
    verdict_reason: str = ""
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objective: float | None = None
    full_scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    full_objective: float | None = None
    milestones: tuple[Mapping[str, Any], ...] = ()
    parent: Mapping[str, Any] | None = None
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0

    @property
    def directory(self) -> str:
        """Its run directory, relative to the sweep directory."""
        return f"trials/{self.trial}"

    @property
    def has_ended(self) -> bool:
        """Whether the trial has ended, and will not run again."""
        return self.status in ENDED

    @property
    def values(self) -> dict[str, float]:
        """The values of the newest scores; scores that are not numbers are left out."""
        pairs = ((name, score.get("value")) for name, score in self.scores.items())
        return {name: float(value) for name, value in pairs if isinstance(value, int | float)}

    def as_json(self) -> dict[str, Any]:
        """Return the entry of sweep.json."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        fields["parameters"] = {key: as_text(value) for key, value in self.parameters.items()}
        return {"trial": fields.pop("trial"), "directory": self.directory, **fields}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TrialRecord:
        """Parse an entry of sweep.json; unknown fields are ignored.

        Raises:
            TypeError: it is not a record.
        """
        if not isinstance(entry, dict):
            raise TypeError(f"a trial is {entry!r}")
        fields = {key: value for key, value in entry.items() if key in _KINDS}
        wrong = [key for key, value in fields.items() if not isinstance(value, _KINDS[key])]
        scores = [*fields.get("scores", {}).values(), *fields.get("full_scores", {}).values()] if not wrong else []
        if wrong or not all(isinstance(score, dict) for score in scores):
            raise TypeError(f"{wrong[0] if wrong else 'a score'} of trial {entry.get('trial')!r} is of a wrong type")
        if "parameters" in fields:
            known, given = settings_in(Config), modernised(Config, fields["parameters"])
            fields["parameters"] = {
                key: typed(Config, key, value) if key in known else value for key, value in given.items()
            }
        return cls(**fields | {"milestones": tuple(fields.get("milestones", ()))})


__all__ = ["ENDED", "TrialRecord", "TrialStatus"]
