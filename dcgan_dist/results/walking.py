"""Find run and sweep directories below some locations, local folders and URLs, and detect which have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dcgan_dist.errors import DataError, InputError, StorageError
from dcgan_dist.paths import expanded
from dcgan_dist.runs.names import FIGURES, SAMPLES, SET_ASIDE
from dcgan_dist.storage.folder import Folder, folder_at

RUN_FILES = ("config.yaml", "status.json", "metrics.jsonl", "scores.json")
SWEEP_NAME = "sweep.json"
TRIALS = "trials"

# A folder with one of these is a run directory; scores.json alone is not enough.
_MARKS = frozenset(RUN_FILES[:3])
# Folders that contain many files and no runs.
_SKIPPED = frozenset({"checkpoints", SAMPLES, FIGURES, SET_ASIDE, "report_files", "__pycache__"})
# Bytes that a file may have; a larger one was not written by a run.
_LARGEST = {"config.yaml": 2**20, "status.json": 2**20, "metrics.jsonl": 2**29}
_LARGEST_OTHER = 2**28


@dataclass(frozen=True)
class Scan:
    """A run or a sweep directory that was found.

    Attributes:
        directory: path or URL, beginning with the location as it was given.
        real: the same path with links resolved; if several paths lead to a directory, the first one found is taken.
        is_sweep: whether it is a sweep directory.
        stamp: text that changes when one of the files that are read changes.
        files: names of the files below a URL, which were listed anyway; None for a folder, which is listed when read.
    """

    directory: str
    real: str
    is_sweep: bool
    stamp: str
    files: tuple[str, ...] | None = field(default=None, repr=False)


def find(locations: Sequence[str]) -> tuple[list[Scan], list[tuple[str, str]]]:
    """Return every run and sweep directory below some locations, once each and in order of names.

    Also return (path, reason) of the folders that cannot be read.

    Raises:
        InputError: a location is not a directory, or is a URL that cannot be listed.
    """
    scans: list[Scan] = []
    unreadable: list[tuple[str, str]] = []
    seen: set[tuple[int, int] | str] = set()
    for location in locations:
        if "://" in location and not location.startswith("file://"):
            scans += _find_url(location.rstrip("/"), seen)
            continue
        folder = expanded(location.removeprefix("file://"))
        if not folder.is_dir():
            raise InputError(f"no such directory: {location!r}")
        scans += _find_folder(str(folder), seen, unreadable)
    return scans, unreadable


def _find_folder(top: str, seen: set[tuple[int, int] | str], unreadable: list[tuple[str, str]]) -> Iterator[Scan]:
    """Walk down, following links; visit each folder once, and do not enter run directories."""
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
                name for name, entry in here.items() if name[0] != "." and name not in _SKIPPED and entry.is_dir()
            ]
        except OSError as error:
            unreadable.append((folder, error.strerror or str(error)))
            continue
        is_sweep = SWEEP_NAME in here or (not here.keys() & {"config.yaml", "metrics.jsonl"} and TRIALS in here)
        if (is_sweep and here.keys() & {SWEEP_NAME, "status.json"}) or here.keys() & _MARKS:
            yield Scan(folder, real, is_sweep, _stamp(folder, (SWEEP_NAME, "status.json") if is_sweep else RUN_FILES))
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


def _find_url(url: str, seen: set[tuple[int, int] | str]) -> Iterator[Scan]:
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
        if set(folder.split("/")) & _SKIPPED or not (is_sweep or names & _MARKS):
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
        yield Scan(directory, directory, is_sweep, stamp, tuple(wanted))


def read_bytes(folder: Folder, name: str) -> bytes | None:
    """Return the content of a file of a run or a sweep, None if there is no such file.

    Args:
        folder: of the run or the sweep.
        name: name of the file in it.

    Raises:
        StorageError: it cannot be read, is not a plain file, or is larger than any file of a run.
    """
    return folder.get(name, _LARGEST.get(name, _LARGEST_OTHER))


def names_in(scan: Scan, below: str) -> list[str]:
    """Return the names of the files in a folder of a run directory; [] if there is no such folder."""
    if scan.files is not None:
        return [name.removeprefix(f"{below}/") for name in scan.files if name.startswith(f"{below}/")]
    try:
        return sorted(os.listdir(f"{scan.directory}/{below}"))
    except OSError:
        return []
