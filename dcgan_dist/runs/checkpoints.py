"""Checkpoints on a local disk: folders `step-NNNNNNNN`, valid only when complete.

A folder contains files of tensors and state.json. That one is written last; it has the size in bytes and the digest
(xxh3_128) of every other file, and a digest of itself without that entry.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import xxhash

from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.runs.documents import SavedState, State
from dcgan_dist.storage.files import sync_path, write_atomically, writing
from dcgan_dist.storage.folder import Folder, LocalFolder

STATE_NAME = "state.json"
RAW = "raw-"
"""Prefix of sample grids of the raw weights; with averaged weights, grids without it are those of the average."""
_NAME = re.compile(r"step-(\d{8,})")
_WRITING = ".writing-"
_REMOVED = ".removed-"


class IncompleteCheckpoint(RunDirectoryError):
    """A checkpoint has no state.json: its upload was interrupted, or it is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: number of steps of training done.
        folder: contains its files.
        state: content of state.json.
        where: its folder or URL, for messages.
    """

    step: int
    folder: Folder = field(repr=False)
    state: SavedState = field(repr=False)
    where: str = field(compare=False)
    _last: dict[str, bytes] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def parse(cls, folder: Folder, content: bytes | None, where: str) -> Checkpoint:
        """Return the checkpoint in a folder, from the content of its state.json.

        Raises:
            IncompleteCheckpoint: state.json is missing.
            RunDirectoryError: state.json is damaged.
        """
        state = parse_state(content, where)
        return cls(int(state["step"]), folder, state, where)

    @property
    def path(self) -> Path:
        """Its folder on this host."""
        assert self.folder.path is not None
        return self.folder.path

    @property
    def digest(self) -> str:
        """Digest of its state.json, which contains the digests of all files: equal only for equal checkpoints."""
        return str(self.state["digest"])

    @property
    def images_seen(self) -> int:
        """Number of real images that the networks had seen; 0 if it is not recorded."""
        return int(self.state.get("images_seen", 0))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files, except state.json."""
        return tuple(self.state["files"])

    def read(self, name: str) -> bytes:
        """Return the content of a file after comparing it with its digest; the file read last is kept in memory.

        Raises:
            RunDirectoryError: the file is damaged or missing.
            StorageError: the storage fails.
        """
        if name not in self._last:
            content = self.folder.get(name)
            expected = self.state["files"].get(name)
            if content is None or expected is None or xxhash.xxh3_128_hexdigest(content) != expected["xxh3_128"]:
                raise RunDirectoryError(
                    f"{self.where} is damaged: {name} is not what was written; take another step with --step"
                )
            self._last.clear()
            self._last[name] = content
        return self._last[name]


def name_of(step: int) -> str:
    """Return the name of a step's folder, and of its grid of samples."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in the name of a folder or file; None if the name has another form."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def step_of_grid(name: str) -> int | None:
    """Return the step in the name of a sample grid's file; None if the name has another form."""
    return step_of(name.removesuffix(".png").removeprefix(RAW))


def steps_in(folder: Path) -> list[int]:
    """Return the steps of all checkpoints in a folder, ascending, intact or not."""
    steps = [step_of(path.name) for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(step for step in steps if step is not None)


def digest_file(path: Path) -> str:
    """Return the xxh3_128 digest of a file's content, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest_state(state: Mapping[str, object]) -> str:
    rest = {key: value for key, value in state.items() if key != "digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True, allow_nan=False).encode())


def write_checkpoint(
    folder: Path, step: int, write: Callable[[Path], None], state: State | Mapping[str, object]
) -> Path:
    """Write a complete checkpoint under a temporary name in `folder`, then rename it.

    Args:
        folder: of all checkpoints; created if missing.
        step: number of steps of training done.
        write: called with a folder, writes the files of tensors into it (no sub-folders).
        state: strict JSON, for state.json; `step`, `files` and `digest` are added.

    Raises:
        StorageError: a file cannot be written.
        ValueError: the state already has one of those names, or contains NaN.
    """
    if clash := {"files", "digest"} & set(state):
        raise ValueError(f"state.json has {sorted(clash)} of its own")
    if state.get("step", step) != step:
        raise ValueError(f"the state is of step {state['step']}, the checkpoint of step {step}")
    temporary = folder / f"{_WRITING}{name_of(step)}"
    target = folder / name_of(step)
    try:
        with writing(target):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            files = {}
            for path in sorted(temporary.iterdir()):
                files[path.name] = {"bytes": path.stat().st_size, "xxh3_128": digest_file(path)}
                sync_path(path)
        # Through JSON and back, so that the digest is that of what will be read: tuples become lists, keys become text.
        content = json.loads(json.dumps({**state, "step": step, "files": files}, allow_nan=False))
        content["digest"] = _digest_state(content)
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_atomically(temporary / STATE_NAME, text.encode())
        with writing(target):
            if target.exists():
                # The same step again. After a kill between the two renames, `recover` does the second one.
                removed = folder / f"{_REMOVED}{name_of(step)}"
                shutil.rmtree(removed, ignore_errors=True)
                target.rename(removed)
                temporary.rename(target)
                shutil.rmtree(removed, ignore_errors=True)
            else:
                temporary.rename(target)
            sync_path(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def parse_state(content: bytes | None, where: str) -> SavedState:
    """Return the content of a state.json.

    Raises:
        IncompleteCheckpoint: it is missing.
        RunDirectoryError: it is damaged.
    """
    if content is None:
        raise IncompleteCheckpoint(f"{where} is incomplete: it has no {STATE_NAME}")
    try:
        state = json.loads(content)
        if state["digest"] != _digest_state(state):
            raise ValueError("its digest differs")
        if any(name in ("", ".", "..") or set(name) & set("/\\\0") for name in state["files"]):
            raise ValueError("it names files of other folders")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirectoryError(f"{where} is damaged: {STATE_NAME} is not what was written ({error})") from error
    return cast(SavedState, state)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint after comparing all its files with their digests.

    Raises:
        RunDirectoryError: it is incomplete or damaged.
    """
    try:
        content = (path / STATE_NAME).read_bytes() if (path / STATE_NAME).exists() else None
        found = Checkpoint.parse(LocalFolder(path), content, str(path))
        for name, expected in found.state["files"].items():
            file = path / name
            if not file.is_file():
                raise RunDirectoryError(f"{path} is damaged: {name} is missing")
            if file.stat().st_size != expected["bytes"]:
                raise RunDirectoryError(
                    f"{path} is damaged: {name} has {file.stat().st_size} bytes, not {expected['bytes']}"
                )
            if digest_file(file) != expected["xxh3_128"]:
                raise RunDirectoryError(f"{path} is damaged: the content of {name} is not what was written")
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    return found


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove a checkpoint. It is renamed first, so that it is invalid at once, even if the removal is interrupted.

    Raises:
        StorageError: it cannot be removed.
    """
    path, removed = folder / name_of(step), folder / f"{_REMOVED}{name_of(step)}"
    with writing(path):
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed)


def holds_more(path: Path) -> bool:
    """Return whether a checkpoint's folder has files that its state.json does not name, or a damaged state.json."""
    try:
        named = parse_state((path / STATE_NAME).read_bytes(), str(path))["files"]
    except (OSError, RunDirectoryError):
        return True
    return not {entry.name for entry in path.iterdir()} <= {STATE_NAME, *named}


def recover(folder: Path) -> None:
    """Remove what a killed process left; a complete checkpoint that was only not yet renamed is renamed.

    Raises:
        StorageError: a folder cannot be removed or renamed.
    """
    with writing(folder):
        for path in sorted(folder.glob(f"{_WRITING}step-*")):
            target = folder / path.name.removeprefix(_WRITING)
            if not target.exists() and _is_intact(path):
                path.rename(target)
            else:
                shutil.rmtree(path)
        for path in sorted(folder.glob(f"{_REMOVED}step-*")):
            shutil.rmtree(path)


def _is_intact(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except RunDirectoryError:
        return False
    return True


def to_prune(steps: list[int], keep_last: int, keep_every: int) -> list[int]:
    """Return which of the ascending `steps` are neither among the newest `keep_last` nor multiples of `keep_every`."""
    old = steps[:-keep_last] if keep_last else steps
    return [step for step in old if not keep_every or step % keep_every]
