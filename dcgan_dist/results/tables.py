"""The tables of a collection: trials.csv and trials.parquet (a row for each trial), metrics.parquet (one per log line).

docs/report.md lists the columns and their meaning.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dcgan_dist.config import Config, flatten
from dcgan_dist.results.aggregate import Collection, Score, Trial, text
from dcgan_dist.settings import kinds_of, settings_in
from dcgan_dist.storage.files import temporary_for, writing

TRIALS_CSV = "trials.csv"
TRIALS_PARQUET = "trials.parquet"
METRICS_PARQUET = "metrics.parquet"

WHOLE_METRICS = ("step", "images_seen", "images_lost", "world_size")
"""Metrics that are integers."""

_ROWS = 2000  # trials in one row group of a parquet file
# Characters at which a spreadsheet begins to read a formula.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are wide forms of the first

Table = dict[str, tuple[pa.DataType, list[Any]]]
"""Type and values of each column, by name."""

_ABOUT: dict[str, tuple[pa.DataType, Callable[[Trial], Any]]] = {
    "trial": (pa.string(), lambda trial: trial.key),
    "sweep": (pa.string(), lambda trial: trial.sweep),
    "directory": (pa.string(), lambda trial: trial.directory),
    "status": (pa.string(), lambda trial: trial.status),
    "reason": (pa.string(), lambda trial: trial.reason),
    "verdict": (pa.string(), lambda trial: trial.verdict.name),
    "verdict_reason": (pa.string(), lambda trial: trial.verdict.reason),
    "objective": (pa.float64(), lambda trial: trial.objective),
    "parameters": (pa.string(), lambda trial: " ".join(trial.parameters)),
    "step": (pa.int64(), lambda trial: trial.step),
    "steps": (pa.int64(), lambda trial: trial.steps),
    "images_seen": (pa.int64(), lambda trial: trial.images_seen),
    "seconds": (pa.float64(), lambda trial: trial.seconds),
    "images_per_s": (pa.float64(), lambda trial: trial.throughput),
    "world_size": (pa.int64(), lambda trial: trial.world_size),
    "device": (pa.string(), lambda trial: trial.device),
    "host": (pa.string(), lambda trial: trial.host),
    "parent": (pa.string(), lambda trial: trial.parent.trial if trial.parent else None),
    "parent_step": (pa.int64(), lambda trial: trial.parent.step if trial.parent else None),
    "grids": (pa.int64(), lambda trial: len(trial.samples)),
    "command": (pa.string(), lambda trial: trial.command),
    "problems": (pa.string(), lambda trial: "; ".join(trial.problems)),
}

_OF_SCORE: dict[str, tuple[pa.DataType, Callable[[Score], Any]]] = {
    "": (pa.float64(), lambda score: score.value),
    "_low": (pa.float64(), lambda score: score.low),
    "_high": (pa.float64(), lambda score: score.high),
    "_n": (pa.int64(), lambda score: score.n),
    "_step": (pa.int64(), lambda score: score.step),
    "_protocol": (pa.string(), lambda score: score.protocol),
}


def trial_table(collection: Collection) -> Table:
    """Return the table of all trials, one row for each, with its columns in a stable order."""
    trials = collection.trials
    table: Table = {name: (kind, [value(trial) for trial in trials]) for name, (kind, value) in _ABOUT.items()}
    for key in _names(flatten(Config()), (trial.settings for trial in trials), (trial.parameters for trial in trials)):
        name = key if key not in _ABOUT and not key.startswith(("final.", "best.", "score.")) else f"setting.{key}"
        table[name] = (_kind_of_setting(key), [trial.settings.get(key, trial.parameters.get(key)) for trial in trials])
    for name in _names(trial.final for trial in trials):
        kind = pa.int64() if name in WHOLE_METRICS else pa.float64()
        table[f"final.{name}"] = (kind, [_fit(kind, trial.final.get(name)) for trial in trials])
    for name in _names(trial.best for trial in trials):
        table[f"best.{name}"] = (pa.float64(), [trial.best.get(name) for trial in trials])
    for name in sorted(_names(trial.scores for trial in trials)):
        scores = [trial.scores.get(name) for trial in trials]
        for end, (kind, value) in _OF_SCORE.items():
            table[f"score.{name}{end}"] = (kind, [None if score is None else value(score) for score in scores])
    return table


def _names(*sources: Any) -> list[str]:
    """Return the keys of all mappings, in the order of their first occurrence."""
    names: dict[str, None] = {}
    for source in sources:
        for mapping in [source] if isinstance(source, Mapping) else source:
            names.update(dict.fromkeys(mapping))
    return list(names)


@cache
def _kind_of_setting(key: str) -> pa.DataType:
    """Return the declared type of a setting; text for an unknown one."""
    known = settings_in(Config)
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return kinds.get(kinds_of(known[key].hint)[0], pa.string()) if key in known else pa.string()


# Cells


def csv_cell(value: Any) -> str:
    """Return a value as text: "" for null and NaN, and a ' before a text that a spreadsheet would read as a formula."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    word = text(value)
    return f"'{word}" if word.startswith(_FORMULA) else word


def _fit(kind: pa.DataType, value: Any) -> Any:
    """Return a value converted to the type of a column, None if that is not possible."""
    if value is None or pa.types.is_string(kind):
        return None if value is None else text(value)
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if pa.types.is_floating(kind):
        return float(value) if abs(value) <= 1e308 or abs(value) == math.inf else None
    return int(value) if abs(value) < 2**63 and value == int(value) else None


# Files


def write_tables(collection: Collection, folder: Path) -> list[Path]:
    """Write trials.csv, trials.parquet and metrics.parquet, each atomically, and return their paths.

    Raises:
        StorageError: a file cannot be written.
    """
    table = trial_table(collection)
    writers: dict[str, Callable[[Path], None]] = {
        TRIALS_CSV: lambda path: _write_csv(table, path),
        TRIALS_PARQUET: lambda path: _write_trials(table, path),
        METRICS_PARQUET: lambda path: _write_metrics(collection.trials, path),
    }
    for name, write in writers.items():
        _replace(folder / name, write)
    return [folder / name for name in writers]


def write_trials_csv(collection: Collection, path: Path) -> None:
    """Write only trials.csv.

    Raises:
        StorageError: it cannot be written.
    """
    _replace(path, lambda temporary: _write_csv(trial_table(collection), temporary))


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    temporary = temporary_for(path)
    with writing(path):
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_csv(table: Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([csv_cell(name) for name in table])
        columns = [[csv_cell(value) for value in values] for _, values in table.values()]
        writer.writerows(zip(*columns, strict=True))


def _write_trials(table: Table, path: Path) -> None:
    arrays = [pa.array([_fit(kind, value) for value in values], kind) for kind, values in table.values()]
    pq.write_table(pa.table(arrays, names=list(table)), path, compression="zstd")


def _write_metrics(trials: Sequence[Trial], path: Path) -> None:
    """Write the metrics of all trials as one table, with the trial as the first column; NaN becomes null."""
    names = ["step", *(name for name in _names(trial.metrics for trial in trials) if name not in ("step", "trial"))]
    kinds = [pa.int64() if name in WHOLE_METRICS else pa.float64() for name in names]
    schema = pa.schema([("trial", pa.dictionary(pa.int32(), pa.string())), *zip(names, kinds, strict=True)])
    keys = pa.array([trial.key for trial in trials], pa.string())
    lengths = [len(trial.metrics["step"]) if trial.metrics else 0 for trial in trials]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["trial"]) as writer:
        for start in range(0, len(trials), _ROWS):
            batch = trials[start : start + _ROWS]
            counts = lengths[start : start + _ROWS]
            owner = pa.array(np.repeat(np.arange(start, start + len(batch), dtype=np.int32), counts))
            columns: list[Any] = [pa.DictionaryArray.from_arrays(owner, keys)]
            for name, kind in zip(names, kinds, strict=True):
                parts = [
                    trial.metrics.get(name, np.full(count, np.nan))
                    for trial, count in zip(batch, counts, strict=True)
                    if count
                ]
                columns.append(_column(np.concatenate(parts) if parts else np.empty(0), kind))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _column(values: npt.NDArray[np.float64], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        return pa.array(values, kind, mask=np.isnan(values))
    usable = np.isfinite(values) & (np.abs(values) < 2.0**62)
    return pa.array(np.where(usable, values, 0).astype(np.int64), kind, mask=~usable)
