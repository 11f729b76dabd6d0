"""The run directory as its one writer sees it: settings, metrics, samples, checkpoints, status; on disk or remote.

::

    open_run ─> take the lease ─> clear up after a killed writer (object storage: download the small files)
    go_back  ─> find the newest intact checkpoint, discard (or set aside) everything beyond it
    while training: append_metrics, write_image ─┐  on object storage a thread uploads the changes,
                    commit_checkpoint ───────────┘  in the order metrics, tensors, state.json
    close    ─> upload the rest, release the lease

A process killed at any moment leaves a directory from which the next start resumes; that start also removes incomplete
files.
"""

from __future__ import annotations

import io
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from dcgan_dist.errors import DcganDistError, RunDirectoryError, StorageError
from dcgan_dist.printing import tell
from dcgan_dist.runs.checkpoints import (
    STATE_NAME,
    Checkpoint,
    IncompleteCheckpoint,
    holds_more,
    name_of,
    parse_state,
    read_checkpoint,
    recover,
    remove_checkpoint,
    step_of,
    step_of_grid,
    steps_in,
    to_prune,
    write_checkpoint,
)
from dcgan_dist.runs.documents import SavedState, State, StatusRecord
from dcgan_dist.runs.events import EVENT_FILES, EventLog
from dcgan_dist.runs.lease import (
    Lease,
    Status,
    process_is_gone,
)
from dcgan_dist.runs.names import CONFIG_NAME, METRICS_NAME, SET_ASIDE, STATUS_NAME
from dcgan_dist.runs.uploads import Uploader
from dcgan_dist.storage.files import (
    parse_json_object,
    sync_path,
    temporary_for,
    to_json,
    undone_by_errors,
    write_atomically,
    writing,
)
from dcgan_dist.storage.folder import LOCK_NAME, Folder, LocalFolder, folder_at

UPLOAD_SECONDS = 5.0
"""Minimum seconds between two uploads of metrics, events and samples."""
_WAY_OUT = f"restore it, or give --training.on_damaged_run set-aside, which moves what is in the way to {SET_ASIDE}/"
OnDamagedRun = Literal["refuse", "set-aside"]
_SCRATCH_PREFIX = "dcgan_dist-run-"
# Uploaded in this order: what was set aside is on object storage before the files that replace it are overwritten.
_MIRRORED = (f"{SET_ASIDE}/*/*", CONFIG_NAME, METRICS_NAME, EVENT_FILES, "samples/*.png")


def open_run(location: str, *, session: str = "", scratch: Path | None = None) -> RunWriter:
    """Open a run directory for writing, create it if it does not exist, and become its only writer.

    Args:
        location: local folder, or any fsspec URL such as `s3://bucket/run`.
        session: name of the launch. The lease of a writer of the same launch is taken over at once, even if that writer
            seems alive: the launcher has restarted the workers, and only one group of them is meant to run.
        scratch: for a URL, the local folder in which a temporary folder for the run is created.

    Raises:
        RunDirectoryError: in use (the message names host and pid), not writable, or a folder of something else.
    """
    try:
        folder = folder_at(location)
        if folder.path is None:
            return _open_url(location, folder, session, scratch)
        return _open_folder(location, folder.path, session)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the run directory {location}: {error.strerror or error}") from error
    except StorageError as error:
        raise RunDirectoryError(f"cannot use the run directory {location}: {error}") from error


def _open_folder(location: str, folder: Path, session: str) -> RunWriter:
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_content(location, {path.name for path in folder.iterdir()})
    lease = Lease(LocalFolder(folder), session)
    previous = lease.take()
    with ExitStack() as undo:
        undo.callback(lease.release)
        for path in [*folder.glob(".*.writing"), *folder.glob("samples/.*.writing")]:
            path.unlink(missing_ok=True)
        recover(folder / "checkpoints")
        undo.pop_all()
    return RunWriter(location, folder, lease, previous)


def _open_url(location: str, mirror: Folder, session: str, scratch: Path | None) -> RunWriter:
    # The first access is not retried, so that a wrong bucket or missing credentials are reported at once.
    _refuse_other_content(location, folder_at(location, patience=0).names())
    with ExitStack() as undo:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=scratch))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        lease = Lease(mirror, session, scratch=folder.name)
        previous = lease.take()
        undo.callback(lease.release)
        _remove_scratch_of_dead_writer(previous, folder.parent)
        uploader = Uploader(folder, mirror, _MIRRORED)
        uploader.download()
        undo.pop_all()
    return RunWriter(location, folder, lease, previous, mirror, uploader)


def _remove_scratch_of_dead_writer(status: StatusRecord | None, parent: Path) -> None:
    # Without this, every restart after a kill would leave a temporary folder on the disk of this host.
    if status is None:
        return
    name = status.get("scratch", "")
    if not name.startswith(_SCRATCH_PREFIX) or "/" in name:
        return
    if process_is_gone(status):
        shutil.rmtree(parent / name, ignore_errors=True)


def _refuse_other_content(location: str, names: set[str]) -> None:
    # These may be there without config.yaml: a process that is just starting, or was killed then, has created them.
    others = names - {LOCK_NAME, temporary_for(Path(STATUS_NAME)).name}
    if others and not others & {CONFIG_NAME, STATUS_NAME}:
        raise RunDirectoryError(
            f"{location} is no run directory, but has other things in it such as {min(others)!r}: take an empty or new"
            " folder"
        )


class RunWriter:
    """A run directory that this process writes, from `open_run` to `close`; a context manager.

    Every method can raise StorageError if the disk or the object storage fails (a failure of the background upload is
    raised by the next call), and RunDirectoryError if another process has taken over the directory.

    Attributes:
        location: the folder or URL as it was given.
        local: absolute path of the folder that is written: the location itself, or, for a URL, a temporary folder of
            this host that `close` removes once everything is uploaded.
        previous: status.json as the previous writer left it; None in a new directory.
        newest: the checkpoint found by `go_back`; None if there is none.
    """

    def __init__(
        self,
        location: str,
        local: Path,
        lease: Lease,
        previous: StatusRecord | None,
        mirror: Folder | None = None,
        uploader: Uploader | None = None,
    ) -> None:
        self.location = location
        self.local = local
        self.previous = previous
        self.newest: Checkpoint | None = None
        self._committed: int | None = None  # step of the last checkpoint that this process has written
        self._aside = ""  # sub-folder of set_aside/ of this process
        self._lease = lease
        self._mirror = mirror
        self._uploader = uploader
        self._events = EventLog(local)
        self._failure: DcganDistError | None = None
        self._failure_known = False
        self._closed = False
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)]
        if uploader is not None:
            self._threads.append(threading.Thread(target=self._keep_uploaded, name="upload", daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DcganDistError as second:
            if error is None:
                raise
            if str(second) != str(error):  # the first error is the cause: raise that one, print the other
                tell(str(second), to_stderr=True)

    # In the background

    def _keep_alive(self) -> None:
        failure = self._lease.keep_alive(self._done)
        if failure is not None:
            self._failure = failure

    def _keep_uploaded(self) -> None:
        assert self._uploader is not None
        pause = UPLOAD_SECONDS
        while not self._done.wait(pause):
            begin = time.monotonic()
            try:
                self._uploader.sync()
            except DcganDistError as error:
                self._failure = error
                return
            # Files are uploaded completely each time, so the pause grows with their size.
            pause = max(UPLOAD_SECONDS, 10 * (time.monotonic() - begin))

    def _check(self) -> None:
        if self._closed:
            raise RunDirectoryError(f"{self.location} was closed already")
        if self._failure is not None:
            self._failure_known = True
            raise self._failure

    # Settings

    def read_config(self) -> dict[str, object] | None:
        """Return config.yaml of an earlier start; None if it does not exist.

        Raises:
            RunDirectoryError: it is not YAML.
        """
        self._check()
        path = self.local / CONFIG_NAME
        if not path.exists():
            return None
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no settings")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunDirectoryError(f"{self.location}/{CONFIG_NAME} is damaged ({reason}): {_WAY_OUT}") from error
        return content

    def write_config(self, settings: Mapping[str, object], environment: Mapping[str, object]) -> None:
        """Write config.yaml: the nested settings, and as `environment` the host, versions and git commit."""
        self._check()
        content = {**settings, "environment": dict(environment)}
        write_atomically(self.local / CONFIG_NAME, yaml.safe_dump(content, sort_keys=False).encode())

    # Metrics and samples

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Append a line to metrics.jsonl, NaN and infinities as null.

        Args:
            row: values by name, among them `step`.
        """
        self._check()
        if not isinstance(row["step"], int):
            raise TypeError(f"the step of a line of metrics is {row['step']!r}, not a whole number")
        path = self.local / METRICS_NAME
        line = (to_json(dict(row)) + "\n").encode()
        with writing(path), path.open("ab") as file:
            file.write(line)

    def append_scalars(self, step: int, values: Mapping[str, object]) -> None:
        """Append the numbers among `values` to TensorBoard's scalars of a step."""
        self._check()
        self._events.append(
            step, {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        )

    def write_image(self, name: str, image: npt.NDArray[np.uint8]) -> Path:
        """Write samples/NAME.png and return its path.

        Args:
            name: such as `step-00000500`, with or without `.png`.
            image: uint8, (rows, columns), or (rows, columns, 1 or 3).
        """
        self._check()
        path = self.local / "samples" / f"{name.removesuffix('.png')}.png"
        if path.parent != self.local / "samples" or path.name.startswith("."):
            raise ValueError(f"{name!r} is no plain file name")
        content = io.BytesIO()
        Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(content, "png")
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, content.getvalue(), durable=False)
        return path

    def go_back(self, on_damaged_run: OnDamagedRun, checkpoint_every: int) -> Checkpoint | None:
        """Go back to the newest intact checkpoint, or to the start if there is none, and store it as `newest`.

        What a killed process wrote after that checkpoint is discarded, since the next steps will write it again. If
        there is more than one interval of steps after it, newer checkpoints are damaged or missing. Those steps are
        never discarded.

        Args:
            on_damaged_run: whether to refuse in that case, or to move these steps into a folder below `set_aside`.
            checkpoint_every: maximum steps between two checkpoints of the previous writer.

        Raises:
            RunDirectoryError: a checkpoint is damaged or missing, and `on_damaged_run` is `refuse`.
        """
        self._check()
        self.newest, damaged = self._find_newest()
        step, logged = (self.newest.step, self.newest.state.get("last_logged", 0)) if self.newest else (0, 0)
        reasons = [str(error) for found, error in damaged.items() if not self._was_cut_short(found, error)]
        last = self._last_step()
        if not reasons and last > max(step + checkpoint_every, logged):
            reasons.append(f"{self.location} has metrics or samples of step {last}, but the checkpoints are gone")
        if reasons:
            where = f"step {step}" if self.newest else "the start"
            if on_damaged_run == "refuse":
                raise RunDirectoryError(f"{reasons[0]}; before it, training could resume from {where}: {_WAY_OUT}")
            tell(f"{reasons[0]}; going back to {where}", to_stderr=True)
            self._set_aside_beyond(step)
        self.rewind(step)
        return self.newest

    def _was_cut_short(self, step: int, error: RunDirectoryError) -> bool:
        """Return whether the upload of a checkpoint was interrupted: it has never been valid."""
        is_local = (self.local / "checkpoints" / name_of(step)).exists()
        return self._mirror is not None and not is_local and isinstance(error, IncompleteCheckpoint)

    def _last_step(self) -> int:
        steps = [step for name in self._names("samples") if (step := step_of_grid(name)) is not None]
        path = self.local / METRICS_NAME
        if path.exists():
            with path.open("rb") as file:
                steps += [step for line in file if (step := _step_of_row(line)) is not None]
        return max(steps, default=0)

    def rewind(self, step: int) -> None:
        """Discard everything after `step`: lines of metrics, TensorBoard events, grids of samples, checkpoints.

        An incomplete last line of metrics is removed as well. Damaged lines are kept; damaged checkpoints and events
        are set aside.
        """
        self._check()
        self._lease.confirm()
        self._rewind_metrics(step)
        for path in self._events.damaged():
            self._copy_aside(path.name)
        self._events.rewind(step)
        for name in self._names("samples"):
            if (found := step_of_grid(name)) is not None and found > step:
                self._remove(f"samples/{name}")
        beyond = [found for found in self._checkpoint_steps() if found > step]
        damaged = self._find_newest()[1] if beyond else {}
        for found in beyond:
            if found not in damaged:
                tell(f"{self.location}: discarded checkpoint {name_of(found)}, beyond step {step}")
                self._remove_checkpoint(found)
            elif not self._was_cut_short(found, damaged[found]):
                self.set_aside(f"checkpoints/{name_of(found)}")
        self._upload()

    def _rewind_metrics(self, step: int) -> None:
        path = self.local / METRICS_NAME
        if not path.exists():
            return
        kept = []
        with path.open("rb") as file:
            for line in file:
                is_torn = line.startswith(b"{") and not line.endswith(b"\n") and parse_json_object(line) is None
                found = _step_of_row(line)
                if not is_torn and (found is None or found <= step):
                    kept.append(line if line.endswith(b"\n") else line + b"\n")
        write_atomically(path, b"".join(kept))

    # Damaged parts

    def _set_aside_beyond(self, step: int) -> None:
        """Set aside, or copy there, what `rewind` would discard except checkpoints.

        `rewind` sets those aside last, so that after a kill in between, the next start finds them and begins again.
        """
        for path in [self.local / METRICS_NAME, *sorted(self.local.glob(EVENT_FILES))]:
            if path.exists():
                self._copy_aside(path.name)
        for name in self._names("samples"):
            if (found := step_of_grid(name)) is not None and found > step:
                self.set_aside(f"samples/{name}")
        self._upload()

    def set_aside(self, name: str) -> None:
        """Move a file or folder of the run directory into a folder below `set_aside`."""
        path, target = self.local / name, self._aside_for(name)
        if path.exists():
            with writing(self.local / target):
                path.rename(self.local / target)
        if self._mirror is not None:
            for each in list(self._mirror.versions(name)) or [name]:
                self._mirror.rename(each, f"{target}{each.removeprefix(name)}")

    def _copy_aside(self, name: str) -> None:
        target = self._aside_for(name)
        with writing(self.local / target), undone_by_errors(self.local / target):
            shutil.copy2(self.local / name, self.local / target)

    def _aside_for(self, name: str) -> str:
        """Return the name under which this process sets `name` aside; create its folder."""
        if not self._aside:
            taken = {entry.split("/")[0] for entry in self._names(SET_ASIDE)}
            number = next(number for number in itertools.count(1) if str(number) not in taken)
            self._aside = f"{SET_ASIDE}/{number}"
            tell(
                f"{self.location}: damaged files, and steps lost because of them, are kept in {self._aside}",
                to_stderr=True,
            )
        target = f"{self._aside}/{name.rpartition('/')[2]}"
        with writing(self.local / target):
            (self.local / target).parent.mkdir(parents=True, exist_ok=True)
        return target

    def _names(self, folder: str) -> list[str]:
        """Return the names of the files in a sub-folder, on this host and on object storage."""
        here = self.local / folder
        names = {path.name for path in here.iterdir()} if here.is_dir() else set()
        if self._mirror is not None:
            names |= {name.removeprefix(f"{folder}/") for name in self._mirror.versions(folder)}
        return sorted(names)

    def _remove(self, name: str) -> None:
        path = self.local / name
        with writing(path):
            path.unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.remove(name)

    # Checkpoints

    def commit_checkpoint(self, step: int, write: Callable[[Path], None], state: State | Mapping[str, object]) -> Path:
        """Write checkpoints/step-NNNNNNNN, also to object storage, and return its local path.

        The checkpoint is valid as soon as it is complete, and ignored before.

        Args:
            step: number of steps of training done.
            write: called with a folder, writes the files of tensors into it.
            state: strict JSON for state.json, which also gets `step`, and the bytes and digest of each file.

        Raises:
            ValueError: the state uses the names `files` or `digest`, or holds NaN.
        """
        self._check()
        self._lease.confirm()
        self._sync_metrics()
        path = write_checkpoint(self.local / "checkpoints", step, write, dict(state))
        self._committed = step
        if self._mirror is not None:
            # Metrics first: when the checkpoint becomes valid, the metrics of all its steps must be there.
            self._upload()
            self._upload_checkpoint(self._mirror, path)
        return path

    def _sync_metrics(self) -> None:
        # Metrics reach the disk before the checkpoint: otherwise a power cut could leave a gap in them.
        path = self.local / METRICS_NAME
        if path.exists():
            with writing(path):
                sync_path(path)
        self._events.sync()

    @staticmethod
    def _upload_checkpoint(mirror: Folder, path: Path) -> None:
        folder = f"checkpoints/{path.name}"
        before = parse_json_object(mirror.get(f"{folder}/{STATE_NAME}")) or {}
        for name, details in read_state(path)["files"].items():
            # If the same step is saved again, equal files are not uploaded: the existing checkpoint stays valid.
            if before.get("files", {}).get(name) != details:
                mirror.put(f"{folder}/{name}", path / name)
        mirror.put(f"{folder}/{STATE_NAME}", path / STATE_NAME)

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files match their digests, downloaded if remote; None if there is none.

        A line is printed for every newer checkpoint that is damaged or incomplete.
        """
        self._check()
        found, damaged = self._find_newest()
        for error in damaged.values():
            tell(f"skipping a checkpoint: {error}", to_stderr=True)
        return found

    def _find_newest(self) -> tuple[Checkpoint | None, dict[int, RunDirectoryError]]:
        """Return the newest intact checkpoint, and the errors of the newer ones by step."""
        damaged: dict[int, RunDirectoryError] = {}
        for step in reversed(self._checkpoint_steps()):
            path = self.local / "checkpoints" / name_of(step)
            try:
                if self._mirror is None or path.exists():
                    return read_checkpoint(path), damaged
                return self._download_checkpoint(self._mirror, path), damaged
            except RunDirectoryError as error:
                damaged[step] = error
        return None, damaged

    def _checkpoint_steps(self) -> list[int]:
        steps = set(steps_in(self.local / "checkpoints"))
        if self._mirror is not None:
            found = (step_of(name.split("/")[1]) for name in self._mirror.versions("checkpoints"))
            steps |= {step for step in found if step is not None}
        return sorted(steps)

    def _download_checkpoint(self, mirror: Folder, path: Path) -> Checkpoint:
        folder = f"checkpoints/{path.name}"
        content = mirror.get(f"{folder}/{STATE_NAME}")
        state = parse_state(content, f"{self.location}/{folder}")
        try:
            with writing(path):
                path.mkdir(parents=True)
                for name in state["files"]:
                    mirror.fetch(f"{folder}/{name}", path / name)
                (path / STATE_NAME).write_bytes(content or b"")
            return read_checkpoint(path)
        except (RunDirectoryError, StorageError):
            shutil.rmtree(path, ignore_errors=True)
            raise

    def prune_checkpoints(self, keep_last: int, keep_every: int) -> None:
        """Remove all checkpoints except the newest `keep_last` and, unless 0, the multiples of `keep_every`.

        The newest is the one that this process has written last: folders of later steps are neither counted nor
        removed. A checkpoint with files that no run has written is kept as well.

        Args:
            keep_last: number of checkpoints.
            keep_every: steps.
        """
        self._check()
        steps = [step for step in self._checkpoint_steps() if self._committed is None or step <= self._committed]
        for step in to_prune(steps, keep_last, keep_every):
            path = self.local / "checkpoints" / name_of(step)
            if not (path.exists() and holds_more(path)):
                self._remove_checkpoint(step)

    def _remove_checkpoint(self, step: int) -> None:
        if self._mirror is not None:
            # state.json first: without it, the checkpoint is invalid, whatever a kill leaves of the other files.
            names = self._mirror.versions(f"checkpoints/{name_of(step)}")
            self._mirror.remove(*sorted(names, key=lambda name: not name.endswith(f"/{STATE_NAME}")))
        if (self.local / "checkpoints" / name_of(step)).exists():
            remove_checkpoint(self.local / "checkpoints", step)

    # Status and end

    def set_status(self, status: Status, reason: str = "", **facts: object) -> None:
        """Write status.json.

        Args:
            status: `running`, `finished`, `stopped`, `failed` or `diverged`.
            reason: why it ended.
            **facts: further fields such as the step; each keeps its value until it is given again.
        """
        if not self._failure_known:
            self._check()
        # Object storage is slow, and the next heartbeat writes the status of a running run soon enough.
        self._lease.change(status, reason, facts, write=self._mirror is None or status != "running")

    def _upload(self) -> None:
        if self._uploader is not None:
            self._uploader.sync()

    def close(self) -> None:
        """Upload the remaining files, stop the heartbeat and release the lease; a second call does nothing.

        If the upload fails, the local folder of a URL is kept, and a printed line names it. A status that is still
        `running` becomes `stopped`; if it was never set, the status before `open_run` is restored.
        """
        if self._closed:
            return
        self._closed = True
        self._done.set()
        for thread in self._threads:
            thread.join()
        uploaded = False
        try:
            if self._failure is None:
                self._upload()
                uploaded = True
        finally:
            if self._mirror is not None and not uploaded:
                # Under another name, so that the next start does not remove it.
                kept = self.local.rename(self.local.with_name(f"kept-{self.local.name}"))
                tell(f"{self.location}: files that could not be uploaded are in {kept}", to_stderr=True)
            if not isinstance(self._failure, RunDirectoryError):
                self._lease.release()
            if self._mirror is not None and uploaded:
                shutil.rmtree(self.local, ignore_errors=True)
        if self._failure is not None and not self._failure_known:
            raise self._failure


def _step_of_row(line: bytes) -> int | None:
    """Return the step of a line of metrics; None if the line is damaged."""
    step = (parse_json_object(line) or {}).get("step")
    return step if isinstance(step, int) else None


def read_state(path: Path) -> SavedState:
    """Return the content of state.json of a checkpoint's folder, without checking the other files.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    content = (path / STATE_NAME).read_bytes() if (path / STATE_NAME).exists() else None
    return parse_state(content, str(path))


__all__ = ["RunWriter", "open_run"]
