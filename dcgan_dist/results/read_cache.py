"""A cache of the contents of runs in one file, so that the next report only reads the runs that have changed.

An Arrow file with a row for each run: its directory, the stamp of its files, their content, and the metrics as they are
in memory. It is memory-mapped, replaced atomically, and safe to delete; a damaged file counts as missing.
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
from dcgan_dist.results.walking import Scan
from dcgan_dist.storage.cache import CACHE_VARIABLE, cache_directory
from dcgan_dist.storage.files import temporary_for, writing

LARGEST = 2**30
"""Bytes of metrics that are kept; runs beyond this limit are read again each time."""

_KEPT = 16  # newest cache files that are kept
_VERSION = b"6"
_BATCH = 500
_SCHEMA = pa.schema(
    [("directory", pa.string()), ("stamp", pa.string()), ("said", pa.string()), ("values", pa.large_binary())],
    metadata={b"dcgan_dist": _VERSION},
)


class ReadCache:
    """The runs of a cache file."""

    def __init__(self, path: Path | None) -> None:
        """Map the file; without a usable file the cache is empty."""
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

    def get(self, scan: Scan) -> RunFiles | None:
        """Return the contents of a run; None if it is not in the cache, or has changed since."""
        row = self._rows.get(_name(scan))
        if row is None or self._stamps[row] != scan.stamp:
            return None
        try:
            return _restore(
                load_json(self._table["said"][row].as_py().encode()), self._table["values"][row].as_buffer()
            )
        except (ValueError, TypeError, KeyError):
            return None

    def replace(self, runs: Sequence[tuple[Scan, RunFiles]]) -> None:
        """Replace the file by one with exactly these runs; on an error the old file is kept.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if self._path is None:
            return
        temporary = temporary_for(self._path)
        free = LARGEST
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
                    for start in range(0, len(runs), _BATCH):
                        batch = runs[start : start + _BATCH]
                        free -= sum(files.values.nbytes for _, files in batch)
                        if free < 0:
                            break
                        rows = [
                            [_name(scan), scan.stamp, _to_json(files), files.values.tobytes()] for scan, files in batch
                        ]
                        writer.write(
                            pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=_SCHEMA)
                        )
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)


def _name(scan: Scan) -> str:
    return scan.directory.encode("utf-8", "backslashreplace").decode()


def _to_json(files: RunFiles) -> str:
    content = {entry.name: getattr(files, entry.name) for entry in fields(RunFiles) if entry.name != "values"}
    content["figures"] = [asdict(figure) for figure in files.figures]
    # json.dumps keeps NaN, which settings can contain, and escapes lone surrogates, which are not valid in UTF-8.
    return json.dumps(content)


def _restore(content: dict[str, Any], values: pa.Buffer) -> RunFiles:
    names = tuple(content.pop("names"))
    matrix = np.frombuffer(values, dtype=np.float64).reshape(len(names), -1) if names else np.empty((0, 0))
    grids: dict[str, Any] = {
        key: tuple((int(step), str(name)) for step, name in content.pop(key)) for key in ("samples", "raw_samples")
    }
    problems = tuple(content.pop("problems"))
    figures = tuple(FigureFile(**figure) for figure in content.pop("figures"))
    return RunFiles(**content, **grids, names=names, values=matrix, figures=figures, problems=problems)


def cache_file(chosen: str | None, purpose: str) -> Path:
    """Return the path of the cache file for a purpose, and remove the oldest cache files.

    Args:
        chosen: folder of the cache; None for $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist.
        purpose: a text such as the path of a page; reports of the same purpose share a cache file.
    """
    named = chosen or os.environ.get(CACHE_VARIABLE)
    folder = (expanded(named) if named else cache_directory()) / "reports"
    path = folder / f"{hashlib.sha256(purpose.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}.arrow"
    # Another report may remove the same file at the same time.
    with suppress(OSError):
        others = sorted(folder.glob("*.arrow"), key=lambda other: other.stat().st_mtime, reverse=True)
        for other in others[_KEPT:]:
            if other != path:
                other.unlink()
    return path
