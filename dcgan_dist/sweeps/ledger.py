"""The ledger of a sweep: sweep.json, with the parameters, status and scores of every trial.

It is replaced atomically, and is on the disk before a trial starts and after it has ended. So a driver can be killed at
any moment, and the next one resumes the sweep: no trial is lost, and none is run twice. Only one driver at a time
writes the ledger, by the same lease (status.json) as in a run directory.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from dcgan_dist.config import flatten
from dcgan_dist.errors import ConfigError, DcganDistError, RunDirectoryError, Stopped, StorageError
from dcgan_dist.runs.lease import Lease
from dcgan_dist.runs.names import STATUS_NAME
from dcgan_dist.settings import as_text, modernised
from dcgan_dist.storage.files import parse_json_object, temporary_for, to_json
from dcgan_dist.storage.folder import LOCK_NAME, Folder, folder_at
from dcgan_dist.sweeps.objective import best_of, pareto_front
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.record import TrialRecord, TrialStatus
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space

SWEEP_NAME = "sweep.json"
FORMAT = "dcgan_dist sweep 1"
WRITE_SECONDS = 1.0
"""Seconds after which an update is in sweep.json, at most; if a write takes long, ten times its duration."""

SweepStatus = Literal["running", "finished", "stopped", "failed"]

# Settings that may differ when a sweep is resumed: they change where and how fast it runs and how many trials it has,
# but not what a trial is.
FREE_SETTINGS = frozenset(
    (
        *("trials", "sweep_dir", "run_dir", "cluster.storage", "cluster.wait", "concurrent", "verbose"),
        *("trial_failures", "cpus_per_trial", "gpus_per_trial", "score.finalists"),
        *("data.cache", "data.cache_gib", "data.workers", "data.prefetch", "training.on_damaged_run"),
    )
)


def trial_location(location: str, name: str) -> str:
    """Return the folder or URL of a trial's run directory."""
    return f"{location.rstrip('/')}/trials/{name}"


def read_sweep(location: str) -> dict[str, Any] | None:
    """Return the content of sweep.json, None if there is none; takes no lock.

    Raises:
        RunDirectoryError: it is damaged, or has another format.
        StorageError: it cannot be read.
    """
    return _parse(location, folder_at(location, patience=0).get(SWEEP_NAME))


def _parse(location: str, content: bytes | None) -> dict[str, Any] | None:
    if content is None:
        return None
    found = parse_json_object(content)
    if found is None or found.get("format") != FORMAT:
        problem = "damaged" if found is None else f"of the format {found.get('format')!r}, not {FORMAT!r}"
        raise RunDirectoryError(f"{location}/{SWEEP_NAME} is {problem}: move it away, or take another sweep_dir")
    try:
        names = [TrialRecord.from_json(entry).trial for entry in found.get("trials", [])]
        if len(set(names)) < len(names) or any(not name or set(name) & set("/\\\0") for name in names):
            raise ValueError("trials have the same name, or an invalid one")
        if not isinstance(found.get("settings", {}), dict | None):
            raise TypeError("settings are not a mapping")
        float(found.get("started") or 0)
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunDirectoryError(
            f"{location}/{SWEEP_NAME} is damaged ({reason}): move it away, or take another sweep_dir"
        ) from error
    return found


def check_directory(plan: SweepPlan, location: str) -> None:
    """Check a directory like `Ledger.open`, except for a living driver, without writing anything.

    Raises:
        RunDirectoryError: it is the directory of another sweep, or has other content.
        StorageError: it cannot be read.
    """
    found = read_sweep(location)
    if found is not None:
        _refuse_other_sweep(location, found, plan)
    elif (folder := folder_at(location)).path is not None:
        _refuse_other_content(location, folder.names())


class Ledger:
    """A sweep directory that this process writes, from `open` to `close`; usable in a `with` statement.

    Every method can be called by any thread. Methods that write can raise StorageError if a disk or object storage
    fails, and RunDirectoryError if another process has taken the lease of the directory.

    Attributes:
        config: settings of the sweep.
        location: folder or URL of the sweep directory.
        space: the search space.
        objective: the objective to be maximised.
        trials_wanted: number of trials in all; for a grid, the number of its points.
        resumed: whether the sweep had been started before.
    """

    def __init__(self, plan: SweepPlan, location: str, folder: Folder, lease: Lease, found: dict[str, Any]) -> None:
        self.config, self.space, self.objective = plan.config, plan.space, plan.objective
        self.location = location
        self.trials_wanted = plan.trials
        self.resumed = bool(found)
        self._lease = lease
        self._folder = folder
        self._records = {record.trial: record for record in map(TrialRecord.from_json, found.get("trials", []))}
        self._status: SweepStatus = "running"
        self._reason = ""
        self._started = float(found.get("started") or time.time())
        self._importance: dict[str, Any] | None = found.get("importance")
        self._mutex = threading.RLock()
        self._since: dict[str, float] = {}
        self._is_dirty = False
        self._failure: DcganDistError | None = None
        self._closed = False
        self._done = threading.Event()
        self._write()
        self._threads = [
            threading.Thread(target=target, name=f"sweep-{target.__name__}", daemon=True)
            for target in (self._keep_alive, self._keep_written)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, plan: SweepPlan, location: str) -> Ledger:
        """Open or create the directory of a sweep, and take its lease.

        Args:
            plan: the sweep.
            location: folder, or any fsspec URL.

        Raises:
            RunDirectoryError: a living driver holds the lease (the message names host and pid), it is the directory of
                another sweep (the message names the setting that differs) or has other content, or cannot be written.
        """
        try:
            # The first access is not retried, so that a wrong bucket or missing credentials are reported at once.
            found = folder_at(location, patience=0)
            if found.path is not None:
                found.path.mkdir(parents=True, exist_ok=True)
            _refuse_other_content(location, found.names())
            return cls._open(plan, location, folder_at(location))
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write the sweep directory {location}: {error.strerror or error}"
            ) from error
        except StorageError as error:
            raise RunDirectoryError(f"cannot use the sweep directory {location}: {error}") from error

    @classmethod
    def _open(cls, plan: SweepPlan, location: str, folder: Folder) -> Ledger:
        lease = Lease(folder, "")
        lease.take()
        with ExitStack() as undo:
            undo.callback(lease.release)
            found = _parse(location, folder.get(SWEEP_NAME))
            if found is not None:
                _refuse_other_sweep(location, found, plan)
            ledger = cls(plan, location, folder, lease, found or {})
            undo.pop_all()
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        else:
            is_stop = isinstance(error, Stopped) or not isinstance(error, Exception)
            self.close("stopped" if is_stop else "failed", " ".join(str(error).split()) or kind.__name__)

    # Background threads

    def _keep_alive(self) -> None:
        failure = self._lease.keep_alive(self._done)
        if failure is not None:
            self._failure = failure

    def _keep_written(self) -> None:
        pause = WRITE_SECONDS
        while not self._done.wait(pause):
            begin = time.monotonic()
            try:
                with self._mutex:
                    if self._is_dirty:
                        self._write()
            except DcganDistError as error:
                self._failure = error
                return
            pause = max(WRITE_SECONDS, 10 * (time.monotonic() - begin))

    def _check(self) -> None:
        if self._closed:
            raise RunDirectoryError(f"{self.location} is already closed")
        if self._failure is not None:
            raise self._failure

    # Content

    @property
    def records(self) -> dict[str, TrialRecord]:
        """The trials by name, in order of creation."""
        with self._mutex:
            return {name: self._timed(record) for name, record in self._records.items()}

    @property
    def best(self) -> TrialRecord | None:
        """The best trial (see `objective.ranked`), None if no trial has an objective."""
        return best_of(self.records.values())

    @property
    def pareto_front(self) -> list[str]:
        """Names of the trials that no other trial dominates in the scores of the objective."""
        return pareto_front(self.records.values(), self.objective.names)

    @property
    def importance(self) -> dict[str, Any] | None:
        """Importance of each setting, None until it was set."""
        return self._importance

    @importance.setter
    def importance(self, values: dict[str, Any] | None) -> None:
        with self._mutex:
            self._check()
            self._importance = values
            self._write()

    def next_name(self) -> str:
        """Return the name of the next new trial."""
        return f"t{len(self._records):04d}"

    def as_json(self) -> dict[str, Any]:
        """Return the content of sweep.json."""
        with self._mutex:
            records = list(self.records.values())
            best = best_of(records)
            return {
                "format": FORMAT,
                "name": self.config.name,
                "status": self._status,
                "reason": self._reason,
                "seed": self.config.train.seed,
                "trials_wanted": self.trials_wanted,
                **{
                    key: as_text(getattr(self.config, key))
                    for key in ("space", "search", "schedule", "objective", "milestones")
                },
                "settings": {key: as_text(value) for key, value in flatten(self.config).items()},
                "started": self._started,
                "updated": time.time(),
                "best": None if best is None else best.trial,
                "pareto_front": self.pareto_front,
                "importance": self._importance,
                "trials": [record.as_json() for record in records],
            }

    def _write(self) -> None:
        # One line for each trial and for each other entry, so that people can read the file and compare versions.
        content = self.as_json()
        trials = ",\n".join(f"  {to_json(trial)}" for trial in content.pop("trials"))
        lines = [f" {json.dumps(key)}: {to_json(value)}" for key, value in content.items()]
        text = "{\n" + ",\n".join([*lines, f' "trials": [\n{trials}\n ]']) + "\n}\n"
        self._folder.write(SWEEP_NAME, text.encode())
        self._is_dirty = False

    def _timed(self, record: TrialRecord) -> TrialRecord:
        since = self._since.get(record.trial)
        return record if since is None else dataclasses.replace(record, seconds=time.monotonic() - since)

    # Changes

    def start(self, record: TrialRecord) -> TrialRecord:
        """Record a trial that starts or resumes now; it is in sweep.json when the call returns.

        Args:
            record: the trial. If the ledger already has it, its attempts and time are kept.

        Returns:
            The record as it is now.
        """
        with self._mutex:
            self._check()
            self._lease.confirm()
            known = self._records.get(record.trial, record)
            seconds = self._timed(known).seconds
            started = known.started or time.time()
            changes: dict[str, Any] = {"status": "running", "reason": "", "ended": None, "started": started}
            made = dataclasses.replace(record, attempts=known.attempts + 1, seconds=seconds, **changes)
            self._since[record.trial] = time.monotonic() - seconds
            self._records[record.trial] = made
            self._write()
            return made

    def update(self, name: str, **fields: Any) -> TrialRecord:
        """Change fields of a trial; they are in sweep.json about a second later (see `WRITE_SECONDS`).

        Raises:
            KeyError: no trial has that name.
        """
        with self._mutex:
            self._check()
            self._records[name] = dataclasses.replace(self._records[name], **fields)
            self._is_dirty = True
            return self._timed(self._records[name])

    def finish(self, name: str, status: TrialStatus, reason: str = "", **fields: Any) -> TrialRecord:
        """Record how a trial ended, with any further fields; it is in sweep.json when the call returns.

        A trial that diverged loses its objective.

        Raises:
            KeyError: no trial has that name.
        """
        with self._mutex:
            self._check()
            self._lease.confirm()
            if status == "diverged":
                fields["objective"] = None
            record = self._timed(self._records[name])
            self._since.pop(name, None)
            self._records[name] = dataclasses.replace(
                record, **{"status": status, "reason": reason, "ended": time.time(), **fields}
            )
            self._write()
            return self._records[name]

    def close(self, status: SweepStatus = "finished", reason: str = "") -> None:
        """Record how the sweep ended and release the lease; a second call does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        self._done.set()
        for thread in self._threads:
            thread.join()
        if isinstance(self._failure, RunDirectoryError):
            # Another driver holds the lease, so nothing may be written; an earlier call may have raised this failure.
            if status == "finished":
                raise self._failure
            return
        failure, was_raised = self._failure, self._failure is not None and status != "finished"
        try:
            if failure is None:
                with self._mutex:
                    self._records = self.records
                    self._since.clear()
                    self._status, self._reason = status, reason
                    self._lease.confirm()
                    self._write()
        except StorageError as error:
            failure = error
        if failure is not None and status == "finished":
            status, reason = "failed", str(failure)
        try:
            # Also if sweep.json could not be written: status.json is replaced by one of about the same size, which fits
            # on a full disk.
            self._lease.change(status, reason, {})
            self._lease.release()
        except StorageError as error:
            failure = failure or error
        if failure is not None and not was_raised:
            raise failure


def _refuse_other_content(location: str, names: set[str]) -> None:
    # A driver that was killed while starting has written no more than these.
    own = {STATUS_NAME, LOCK_NAME, *(temporary_for(Path(name)).name for name in (STATUS_NAME, SWEEP_NAME))}
    if SWEEP_NAME not in names and names - own:
        raise RunDirectoryError(
            f"{location} is not a sweep directory, but contains other files such as {min(names - own)!r}: take an empty"
            " or new one"
        )


def _refuse_other_sweep(location: str, found: Mapping[str, Any], plan: SweepPlan) -> None:
    recorded = modernised(SweepConfig, found.get("settings") or {})
    ours = json.loads(to_json({key: as_text(value) for key, value in flatten(plan.config).items()}))
    different = [
        key
        for key, value in recorded.items()
        if key in ours
        and key not in FREE_SETTINGS
        and value != ours[key]
        and not (key == "space" and _is(plan.space, value))
    ]
    if different:
        key = different[0]
        more = f" ({', '.join(different[1:4])} differ too)" if different[1:] else ""
        raise RunDirectoryError(
            f"{location} is the directory of another sweep, with {key} {recorded[key]!r}, not {ours[key]!r}{more}: take"
            " another sweep_dir, or the settings that it was started with"
        )
    there = len(found.get("trials", []))
    if plan.trials < there:
        raise RunDirectoryError(f"{location} already has {there} trials: trials is {plan.config.trials}, take more")


def _is(space: Space, written: Any) -> bool:
    """Return whether a space equals a recorded one after parsing: YAML reads `1e-5` as a text."""
    try:
        return Space.parse(written) == space
    except (ConfigError, AttributeError):
        return False


__all__ = ["Ledger", "TrialRecord", "check_directory", "read_sweep", "trial_location"]
