"""What was read of runs, in one file, so that the next time only the runs that changed are read.

An Arrow file with a row for each run: its directory, the stamp of its files, what they said, and its metrics as they
lie in memory. It is mapped, not loaded, replaced whole, and safe to delete; one that is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dcgan_dist.paths import expanded
from dcgan_dist.results.reading import FigureFile, RunFiles, load_json
from dcgan_dist.results.walking import Found
from dcgan_dist.storage.cache import CACHE_VARIABLE, cache_directory
from dcgan_dist.storage.files import temporary_for, writing

LARGEST = 2**30
"""Most bytes of metrics that are kept; runs beyond are read again each time."""

_KEPT = 16  # cache files that are kept, of those written last
_VERSION = b"6"
_BATCH = 500
_SCHEMA = pa.schema(
    [("directory", pa.string()), ("stamp", pa.string()), ("said", pa.string()), ("values", pa.large_binary())],
    metadata={b"dcgan_dist": _VERSION},
)


class Remembered:
    """The runs of a cache file."""

    def __init__(self, path: Path | None) -> None:
        """Map the file; where there is none, or none that can be used, nothing is remembered."""
        self._path = path
        self._rows: dict[str, int] = {}
        try:
            if path is not None and path.exists():
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
                if table.schema.equals(_SCHEMA, check_metadata=True):
                    table.validate(full=True)
                    self._table = table
                    self._stamps = table["stamp"].to_pylist()
                    self._rows = {name: row for row, name in enumerate(table["directory"].to_pylist())}
        except (pa.ArrowException, OSError):
            self._rows = {}

    def get(self, found: Found) -> RunFiles | None:
        """Return what the run's files said the last time, None where they have changed since or are unknown."""
        row = self._rows.get(_name(found))
        if row is None or self._stamps[row] != found.stamp:
            return None
        try:
            return _restore(
                load_json(self._table["said"][row].as_py().encode()), self._table["values"][row].as_buffer()
            )
        except (ValueError, TypeError, KeyError):
            return None

    def replace(self, runs: Sequence[tuple[Found, RunFiles]]) -> None:
        """Write the file anew with these runs alone; where it cannot be written it is left as it is.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if self._path is None:
            return
        temporary = temporary_for(self._path)
        room = LARGEST
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
                    for start in range(0, len(runs), _BATCH):
                        batch = runs[start : start + _BATCH]
                        room -= sum(files.values.nbytes for _, files in batch)
                        if room < 0:
                            break
                        rows = [
                            [_name(found), found.stamp, _said(files), files.values.tobytes()] for found, files in batch
                        ]
                        writer.write(
                            pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA)
                        )
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)


def _name(found: Found) -> str:
    return found.directory.encode("utf-8", "backslashreplace").decode()


def _said(files: RunFiles) -> str:
    said = {entry.name: getattr(files, entry.name) for entry in fields(RunFiles) if entry.name != "values"}
    said["figures"] = [asdict(figure) for figure in files.figures]
    # NaN stays what it is: settings can hold one. Half characters do not: the file's texts are UTF-8.
    return json.dumps(said)


def _restore(said: dict[str, Any], values: pa.Buffer) -> RunFiles:
    names = tuple(said.pop("names"))
    matrix = np.frombuffer(values, dtype=np.float64).reshape(len(names), -1) if names else np.empty((0, 0))
    grids: dict[str, Any] = {
        key: tuple((int(step), str(name)) for step, name in said.pop(key)) for key in ("samples", "raw_samples")
    }
    problems = tuple(said.pop("problems"))
    figures = tuple(FigureFile(**figure) for figure in said.pop("figures"))
    return RunFiles(**said, **grids, names=names, values=matrix, figures=figures, problems=problems)


def cache_file(chosen: str | None, purpose: str) -> Path:
    """Return the cache file for a purpose, such as the path of a page; files written long ago are removed.

    Args:
        chosen: the cache's folder; None for $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist.
        purpose: reports of the same purpose share what was read.
    """
    named = chosen or os.environ.get(CACHE_VARIABLE)
    folder = (expanded(named) if named else cache_directory()) / "reports"
    path = folder / f"{hashlib.sha256(purpose.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}.arrow"
    # Another report may remove one of them at the same time.
    with suppress(OSError):
        others = sorted(folder.glob("*.arrow"), key=lambda other: other.stat().st_mtime, reverse=True)
        for other in others[_KEPT:]:
            if other != path:
                other.unlink()
    return path
