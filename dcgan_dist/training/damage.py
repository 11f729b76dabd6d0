"""Damaged records met in training: collected from all ranks, always counted, each kind printed a few times only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from dcgan_dist.data.manifest import LeftOut
from dcgan_dist.data.stream import Batch
from dcgan_dist.distributed import World
from dcgan_dist.runs.documents import DamageEntry, DamageState

_MOST_OFFSETS = 8  # listed in one finding
_MOST_FINDINGS = 50  # listed in a row of metrics, in a checkpoint, in status.json
_MOST_LINES = 5  # printed with one row of metrics
_MOST_PRINTED = 3  # how often damage of one kind to one shard is printed


@dataclass(frozen=True)
class Finding:
    """Damage of one kind to one shard: its first offsets, and how many images it cost (0 for a bad header)."""

    shard: str
    offset: int
    reason: str
    lost: int
    offsets: tuple[int, ...]

    @classmethod
    def from_json(cls, content: DamageEntry) -> Finding:
        """Read the result of `to_json`."""
        offsets = tuple(content.get("offsets", [content["offset"]]))
        return cls(content["shard"], content["offset"], content["reason"], content["lost"], offsets)

    def to_json(self) -> DamageEntry:
        """Return the entry for metrics.jsonl; `offsets` only if there are several."""
        entry: DamageEntry = {"shard": self.shard, "offset": self.offset, "reason": self.reason, "lost": self.lost}
        if len(self.offsets) > 1:
            entry["offsets"] = list(self.offsets)
        return entry

    def __str__(self) -> str:
        """Return the finding as printed."""
        return f"shard {self.shard!r} offset {self.offset} ({self.reason})"


class Findings:
    """Findings by shard and kind; losses of the same kind add up."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self._by_kind: dict[tuple[str, str], Finding] = {}
        for finding in findings:
            self.add(finding)

    def __len__(self) -> int:
        return len(self._by_kind)

    def add(self, new: Finding) -> None:
        """Add a finding."""
        key = (new.shard, new.reason)
        if known := self._by_kind.get(key):
            offsets = tuple(sorted({*known.offsets, *new.offsets})[:_MOST_OFFSETS])
            new = replace(known, offset=offsets[0], lost=known.lost + new.lost, offsets=offsets)
        self._by_kind[key] = new

    def worst(self) -> list[Finding]:
        """Return all findings, most images lost first."""
        return sorted(self._by_kind.values(), key=lambda finding: (-finding.lost, finding.shard, finding.offset))

    def to_json(self) -> list[DamageEntry]:
        """Return the worst findings, 50 at most."""
        return [finding.to_json() for finding in self.worst()[:_MOST_FINDINGS]]


class DamageLog:
    """The damage that a run has met: all of it on the leader; on each rank what it has not sent to the leader yet."""

    def __init__(self) -> None:
        self.found = Findings()  # by all ranks since the run began
        self.unlogged = Findings()  # those of them that are in no row of metrics yet
        self._here = Findings()  # by this rank, not sent to the leader yet
        self._flaws_here: set[tuple[str, int, str]] = set()
        self._printed: dict[tuple[str, str], int] = {}

    def note(self, batches: Sequence[Batch]) -> int:
        """Add the damage in a step's batches; return how many of this rank's images are missing."""
        lost = 0
        for batch in batches:
            lost += len(batch.damage)
            for missing in batch.damage:
                self._here.add(Finding(missing.shard, missing.offset, missing.reason, 1, (missing.offset,)))
            for flaw in batch.flaws:
                key = (flaw.shard, flaw.offset, flaw.reason)
                if key not in self._flaws_here:  # each opening of a shard reports it again
                    self._flaws_here.add(key)
                    self._here.add(Finding(flaw.shard, flaw.offset, flaw.reason, 0, (flaw.offset,)))
        return lost

    def collect(self, world: World) -> None:
        """Send the leader what each rank has found since the last call; every rank must call it."""
        if not int(world.sum_(torch.tensor([len(self._here)], device=world.device))):
            return
        mine = json.dumps([finding.to_json() for finding in self._here.worst()])
        self._here = Findings()
        for text in world.gather_texts(mine):
            for content in json.loads(text):
                finding = Finding.from_json(content)
                self.found.add(finding)
                self.unlogged.add(finding)

    def take_unlogged(self) -> tuple[list[DamageEntry], list[str]]:
        """Return the damage for the next row of metrics, and the lines to print of it."""
        new = self.unlogged.worst()
        content = self.unlogged.to_json()
        self.unlogged = Findings()
        lines: list[str] = []
        for finding in new:
            key = (finding.shard, finding.reason)
            self._printed[key] = self._printed.get(key, 0) + 1
            if self._printed[key] <= _MOST_PRINTED:
                cost = f"{finding.lost:,} image{'s' * (finding.lost != 1)} lost" if finding.lost else "no image lost"
                lines.append(f"damage: {finding}, {cost}")
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"damage: and {len(lines) - _MOST_LINES} more; details in metrics.jsonl"]
        return content, lines

    def summary(self, lost: int) -> str:
        """Return the line to print at the end of a run that lost `lost` images; empty if there was no damage."""
        findings = self.found.worst()
        if not findings:
            return f"{lost:,} images lost; details in metrics.jsonl" if lost else ""
        what = f"{lost:,} image{'s' * (lost != 1)} lost" if lost else "damage found, no image lost"
        more = f", and {len(findings) - 1:,} more" if len(findings) > 1 else ""
        return f"{what}: {findings[0]}{more}; details in metrics.jsonl"

    def shards(self) -> str:
        """Return the shards that lost most images, as text."""
        lost: dict[str, int] = {}
        for finding in self.found.worst():
            if finding.lost:
                lost[finding.shard] = lost.get(finding.shard, 0) + finding.lost
        worst = sorted(lost.items(), key=lambda entry: -entry[1])
        named = ", ".join(f"{shard!r} {count:,}" for shard, count in worst[:3])
        return named + (f" and {len(worst) - 3:,} more" if len(worst) > 3 else "")

    def state(self) -> DamageState:
        """Return the state for a checkpoint."""
        return {"found": self.found.to_json(), "unlogged": self.unlogged.to_json()}

    def restore(self, state: DamageState) -> None:
        """Restore the state of a checkpoint."""
        self.found = Findings(map(Finding.from_json, state.get("found", [])))
        self.unlogged = Findings(map(Finding.from_json, state.get("unlogged", [])))


def lines_of_left_out(damage: Sequence[LeftOut]) -> list[str]:
    """Return what to print at the start of a run of the damage that a manifest lists: a line each, five at most."""
    lines = [
        f"damage: shard {each['shard']!r} offset {each['offset']} ({each['reason']}), {each['bytes']:,} bytes left out "
        "of the data"
        for each in damage[:_MOST_LINES]
    ]
    if len(damage) > _MOST_LINES:
        lines.append(f"damage: and {len(damage) - _MOST_LINES:,} more places left out of the data")
    return lines


def summary_of_left_out(damage: Sequence[LeftOut]) -> str:
    """Return what to print of it at the end; empty where there is none."""
    if not damage:
        return ""
    more = f", and {len(damage) - 1:,} more" if len(damage) > 1 else ""
    left_out = sum(each["bytes"] for each in damage)
    first = f"shard {damage[0]['shard']!r} offset {damage[0]['offset']}"
    return f"{left_out:,} damaged bytes left out from the start: {first}{more}"
