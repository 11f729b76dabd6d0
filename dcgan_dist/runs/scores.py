"""scores.json of a run directory: the scores of its checkpoints, by task.

``{task: [{"step", "method", "protocol", "checkpoint_digest", "metrics": {name: {"value", "ci95", "n", …}}, …}, …]}``,
where ci95 is [low, high]. A new score replaces the one of the same task, step, method, protocol and weights; all other
content of the file is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcgan_dist.errors import ConfigError, DcganDistError, RunDirectoryError
from dcgan_dist.runs.names import SCORES_NAME
from dcgan_dist.storage.files import to_json
from dcgan_dist.storage.folder import Folder

_KEY = {"step": None, "method": None, "protocol": None, "weights": "raw"}  # the key of a score, with defaults

Entry = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A measured number.

    Attributes:
        value: the number; NaN if it could not be computed. Accuracies and errors are in percent; precision, recall and
            coverage are from 0 to 1.
        ci95: lower and upper bound of its 95% confidence interval; None if it has none.
        n: the number of images, or of draws, that it was computed from.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True)
class Score:
    """An entry of scores.json: the score of a checkpoint, or of a control, in a task.

    Attributes:
        task: such as `rooms`, `cifar10` or `fidelity`.
        method: what was scored: the run's networks, or a control such as `random` or `pixels`.
        step: of the checkpoint; None for a control.
        protocol: how it was scored; scores of different protocols cannot be compared.
        metrics: by name.
        entry: the whole entry as it is in the file.
    """

    task: str
    method: str
    step: int | None
    protocol: str
    metrics: dict[str, Metric]
    entry: Entry = field(repr=False, compare=False)

    @classmethod
    def of(cls, task: str, entry: Entry) -> Score:
        """Return the score that an entry describes."""
        metrics = {}
        for name, about in entry.get("metrics", {}).items():
            value, interval, n = about.get("value"), about.get("ci95"), about.get("n")
            metrics[name] = Metric(
                math.nan if value is None else float(value), None if interval is None else tuple(interval), n
            )
        return cls(task, str(entry.get("method")), entry.get("step"), str(entry.get("protocol")), metrics, entry)


def read_scores(folder: Folder) -> dict[str, list[Entry]]:
    """Return the scores of a run by task, {} if there are none.

    Raises:
        RunDirectoryError: scores.json is damaged.
        StorageError: it cannot be read.
    """
    return _parse(folder, folder.get(SCORES_NAME))


def _parse(folder: Folder, content: bytes | None) -> dict[str, list[Entry]]:
    if content is None:
        return {}
    try:
        scores = json.loads(content)
        if not isinstance(scores, dict) or not all(isinstance(entries, list) for entries in scores.values()):
            raise ValueError("it is no list of scores by task")
        if not all(isinstance(entry, dict) for entries in scores.values() for entry in entries):
            raise ValueError("a score is no object")
        for entries in scores.values():
            entries.sort(key=_order)  # raises if a step is not a number
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RunDirectoryError(f"{folder.at(SCORES_NAME)} is damaged ({error}): move it away") from error
    return scores


def add_scores(folder: Folder, task: str, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Add scores to a run's scores.json, which is replaced atomically.

    Args:
        folder: of the run. Concurrent commands lose no score, see `Folder.update`.
        task: of the scores.
        entries: the scores, each with `step` (None for a control), `method` and `protocol`.

    Returns:
        All scores by task, each task's ordered by step.

    Raises:
        ConfigError: an entry lacks one of these, or its metrics are malformed.
        RunDirectoryError: scores.json is damaged.
        StorageError: it cannot be written.
    """
    for entry in entries:
        _check(entry)
    new = {_key(entry): entry for entry in entries}
    scores: dict[str, list[Entry]] = {}

    def merged(content: bytes | None) -> bytes:
        nonlocal scores
        scores = _parse(folder, content)
        kept = [entry for entry in scores.get(task, []) if _key(entry) not in new]
        # Controls, which have no step, come first.
        scores[task] = sorted([*kept, *new.values()], key=_order)
        text = "{\n" + ",\n".join(
            f" {json.dumps(name)}: [\n" + ",\n".join(f"  {to_json(entry)}" for entry in of_task) + "\n ]"
            for name, of_task in scores.items()
        )
        return (text + "\n}\n").encode()

    folder.update(SCORES_NAME, merged)
    return scores


def add_each(
    folder: Folder,
    task: str,
    entries: Iterable[Entry],
    finished: Sequence[Entry],
    show: Callable[[list[Entry]], None],
    say: Callable[[str], None],
) -> list[Entry]:
    """Add each score to a run's scores.json as soon as it is computed, and return all.

    Args:
        folder: of the run.
        task: of the scores.
        entries: the scores; an entry that is the same object as one of `finished` is not written again.
        finished: scores that the file already has.
        show: called with all scores at the end, even if some could not be written.
        say: called with a line that names the scores of `finished`, if there are any.

    Raises:
        RunDirectoryError, StorageError: as `add_scores`, and the errors of computing an entry.
    """
    made: list[Entry] = []
    scored_before: list[str] = []
    failure: DcganDistError | None = None
    for entry in entries:
        if any(entry is other for other in finished):
            scored_before.append(str(entry["method"]) if entry["step"] is None else f"step {entry['step']}")
        else:
            try:
                add_scores(folder, task, [entry])
            except DcganDistError as error:  # raised at the end: first show all, and try to write the next
                failure = error
        made.append(entry)
    if scored_before:
        say(f"scored before, from the same data and settings: {', '.join(scored_before)} (--step N scores one again)")
    show(made)
    if failure is not None:
        raise failure
    return made


def _check(entry: Entry) -> None:
    try:
        has_names = isinstance(entry["method"], str) and isinstance(entry["protocol"], str)
        has_values = all("value" in about for about in entry["metrics"].values())
    except (AttributeError, KeyError, TypeError):
        has_names = has_values = False
    if not (has_names and has_values):
        raise ConfigError(
            f"the score is {entry!r:.200}: give step, method, protocol, and metrics such as "
            "{'accuracy': {'value': 90.0, 'ci95': [88.0, 92.0], 'n': 500}}"
        )


def _key(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry.get(name, default) for name, default in _KEY.items())


def _order(entry: Entry) -> tuple[int, str, str]:
    step = entry.get("step")
    return (-1 if step is None else int(step), str(entry.get("method")), str(entry.get("protocol")))
