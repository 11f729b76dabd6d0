"""scores.json of a run directory: what its checkpoints are worth, by task.

``{task: [{"step", "method", "protocol", "checkpoint_digest", "metrics": {name: {"value", "ci95", "n", …}}, …}, …]}``,
where ci95 is [low, high]. A score replaces the one of the same task, step, method and protocol; whatever else is in
the file stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.results.storage import Mirror, parse_location, read_file, to_json, write_atomically

SCORES_NAME = "scores.json"
_KEY = ("step", "method", "protocol")

Entry = dict[str, Any]


def read_scores(location: str) -> dict[str, list[Entry]]:
    """Return the scores of a run by task, {} where there are none.

    Raises:
        RunDirectoryError: scores.json is damaged.
        StorageError: it cannot be read.
    """
    content = read_file(location, SCORES_NAME)
    if content is None:
        return {}
    try:
        scores = json.loads(content)
        if not isinstance(scores, dict) or not all(isinstance(entries, list) for entries in scores.values()):
            raise ValueError("it is no list of scores by task")
    except ValueError as error:
        raise RunDirectoryError(f"{location}/{SCORES_NAME} is damaged ({error}): move it away") from error
    return scores


def add_scores(location: str, task: str, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Put scores into a run's scores.json, which is replaced whole or not at all.

    Args:
        location: folder or URL of the run. Commands on one host wait for each other; on object storage the last wins.
        task: of the scores.
        entries: the scores, each with `step` (None for a control), `method` and `protocol`.

    Returns:
        All scores by task, those of each ordered by step.

    Raises:
        RunDirectoryError: scores.json is damaged.
        StorageError: it cannot be written.
    """
    place = parse_location(location)
    with _alone(place):
        scores = read_scores(location)
        new = {_key(entry): entry for entry in entries}
        kept = [entry for entry in scores.get(task, []) if _key(entry) not in new]
        # Controls, which have no step, come first.
        scores[task] = sorted([*kept, *new.values()], key=_place)
        content = "{\n" + ",\n".join(
            f" {json.dumps(name)}: [\n" + ",\n".join(f"  {to_json(entry)}" for entry in of_task) + "\n ]"
            for name, of_task in scores.items()
        )
        data = (content + "\n}\n").encode()
        if isinstance(place, Path):
            write_atomically(place / SCORES_NAME, data)
        else:
            Mirror(place).write(SCORES_NAME, data)
    return scores


def add_each(
    location: str, task: str, entries: Iterable[Entry], finished: Sequence[Entry], say: Callable[[str], None]
) -> list[Entry]:
    """Put each score into a run's scores.json as soon as it is there, and return all.

    Args:
        location: folder or URL of the run.
        task: of the scores.
        entries: the scores; one that was made before is the very object of `finished`, and is not written again.
        finished: scores that the file has.
        say: told in a line which were there already.

    Raises:
        RunDirectoryError, StorageError: as `add_scores`, and whatever comes of making an entry.
    """
    made: list[Entry] = []
    there: list[str] = []
    for entry in entries:
        if any(entry is other for other in finished):
            there.append(str(entry["method"]) if entry["step"] is None else f"step {entry['step']}")
        else:
            add_scores(location, task, [entry])
        made.append(entry)
    if there:
        say(f"scored before, from the same data and settings: {', '.join(there)} (--step N scores one again)")
    return made


def _key(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in _KEY)


def _place(entry: Entry) -> tuple[int, str, str]:
    step = entry.get("step")
    return (-1 if step is None else int(step), str(entry.get("method")), str(entry.get("protocol")))


def _alone(place: Path | str) -> AbstractContextManager[Any]:
    return FileLock(place / f".{SCORES_NAME}.lock") if isinstance(place, Path) else nullcontext()
