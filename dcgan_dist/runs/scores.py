"""scores.json of a run directory: what its checkpoints are worth, by task.

``{task: [{"step", "method", "protocol", "checkpoint_digest", "metrics": {name: {"value", "ci95", "n", …}}, …}, …]}``,
where ci95 is [low, high]. A score replaces the one of the same task, step, method and protocol; whatever else is in
the file stays.
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

_KEY = {"step": None, "method": None, "protocol": None, "weights": "raw"}  # with what they are where they are left out

Entry = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number that was measured.

    Attributes:
        value: the number; NaN where it could not be computed. Accuracies and errors are in percent; precision, recall
            and coverage go from 0 to 1.
        ci95: lower and upper bound of its 95% interval; None where it has none.
        n: of how many images, or draws, it is.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True)
class Score:
    """An entry of scores.json: how a checkpoint, or a control, did in a task.

    Attributes:
        task: such as `rooms`, `cifar10` or `fidelity`.
        method: what was scored: the run's networks, or a control such as `random` or `pixels`.
        step: of the checkpoint; None for a control.
        protocol: how it was scored; scores of different protocols are not to be compared.
        metrics: by name.
        entry: all that the file says of it.
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
    """Return the scores of a run by task, {} where there are none.

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
            entries.sort(key=_place)  # their steps are numbers
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RunDirectoryError(f"{folder.at(SCORES_NAME)} is damaged ({error}): move it away") from error
    return scores


def add_scores(folder: Folder, task: str, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Put scores into a run's scores.json, which is replaced whole or not at all.

    Args:
        folder: of the run. Commands at the same time lose nothing, see `Folder.update`.
        task: of the scores.
        entries: the scores, each with `step` (None for a control), `method` and `protocol`.

    Returns:
        All scores by task, those of each ordered by step.

    Raises:
        ConfigError: an entry lacks one of these, or its metrics are none.
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
        scores[task] = sorted([*kept, *new.values()], key=_place)
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
    """Put each score into a run's scores.json as soon as it is there, and return all.

    Args:
        folder: of the run.
        task: of the scores.
        entries: the scores; one that was made before is the very object of `finished`, and is not written again.
        finished: scores that the file has.
        show: is given all of them at the end, also where they could not be written.
        say: told in a line which were there already.

    Raises:
        RunDirectoryError, StorageError: as `add_scores`, and whatever comes of making an entry.
    """
    made: list[Entry] = []
    there: list[str] = []
    failure: DcganDistError | None = None
    for entry in entries:
        if any(entry is other for other in finished):
            there.append(str(entry["method"]) if entry["step"] is None else f"step {entry['step']}")
        else:
            try:
                add_scores(folder, task, [entry])
            except DcganDistError as error:  # what was computed is worth showing, and maybe the next can be written
                failure = error
        made.append(entry)
    if there:
        say(f"scored before, from the same data and settings: {', '.join(there)} (--step N scores one again)")
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


def _place(entry: Entry) -> tuple[int, str, str]:
    step = entry.get("step")
    return (-1 if step is None else int(step), str(entry.get("method")), str(entry.get("protocol")))
