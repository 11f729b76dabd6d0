"""What is known of one trial of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dcgan_dist.config import Config
from dcgan_dist.settings import as_text, modernised, settings_in, typed

TrialStatus = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED = ("finished", "stopped", "diverged", "failed")


# What the fields of a record are in JSON.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("trial", "status", "reason", "verdict_reason"), str),
    **dict.fromkeys(("step", "steps", "attempts"), int),
    **dict.fromkeys(("objective", "full_objective", "started", "ended"), int | float | None),
    **dict.fromkeys(("parameters", "scores", "full_scores"), dict),
    **{"verdict": str | None, "milestones": list | tuple, "parent": dict | None, "seconds": int | float},
}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial as sweep.json has it.

    Attributes:
        trial: its name, `t0000` and so on in order of creation.
        parameters: what the space gave it, by dotted name.
        status: `stopped` is what the scheduler ended early. A trial that stands at `running` in a sweep that is not
            running was interrupted, and goes on when the sweep does.
        reason: of a status that is not `finished`; while `running`, why the attempt before ended.
        step: steps of training done.
        steps: steps of its whole run, 0 while unknown.
        verdict: of its stability; None before there is one.
        verdict_reason: why.
        scores: the newest, by name: ``{"value", "ci95", "n"}``.
        objective: what is maximised, of the newest scores; None where it has none (see `objective`).
        full_scores: of a finalist, by the whole protocol of `evaluate`; like `scores`.
        full_objective: of those; finalists rank by it, before all others.
        milestones: of each one that was reached, ``{"step", "objective", "verdict", "scores": {name: value}}``.
        parent: of a trial that went on from a copy of another's checkpoint, ``{"trial", "step", "digest"}`` of the
            newest such copy.
        attempts: how often it was started.
        started: when it was first, in seconds since the epoch.
        ended: when it ended.
        seconds: for how long it ran, over all attempts.
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
        """Its run directory, below that of the sweep."""
        return f"trials/{self.trial}"

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to do for it."""
        return self.status in ENDED

    @property
    def values(self) -> dict[str, float]:
        """The newest scores without their intervals; those that are no numbers left out."""
        pairs = ((name, score.get("value")) for name, score in self.scores.items())
        return {name: float(value) for name, value in pairs if isinstance(value, int | float)}

    def as_json(self) -> dict[str, Any]:
        """Return the record as sweep.json has it."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        fields["parameters"] = {key: as_text(value) for key, value in self.parameters.items()}
        return {"trial": fields.pop("trial"), "directory": self.directory, **fields}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TrialRecord:
        """Read a record of sweep.json; what it does not know it leaves out.

        Raises:
            TypeError: it is no record.
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
