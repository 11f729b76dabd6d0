"""Run and sweep directories below some places, local folders and URLs, and what tells whether one has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dcgan_dist.errors import DataError, InputError, StorageError
from dcgan_dist.paths import expanded
from dcgan_dist.runs.names import FIGURES, SAMPLES, SET_ASIDE
from dcgan_dist.storage.folder import folder_at

RUN_FILES = ("config.yaml", "status.json", "metrics.jsonl", "scores.json")
SWEEP_NAME = "sweep.json"
TRIALS = "trials"

# A run directory has one of these; scores.json alone makes none.
_MARKS = frozenset(RUN_FILES[:3])
# Folders with many files in which no run is.
_PASSED_BY = frozenset({"checkpoints", SAMPLES, FIGURES, SET_ASIDE, "report_files", "__pycache__"})
# Most bytes that are read of one file; what is larger was not written by a run.
_LARGEST = {"config.yaml": 2**20, "status.json": 2**20, "metrics.jsonl": 2**29}
_LARGEST_OTHER = 2**28


@dataclass(frozen=True)
class Found:
    """A run or a sweep directory.

    Attributes:
        directory: path or URL, starting with the place as it was given.
        real: the same with no links in it; of two ways to one directory, the first one found counts.
        is_sweep: whether it is a sweep's.
        stamp: changes when any of the files that are read of it does.
        files: of a URL, the names of its files; of a folder, they are looked up when it is read.
    """

    directory: str
    real: str
    is_sweep: bool
    stamp: str
    files: tuple[str, ...] | None = field(default=None, repr=False)


def find(places: Sequence[str]) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return every run and sweep directory below `places`, each once, in the order of names; and what is unreadable.

    Raises:
        InputError: a place is no directory, or a URL that cannot be listed.
    """
    found: list[Found] = []
    unreadable: list[tuple[str, str]] = []
    seen: set[tuple[int, int] | str] = set()
    for place in places:
        if "://" in place and not place.startswith("file://"):
            found += _find_url(place.rstrip("/"), seen)
            continue
        folder = expanded(place.removeprefix("file://"))
        if not folder.is_dir():
            raise InputError(f"no such directory: {place!r}")
        found += _find_folder(str(folder), seen, unreadable)
    return found, unreadable


def _find_folder(top: str, seen: set[tuple[int, int] | str], unreadable: list[tuple[str, str]]) -> Iterator[Found]:
    """Walk down, following links, each folder once; not into run directories."""
    waiting = [(top, os.path.realpath(top))]
    while waiting:
        folder, real = waiting.pop()
        try:
            details = os.stat(folder)
            if (details.st_dev, details.st_ino) in seen:
                continue
            seen.add((details.st_dev, details.st_ino))
            with os.scandir(folder) as entries:
                here = {entry.name: entry for entry in entries}
            folders = [
                name for name, entry in here.items() if name[0] != "." and name not in _PASSED_BY and entry.is_dir()
            ]
        except OSError as error:
            unreadable.append((folder, error.strerror or str(error)))
            continue
        is_sweep = SWEEP_NAME in here or (not here.keys() & {"config.yaml", "metrics.jsonl"} and TRIALS in here)
        if (is_sweep and here.keys() & {SWEEP_NAME, "status.json"}) or here.keys() & _MARKS:
            yield Found(folder, real, is_sweep, _stamp(folder, (SWEEP_NAME, "status.json") if is_sweep else RUN_FILES))
            if not is_sweep:
                continue
        for name in sorted(folders, reverse=True):
            path = os.path.join(folder, name)
            waiting.append((path, os.path.realpath(path) if here[name].is_symlink() else os.path.join(real, name)))


def _stamp(folder: str, names: Sequence[str]) -> str:
    parts = []
    for name in (*names, SAMPLES, FIGURES):
        try:
            details = os.stat(f"{folder}/{name}")
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{details.st_mtime_ns:x}:{details.st_size:x}")
    return " ".join(parts)


def _find_url(url: str, seen: set[tuple[int, int] | str]) -> Iterator[Found]:
    try:
        versions = folder_at(url, patience=1).versions()
    except (DataError, StorageError) as error:
        raise InputError(f"cannot list {url}: {error}") from error
    folders: dict[str, list[str]] = {}
    for name in versions:
        parent, _, base = name.rpartition("/")
        folders.setdefault(parent, []).append(base)
    if not folders:
        raise InputError(f"nothing is at {url}: check the bucket and the path")
    for folder in sorted(folders):
        names = set(folders[folder])
        is_sweep = SWEEP_NAME in names
        if set(folder.split("/")) & _PASSED_BY or not (is_sweep or names & _MARKS):
            continue
        directory = f"{url}/{folder}".rstrip("/")
        if directory in seen:
            continue
        seen.add(directory)
        prefix = f"{folder}/" if folder else ""
        pictures = [
            f"{below}/{name}" for below in (SAMPLES, FIGURES) for name in sorted(folders.get(f"{prefix}{below}", []))
        ]
        wanted = [name for name in (SWEEP_NAME, *RUN_FILES) if name in names] + pictures
        stamp = " ".join(f"{name}={versions[prefix + name]}" for name in wanted)
        yield Found(directory, directory, is_sweep, stamp, tuple(wanted))


def read_bytes(directory: str, name: str) -> bytes | None:
    """Return a file of a run directory, None where there is none.

    Args:
        directory: path or URL.
        name: relative to it.

    Raises:
        StorageError: it cannot be read, is no plain file, or is larger than any that a run writes.
    """
    return folder_at(directory, patience=1).get(name, _LARGEST.get(name, _LARGEST_OTHER))


def names_in(found: Found, below: str) -> list[str]:
    """Return the names in a folder of a run directory, without the folder; [] where there is none."""
    if found.files is not None:
        return [name.removeprefix(f"{below}/") for name in found.files if name.startswith(f"{below}/")]
    try:
        return sorted(os.listdir(f"{found.directory}/{below}"))
    except OSError:
        return []
