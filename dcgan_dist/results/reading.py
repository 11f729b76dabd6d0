"""Read the files of one run directory; whatever is wrong with them is returned as a list of problems, not raised."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import yaml

from dcgan_dist.config import Config
from dcgan_dist.errors import StorageError
from dcgan_dist.results.stability import SIGNALS, judge, judge_columns
from dcgan_dist.results.walking import Scan, names_in, read_bytes
from dcgan_dist.runs.checkpoints import RAW
from dcgan_dist.runs.names import FIGURES, SAMPLES
from dcgan_dist.runs.run import Run
from dcgan_dist.settings import modernised

Curve = npt.NDArray[np.float64]

COLUMNS = 200
"""Metrics of a run that are kept, at most."""
SETTINGS = 2000
"""Settings of a run that are kept, at most."""
MOST_FIGURES = 40
"""Figures of a run that are kept, at most."""

_GRID = re.compile(rf"({RAW})?step-(\d{{1,18}})\.png")
# A value of these characters means the same in YAML alone and after its key; any other line needs a YAML parser.
_SETTING = re.compile(
    r"( *)([A-Za-z_][A-Za-z0-9_]*):(?: ([A-Za-z0-9_./+~][A-Za-z0-9_./+~:=@-]*|-[0-9.]+(?:e[+-]?[0-9]+)?"
    r"|'[0-9.,]*'))?"  # numbers in quotes
)


@dataclass(frozen=True)
class FigureFile:
    """A figure of `explore`.

    Attributes:
        name: name of its files.
        title: what it shows.
        finding: one sentence with the result.
        step: step of its checkpoint; None if its JSON does not say.
    """

    name: str
    title: str
    finding: str
    step: int | None


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory.

    Attributes:
        settings: settings of config.yaml by dotted name.
        environment: `environment` of config.yaml: versions, host and the like.
        status: status.json, {} if there is none.
        scores: scores.json, {} if there is none.
        names: names of the metrics.
        values: values of the metrics, (names, rows), by increasing step; NaN for null.
        verdict: name, reason and score of `stability.judge`.
        parent: the newest line of metrics.jsonl that names a `parent`, {} if there is none.
        samples: (step, file name) of each sample grid, by step.
        raw_samples: the same for grids of the raw weights, if the other grids are of averaged weights.
        has_real: whether there is a grid of real images.
        figures: figures of `explore`, by name.
        problems: what could not be read, one line each.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    values: Curve = field(default_factory=lambda: np.empty((0, 0)))
    verdict: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] = field(default_factory=dict)
    samples: tuple[tuple[int, str], ...] = ()
    raw_samples: tuple[tuple[int, str], ...] = ()
    has_real: bool = False
    figures: tuple[FigureFile, ...] = ()
    problems: tuple[str, ...] = ()


def read_run(scan: Scan) -> RunFiles:
    """Read a run directory. Missing or damaged files do not raise an error; see `RunFiles.problems`."""
    problems: list[str] = []
    run = Run(scan.directory, patience=1)

    def content(name: str) -> bytes | None:
        if scan.files is not None and name not in scan.files:
            return None
        try:
            return read_bytes(run.folder, name)
        except StorageError as error:
            problems.append(one_line(str(error)).replace(f"{scan.directory}/", ""))
            return None

    settings, environment = parse_config(content("config.yaml"), problems)
    status = parse_object(content("status.json"), "status.json", problems)
    rows = parse_rows(content("metrics.jsonl"), problems)
    names, values = columns_of(rows, problems)
    scores = parse_object(content("scores.json"), "scores.json", problems)
    grids = names_in(scan, SAMPLES)
    steps: dict[bool, list[tuple[int, str]]] = {False: [], True: []}  # True: of the raw weights
    for match in filter(None, map(_GRID.fullmatch, grids)):
        steps[match[1] is not None].append((int(match[2]), match[0]))
    return RunFiles(
        settings=settings,
        environment=environment,
        status=status,
        scores=scores,
        names=names,
        values=values,
        verdict=_verdict(rows, names, values, status),
        parent=next((row for row in reversed(rows) if row.get("parent") is not None), {}),
        samples=tuple(sorted(steps[False])),
        raw_samples=tuple(sorted(steps[True])),
        has_real="real.png" in grids,
        figures=_figures(scan, content, problems),
        problems=tuple(problems),
    )


def _figures(scan: Scan, content: Callable[[str], bytes | None], problems: list[str]) -> tuple[FigureFile, ...]:
    """Return the figures that have both a PNG and a JSON."""
    files = names_in(scan, FIGURES)
    if not files:
        return ()
    names = [name.removesuffix(".json") for name in files if name.endswith(".json") and not name.startswith(".")]
    figures = []
    for name in [name for name in names if f"{name}.png" in files][:MOST_FIGURES]:
        about = parse_object(content(f"{FIGURES}/{name}.json"), f"{FIGURES}/{name}.json", problems)
        title, finding, step = about.get("title"), about.get("finding"), about.get("step")
        figures.append(
            FigureFile(
                clean(name),
                one_line(title) if isinstance(title, str) else clean(name),
                one_line(finding) if isinstance(finding, str) else "",
                step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63 else None,
            )
        )
    return tuple(figures)


def one_line(text: str) -> str:
    """Return a text as one line of valid UTF-8; a lone surrogate becomes a question mark."""
    return " ".join(clean(text).split())


def clean(value: Any) -> Any:
    """Return a value read from JSON or YAML with all texts valid in UTF-8, and all keys as texts."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)  # YAML has dates


def load_json(content: bytes) -> Any:
    """Parse JSON; NaN and infinities, which the standard does not have, are accepted.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return orjson.loads(content)
    except ValueError:
        try:
            return clean(json.loads(content))
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error


def parse_object(content: bytes | None, name: str, problems: list[str]) -> dict[str, Any]:
    """Parse a JSON object; return {} if it is missing, or damaged, which is added to `problems`."""
    if content is None:
        return {}
    try:
        value = load_json(content)
    except ValueError:
        problems.append(f"{name} is cut or damaged: it is no JSON" if content.strip() else f"{name} is empty")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} holds no JSON object")
        return {}
    return value


# Settings


class _WithoutAliases(yaml.SafeLoader):
    """A loader that refuses aliases: no run writes them, and a few lines of them can expand to billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no run writes")
        return super().compose_node(parent, index)


def parse_config(content: bytes | None, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of config.yaml by dotted name, and its `environment`."""
    if content is None:
        return {}, {}
    text = content.decode("utf-8", "replace")
    try:
        tree = parse_plain_yaml(text)
        if tree is None:
            tree = clean(yaml.load(text, _WithoutAliases))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"config.yaml is cut or damaged: {one_line(str(error))[:200]}")
        return {}, {}
    if not isinstance(tree, dict) or not tree:
        problems.append("config.yaml holds no settings" if text.strip() else "config.yaml is empty")
        return {}, {}
    environment = tree.pop("environment", None)
    flat: dict[str, Any] = {}
    _flatten(tree, "", flat)
    if len(flat) >= SETTINGS:
        problems.append(f"config.yaml has more than {SETTINGS:,} settings: the first of them are shown")
    return modernised(Config, flat), environment if isinstance(environment, dict) else {}


def _flatten(tree: Mapping[str, Any], prefix: str, flat: dict[str, Any]) -> None:
    # The `space` of a sweep is a single setting although it is a mapping; all other mappings are groups.
    for key, value in tree.items():
        if len(flat) >= SETTINGS:
            return
        if isinstance(value, dict) and value and prefix + key != "space":
            _flatten(value, f"{prefix}{key}.", flat)
        else:
            flat[prefix + key] = value


def parse_plain_yaml(text: str) -> dict[str, Any] | None:
    """Parse YAML as runs write it, nested mappings with one plain value in each line; return None for any other YAML.

    A YAML parser takes milliseconds for a config.yaml, and in ten thousand runs most lines are equal, so parsed lines
    are cached.
    """
    tree: dict[str, Any] = {}
    groups: list[tuple[int, dict[str, Any]]] = [(0, tree)]
    waiting: tuple[dict[str, Any], str] | None = None  # group and key whose value may follow in indented lines
    for line in text.split("\n"):
        if not line:
            continue
        setting = _plain_line(line)
        if setting is None:
            return None
        indentation, key, value = setting
        if waiting is not None and indentation > groups[-1][0]:
            parent, name = waiting
            parent[name] = {}
            groups.append((indentation, parent[name]))
        while groups and groups[-1][0] > indentation:
            groups.pop()
        if not groups or groups[-1][0] != indentation:
            return None
        group = groups[-1][1]
        waiting = (group, key) if value is _NO_VALUE else None
        group[key] = None if value is _NO_VALUE else value
    return tree


_NO_VALUE = object()
# Words that YAML reads as a number or as a text in any context; a YAML parser would take a thousand times as long.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+(?:e[+-][0-9]+)?)?")
_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*")
_NO_TEXTS = frozenset({"yes", "no", "true", "false", "on", "off", "null"})


@lru_cache(maxsize=65536)
def _plain_line(line: str) -> tuple[int, str, Any] | None:
    """Return the indentation, key and value of a line; None if it needs a YAML parser."""
    match = _SETTING.fullmatch(line)
    if match is None:
        return None
    spaces, key, word = match.groups()
    try:
        value = _NO_VALUE if word is None else _plain_value(word)
        is_plain = isinstance(_plain_value(key), str) and not isinstance(value, dict | list | set)
    except (yaml.YAMLError, ValueError):
        return None
    return (len(spaces), key, value) if is_plain else None


def _plain_value(word: str) -> Any:
    number = _NUMBER.fullmatch(word)
    if number is not None:
        return float(word) if number[1] else int(word)
    if _TEXT.fullmatch(word) and word.lower() not in _NO_TEXTS:
        return word
    return clean(yaml.load(word, yaml.SafeLoader))


# Metrics


def columns_of(rows: list[dict[str, Any]], problems: list[str]) -> tuple[tuple[str, ...], Curve]:
    """Return the names of all numbers in rows of metrics, and the numbers, (names, rows), by increasing step."""
    names, values = _columns(rows, problems)
    if "step" not in names:
        if rows:
            problems.append("metrics.jsonl has no steps: its curves are left out")
        return (), np.empty((0, 0))
    values, about_steps = _by_increasing_step(names.index("step"), values)
    problems.extend(about_steps)
    return tuple(names), values


def _verdict(
    rows: list[dict[str, Any]], names: tuple[str, ...], values: Curve, status: Mapping[str, Any]
) -> dict[str, Any]:
    diverged = status.get("status") == "diverged"
    with np.errstate(all="ignore"):
        columns = dict(zip(names, values, strict=True))
        losses = [columns[name] for name in ("loss_d", "loss_g") if name in columns]
        if len(losses) == 2 and len(losses[0]) == len(rows) and np.isfinite(losses).all():
            # Every line has both losses, so columns give the same verdict as lines, and faster.
            unknown = np.full(len(rows), np.nan)
            verdict = judge_columns({name: columns.get(name, unknown) for name in SIGNALS}, diverged=diverged)
        else:
            try:
                verdict = judge(rows, diverged=diverged)
            except (ValueError, TypeError, KeyError, OverflowError):  # values that are not numbers
                verdict = judge([numbers_of(row) for row in rows], diverged=diverged)
    return {"name": verdict.name, "reason": verdict.reason, "score": _none_if_nan(verdict.score)}


def numbers_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers and nulls of a line of metrics, which are all that a verdict uses."""
    kept = {name: _number(value) for name, value in row.items() if _is_number(value)}
    return {"step": 0.0, **kept, **{name: None for name, value in row.items() if value is None}}


def _none_if_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None


def parse_rows(content: bytes | None, problems: list[str]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; lines that are cut or damaged are left out, and added to `problems`."""
    if content is None:
        return []
    whole = content.removesuffix(b"\n")
    try:
        # Parsing all lines at once is faster. Two cut lines may form a valid one together: then the count differs.
        rows = orjson.loads(b"[" + whole.replace(b"\n", b",") + b"]")
        if len(rows) == whole.count(b"\n") + 1 and set(map(type, rows)) == {dict}:
            return list(rows)
    except ValueError:
        pass
    rows = []
    damaged = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(number)
    if damaged:
        last = content.count(b"\n") + 1
        first = f"line {damaged[0]:,} is {'cut' if damaged[0] == last else 'damaged'}"
        problems.append(f"metrics.jsonl {first}" + (f", and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""))
    return rows


def _columns(rows: list[dict[str, Any]], problems: list[str]) -> tuple[list[str], Curve]:
    """Return the names of all numbers in the rows, and the numbers, (names, rows)."""
    if not rows:
        return [], np.empty((0, 0))
    names = list(rows[0])
    if 1 < len(names) <= COLUMNS and set(map(len, rows)) == {len(names)}:
        try:
            values = np.array(list(map(itemgetter(*names), rows)), dtype=np.float64)
            return names, np.ascontiguousarray(values.T)
        except (KeyError, ValueError, TypeError, OverflowError):
            pass  # rows of different kinds, or values that are not numbers: the slower way below
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value)))
    if len(names) > COLUMNS:
        problems.append(f"metrics.jsonl has {len(names):,} metrics: the first {COLUMNS} are shown")
        names = names[:COLUMNS]
    return names, np.array([[_number(row.get(name)) for row in rows] for name in names]).reshape(len(names), len(rows))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _by_increasing_step(row: int, values: Curve) -> tuple[Curve, list[str]]:
    """Sort by step; if several rows have the same step, the last number of each metric counts."""
    steps = values[row]
    if steps.size == 0 or (np.isfinite(steps).all() and (steps[1:] > steps[:-1]).all()):
        return values, []
    problems = []
    usable = np.isfinite(steps)
    if not usable.all():
        problems.append(f"metrics.jsonl has {int((~usable).sum()):,} lines without a step: they are left out")
    values = values[:, usable]
    kept, targets = np.unique(values[row], return_inverse=True)
    merged = np.full((len(values), len(kept)), np.nan)
    for number, target in enumerate(targets):
        column = values[:, number]
        given = ~np.isnan(column)
        merged[given, target] = column[given]
    return merged, problems
