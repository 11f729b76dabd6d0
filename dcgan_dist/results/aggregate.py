"""Any collection of run and sweep directories, read into plain values for the report and `compare`.

Only files are read. Files that are missing, cut or damaged are reported in one line each (`Trial.problems`,
`Collection.unreadable`) and never raise an error, because a report is most needed when something went wrong.
"""

from __future__ import annotations

import gc
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import ConfigError, InputError, StorageError
from dcgan_dist.parallel import LocalPool, usable_cores
from dcgan_dist.results.read_cache import ReadCache
from dcgan_dist.results.reading import Curve, FigureFile, RunFiles, clean, one_line, parse_object, read_run
from dcgan_dist.results.walking import SWEEP_NAME, TRIALS, Scan, find, read_bytes
from dcgan_dist.runs.lease import is_alive, parse_status
from dcgan_dist.runs.names import FIGURES, SAMPLES
from dcgan_dist.settings import as_text, convert, modernised
from dcgan_dist.storage.files import to_json
from dcgan_dist.storage.folder import folder_at

SWEPT_TASK = "sweep"
"""Task name of the scores that a sweep measured at its milestones."""

BEST: dict[str, Callable[[Curve], Any]] = {
    "loss_d": np.min,
    "loss_g": np.min,
    "sample_distance": np.max,
    "filter_oscillation": np.min,
    "images_per_s": np.max,
}
"""The metrics that have a best value, and the function that gives it."""

_NO_DIFFERENCE = ("name", "run_dir")
# By default these are taken from the data, so config.yaml always has values for them.
_FROM_DATA = ("model.image_size", "model.channels", "model.classes")


@dataclass(frozen=True)
class Score:
    """One number of scores.json, or of a sweep's milestones.

    Attributes:
        task: task of the score (`cifar10`, `fidelity`, …); `sweep` for scores of a sweep's milestones.
        metric: name of the number.
        value: the number; NaN if it could not be measured.
        low: lower end of its 95% interval, NaN if it has none.
        high: upper end of the interval.
        n: number of test images, samples or the like; None if unknown.
        protocol: how it was measured.
        step: step of the checkpoint; None for a control.
        method: `dcgan`, or the name of a control.
        weights: weights of the generator, `average` or `raw`; "" if they do not matter.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int | None
    protocol: str
    step: int | None
    method: str
    weights: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on the stability of a run.

    Attributes:
        name: see `stability.judge`; `undecided` if it is too early.
        reason: one sentence.
        score: from 0 to 1, above 0.5 if the run is stable; None if unknown.
    """

    name: str
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class Parent:
    """The trial (its key) and its checkpoint from which this one continued (population based training)."""

    trial: str
    step: int | None
    digest: str


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        key: unique in a collection, and readable: the name, with as much of the path as needed.
        name: name of the run directory.
        directory: path or URL of the run directory, as the user gave it.
        sweep: key of its sweep; None for a single run.
        status: `waiting`, `running`, `finished`, `stopped`, `diverged`, `failed`, `died` (status.json says that it is
            running, but its process is gone) or `unknown`.
        reason: reason of the status.
        settings: all settings of config.yaml by dotted name.
        changed: the settings that differ from the defaults: (value, default).
        parameters: the settings that the sweep chose.
        metrics: columns of metrics.jsonl by name, all of the same length, with increasing `step`; NaN for null.
        final: last finite value of each metric.
        best: best finite value of each metric in `BEST`.
        scores: the newest score by `TASK.METRIC`; among several protocols, the first by name.
        all_scores: all scores, of every step, protocol and control.
        objective: value of the objective that the sweep maximised.
        verdict: verdict on its stability.
        samples: (step, path or URL) of each sample grid, by step.
        raw_samples: the same for grids of the raw weights, if the other grids are of averaged weights.
        real: path or URL of the grid of real images.
        figures: figures of `explore`: (figure, path or URL of its picture).
        command: command that reproduces the run.
        device: device such as `cuda`; "" if it was not recorded.
        host: host on which it ran.
        world_size: number of processes that trained it.
        step: steps done.
        steps: steps to do.
        seconds: duration of the training.
        images_seen: real images consumed.
        throughput: images per second over the whole run.
        parent: checkpoint from which it continued.
        milestones: the milestones of its sweep that it reached: {step, objective, verdict, scores: {name: value}}.
        environment: versions and the like that config.yaml records.
        problems: what could not be read, one line each.
    """

    key: str
    name: str
    directory: str
    sweep: str | None = None
    status: str = "unknown"
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    final: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    all_scores: Sequence[Score] = ()
    objective: float | None = None
    verdict: Verdict = Verdict("undecided", "")
    samples: Sequence[tuple[int, str]] = ()
    raw_samples: Sequence[tuple[int, str]] = ()
    real: str | None = None
    figures: Sequence[tuple[FigureFile, str]] = ()
    command: str = ""
    device: str = ""
    host: str = ""
    world_size: int | None = None
    step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    images_seen: int | None = None
    throughput: float | None = None
    parent: Parent | None = None
    milestones: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        key: unique in a collection, and readable.
        name: name of the sweep.
        directory: path or URL of the sweep directory.
        status: as for a trial.
        reason: reason of the status.
        space: the search space, as given in the settings.
        search: search algorithm.
        schedule: schedule, which decides the trials that continue.
        objective: the objective, as given in the settings.
        milestones: steps at which trials were scored, or the number of milestones.
        settings: all settings of the sweep by dotted name.
        trials: keys of its trials, in order of creation.
        trials_wanted: number of trials that the sweep is to have.
        best: key of the best trial.
        pareto_front: keys of the trials that no other trial beats in all objectives.
        importance: importance of each searched setting: (value, low, high).
        problems: what could not be read, one line each.
    """

    key: str
    name: str
    directory: str
    status: str = "unknown"
    reason: str = ""
    space: Mapping[str, Any] = field(default_factory=dict)
    search: str = ""
    schedule: str = ""
    objective: str = ""
    milestones: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: Sequence[str] = ()
    trials_wanted: int | None = None
    best: str | None = None
    pareto_front: Sequence[str] = ()
    importance: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Collection:
    """All runs and sweeps that were found.

    Attributes:
        trials: the runs in the order found; those of a sweep in order of creation.
        sweeps: the sweeps in the order found.
        unreadable: (path, reason) of directories that could not be read at all.
        read: number of runs that were read from their files this time; the others had not changed since the last time.
    """

    trials: Sequence[Trial] = ()
    sweeps: Sequence[Sweep] = ()
    unreadable: Sequence[tuple[str, str]] = ()
    read: int = 0


_RUNS_PER_PROCESS = 200  # runs that take longer to read than a process takes to start
_PROCESSES = 16
_THREADS = 16
_BATCH = 50
_REPORT_SECONDS = 5.0

Report = Callable[[str], None]
"""Function that is called with a line about the progress."""


def collect(locations: Sequence[str], cache: Path | None = None, report: Report | None = None) -> Collection:
    """Read all run and sweep directories at and below some locations.

    Args:
        locations: folders, or URLs of any fsspec file system.
        cache: file that keeps the content of the runs, so that next time only changed runs are read; safe to delete.
        report: called with lines on the progress if there are many runs.

    Raises:
        InputError: a location is not a directory, or no run and no sweep was found.
    """
    scans, unreadable = find(locations)
    if not scans and not unreadable:
        raise InputError(
            f"nothing found in {', '.join(locations)}: no directory there holds config.yaml, status.json or"
            " metrics.jsonl (a run) or sweep.json (a sweep)"
        )
    with _without_garbage_collection():
        return _collect(scans, unreadable, cache, report)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, which would repeatedly search millions of values for cycles that do not exist.

    The values are freed by reference counting as usual.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _collect(
    scans: Sequence[Scan], unreadable: Sequence[tuple[str, str]], cache: Path | None, report: Report | None
) -> Collection:
    kept = ReadCache(cache)
    runs = [scan for scan in scans if not scan.is_sweep]
    known = {number: files for number, scan in enumerate(runs) if (files := kept.get(scan)) is not None}
    new = [number for number in range(len(runs)) if number not in known]
    for number, files in zip(new, _read_all([runs[number] for number in new], report), strict=True):
        known[number] = files
    both = [(scan, known[number]) for number, scan in enumerate(runs)]
    sweeps = [_read_sweep(scan) for scan in scans if scan.is_sweep]
    collection = _join(both, sweeps, unreadable, len(new))
    if new:
        try:
            kept.replace(both)
        except StorageError as error:
            # The cache only saves time, so the report continues without it.
            (report or print)(f"{one_line(str(error))}: all runs will be read again the next time")
    return collection


def _read_all(runs: Sequence[Scan], report: Report | None) -> Iterator[RunFiles]:
    """Yield the files of runs in order; many runs are read by several processes, object storage by several threads."""
    if any(one.files is not None for one in runs):
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(read_run, runs)
        return
    workers = min(usable_cores(), len(runs) // _RUNS_PER_PROCESS, _PROCESSES)
    if workers < 2:
        yield from map(read_run, runs)
        return
    batches = [runs[start : start + _BATCH] for start in range(0, len(runs), _BATCH)]
    begun = reported = time.monotonic()
    done = 0
    with closing(LocalPool(workers).run(_read_batch, batches)) as results:
        for batch in results:
            yield from batch
            done += len(batch)
            if report is not None and time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                report(f"read {done:,} of {len(runs):,} runs in {reported - begun:.0f} s")


def _read_batch(runs: Sequence[Scan]) -> list[RunFiles]:
    return [read_run(scan) for scan in runs]


def read_image(location: str) -> bytes | None:
    """Return the bytes of an image in `Trial.samples`, `real` or `figures`; None if it is gone or unreadable."""
    directory, _, name = location.rpartition("/")
    try:
        return read_bytes(folder_at(directory, patience=1), name)
    except StorageError:
        return None


# Runs and sweeps into one collection


@dataclass(frozen=True)
class _Ledger:
    """A sweep directory with the content of its ledger, sweep.json, which is {} if the file is missing or damaged."""

    scan: Scan
    content: dict[str, Any]
    alive: bool
    problems: tuple[str, ...]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of the trials in sweep.json."""
        records = self.content.get("trials")
        return [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []


def _read_sweep(scan: Scan) -> _Ledger:
    problems: list[str] = []
    contents: dict[str, dict[str, Any]] = {}
    for name in (SWEEP_NAME, "status.json"):
        try:
            raw = read_bytes(folder_at(scan.directory, patience=1), name)
        except StorageError as error:
            problems.append(one_line(str(error)))
            raw = None
        else:
            if raw is None and name == SWEEP_NAME:
                problems.append(f"{SWEEP_NAME} is missing: only the trials are shown")
        contents[name] = parse_object(raw, name, problems)
    return _Ledger(scan, contents[SWEEP_NAME], _has_living_writer(contents["status.json"]), tuple(problems))


def _join(
    runs: Sequence[tuple[Scan, RunFiles]],
    ledgers: Sequence[_Ledger],
    unreadable: Sequence[tuple[str, str]],
    read: int,
) -> Collection:
    unreadable = list(unreadable)
    by_path = {scan.real: number for number, (scan, _) in enumerate(runs)}
    trials: list[Trial] = []
    sweeps: list[Sweep] = []
    taken: set[int] = set()
    sweep_keys = _unique([ledger.scan.real for ledger in ledgers])
    for ledger, key in zip(ledgers, sweep_keys, strict=True):
        of_sweep: list[Trial] = []
        keys: dict[str, str] = {}
        for record in ledger.records:
            name = text(record.get("trial")) or f"trial {len(of_sweep)}"
            directory = f"{ledger.scan.directory}/{text(record.get('directory')) or f'{TRIALS}/{name}'}"
            number = by_path.get(_real_path(directory, ledger.scan))
            if number in taken or name in keys:
                continue
            keys[name] = f"{key}/{name}"
            if number is None:
                run = replace(_without_files(directory), key=keys[name], name=name)
            else:
                taken.add(number)
                run = replace(_trial(*runs[number]), key=keys[name])
            of_sweep.append(_with_record(run, record, key, ledger))
        # Runs in the folder of trials that sweep.json does not list: it is damaged, or older than they are.
        inside = f"{ledger.scan.real}/{TRIALS}/"
        for number, (scan, files) in enumerate(runs):
            if number not in taken and scan.real.startswith(inside):
                taken.add(number)
                run = _trial(scan, files)
                of_sweep.append(replace(run, key=f"{key}/{run.name}", sweep=key))
        of_sweep = [_with_parent_key(run, keys) for run in of_sweep]
        trials += of_sweep
        sweeps.append(_sweep(ledger, key, of_sweep, keys))
    alone: list[Trial] = []
    paths_alone: list[str] = []
    for number, (scan, files) in enumerate(runs):
        if number in taken:
            continue
        if not files.settings.keys() & _defaults().keys() and not (files.status or files.names or files.samples):
            reason = "; ".join(files.problems) or "its config.yaml holds no settings of a run"
            unreadable.append((clean(scan.directory), reason))
            continue
        alone.append(_trial(scan, files))
        paths_alone.append(scan.real)
    keys_alone = _unique(paths_alone)
    trials += [replace(trial, key=key) for trial, key in zip(alone, keys_alone, strict=True)]
    return Collection(_all_unique(trials), tuple(sweeps), tuple((clean(path), why) for path, why in unreadable), read)


def _real_path(directory: str, sweep: Scan) -> str:
    """Return the `Scan.real` of the directory of a sweep's trial."""
    if "://" in directory:
        return directory.rstrip("/")
    real = os.path.normpath(os.path.join(sweep.real, os.path.relpath(directory, sweep.directory)))
    return os.path.realpath(real) if os.path.islink(real) else real


def _unique(directories: Sequence[str]) -> list[str]:
    """Return a name for each path or URL: its last part, with as many parts before it as make it unique."""
    parts = [[part for part in clean(one).split("/") if part] or ["/"] for one in directories]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]
        count = Counter(names)
        longer = [number for number, own in enumerate(parts) if count[names[number]] > 1 and lengths[number] < len(own)]
        if not longer:
            return names
        for number in longer:
            lengths[number] += 1


def _all_unique(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Number the keys that are still equal: a sweep and a run can have the same name."""
    seen: Counter[str] = Counter()
    made = []
    taken = {trial.key for trial in trials}
    for trial in trials:
        key = trial.key
        seen[key] += 1
        if seen[key] > 1:
            key = next(key for number in range(2, len(trials) + 2) if (key := f"{trial.key} ({number})") not in taken)
            taken.add(key)
        made.append(trial if key == trial.key else replace(trial, key=key))
    return tuple(made)


# One trial


@once
def _defaults() -> dict[str, Any]:
    return {key: as_text(value) for key, value in flatten(Config()).items()}


def _trial(scan: Scan, files: RunFiles) -> Trial:
    directory = scan.directory
    shown = clean(directory)
    columns = dict(zip(files.names, files.values, strict=True))
    status, reason = _status(files.status, "status.json is missing" if not files.status else "")
    settings = _as_declared(files.settings)
    seconds, images = _last(columns, "time_s"), _last(columns, "images_seen")
    world, step = _last(columns, "world_size"), _last(columns, "step")
    scores = _scores(files.scores)
    return Trial(
        key="",
        name=clean(scan.real).rpartition("/")[2] or shown,
        directory=shown,
        status=status,
        reason=reason,
        settings=settings,
        changed=_changed(settings),
        metrics=columns,
        final={name: value for name in files.names if (value := _last(columns, name)) is not None},
        best={name: float(pick(usable)) for name, pick in BEST.items() if (usable := _finite(columns, name)).size},
        scores=_newest(scores),
        all_scores=scores,
        verdict=Verdict(text(files.verdict.get("name")), text(files.verdict.get("reason")), files.verdict.get("score")),
        samples=tuple((step, f"{directory}/{SAMPLES}/{name}") for step, name in files.samples),
        raw_samples=tuple((step, f"{directory}/{SAMPLES}/{name}") for step, name in files.raw_samples),
        real=f"{directory}/{SAMPLES}/real.png" if files.has_real else None,
        figures=tuple((figure, f"{directory}/{FIGURES}/{figure.name}.png") for figure in files.figures),
        command=_command(shown, settings),
        device=_device(settings, files.environment),
        host=text(files.status.get("host")) or text(files.environment.get("host")),
        world_size=_whole(world),
        step=_whole(files.status.get("step")) if _whole(files.status.get("step")) is not None else _whole(step),
        steps=_whole(files.status.get("steps")) or _whole(settings.get("training.steps")),
        seconds=seconds,
        images_seen=_whole(images),
        throughput=images / seconds if images and seconds else None,
        parent=_parent(files.parent.get("parent"), files.parent.get("parent_step"), files.parent.get("parent_digest")),
        environment=files.environment,
        problems=files.problems,
    )


def _with_record(trial: Trial, record: Mapping[str, Any], sweep: str, ledger: _Ledger) -> Trial:
    """Return a trial with the record of its sweep added; if the trial has ended, the record's status counts."""
    status, reason = text(record.get("status")), text(record.get("reason"))
    if status in ("", "running", "waiting") and trial.status not in ("unknown", "waiting"):
        status, reason = trial.status, trial.reason
    elif status == "running" and not ledger.alive:
        status, reason = "died", "the process of the sweep is gone; the same command resumes it"
        if text(ledger.content.get("status")) != "running":
            status, reason = "stopped", "interrupted; it resumes with the sweep"
    parameters = record.get("parameters")
    swept = _scores_of(SWEPT_TASK, record.get("scores"), "milestone", _whole(record.get("step")), "dcgan")
    verdict = trial.verdict
    if text(record.get("verdict")):
        same = verdict.name == text(record["verdict"])
        verdict = Verdict(text(record["verdict"]), text(record.get("verdict_reason")), verdict.score if same else None)
    elif status == "diverged":
        verdict = Verdict("diverged", reason)
    parent = record.get("parent")
    parent = parent if isinstance(parent, dict) else {}
    milestones = record.get("milestones")
    return replace(
        trial,
        sweep=sweep,
        status=status or "unknown",
        reason=reason,
        parameters=modernised(Config, parameters) if isinstance(parameters, dict) else {},
        scores={**_newest(swept), **trial.scores},
        all_scores=(*swept, *trial.all_scores),
        objective=_real(record.get("objective")),
        verdict=verdict,
        step=trial.step if trial.step is not None else _whole(record.get("step")),
        steps=trial.steps or _whole(record.get("steps")),
        seconds=trial.seconds if trial.seconds is not None else _real(record.get("seconds")),
        parent=_parent(parent.get("trial"), parent.get("step"), parent.get("digest")) or trial.parent,
        milestones=tuple(one for one in milestones if isinstance(one, dict)) if isinstance(milestones, list) else (),
    )


def _with_parent_key(trial: Trial, keys: Mapping[str, str]) -> Trial:
    """Return a trial whose parent is named by its key in the collection instead of its name in the sweep."""
    parent = trial.parent
    return (
        replace(trial, parent=replace(parent, trial=keys[parent.trial])) if parent and parent.trial in keys else trial
    )


def _without_files(directory: str) -> Trial:
    return Trial(key="", name="", directory=clean(directory), status="waiting", problems=("it has no run directory",))


def _sweep(ledger: _Ledger, key: str, trials: Sequence[Trial], keys: Mapping[str, str]) -> Sweep:
    content = ledger.content
    status, reason = text(content.get("status")) or "unknown", text(content.get("reason"))
    if status == "running" and not ledger.alive:
        status, reason = "died", "its process is gone; the same command resumes it"

    def mapping(name: str) -> dict[str, Any]:
        value = content.get(name)
        return value if isinstance(value, dict) else {}

    importance = {}
    for name, about in mapping("importance").items():
        value, low, high = _interval(about)
        if math.isfinite(value):
            importance[name] = (value, low, high)
    front = content.get("pareto_front")
    return Sweep(
        key=key,
        name=text(content.get("name")) or clean(ledger.scan.real).rpartition("/")[2],
        directory=clean(ledger.scan.directory),
        status=status,
        reason=reason,
        space=mapping("space"),
        search=text(content.get("search")),
        schedule=text(content.get("schedule")),
        objective=text(content.get("objective")),
        milestones=content.get("milestones"),
        settings=mapping("settings"),
        trials=tuple(trial.key for trial in trials),
        trials_wanted=_whole(content.get("trials_wanted")),
        best=keys.get(text(content.get("best"))),
        pareto_front=tuple(keys[name] for name in map(text, front if isinstance(front, list) else []) if name in keys),
        importance=importance,
        problems=ledger.problems,
    )


# Values of unknown type


def text(value: Any) -> str:
    """Return a text unchanged, "" for null, and one line of JSON for any other value."""
    if value is None:
        return ""
    return clean(value) if isinstance(value, str) else to_json(value)


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    number = _real(value)
    return None if number is None or abs(number) >= 2**63 else int(number)


def _finite(columns: Mapping[str, Curve], name: str) -> Curve:
    column = columns.get(name)
    return np.empty(0) if column is None else column[np.isfinite(column)]


def _last(columns: Mapping[str, Curve], name: str) -> float | None:
    column = columns.get(name)
    if column is None or not column.size:
        return None
    value = float(column[-1])
    if math.isfinite(value):
        return value
    usable = _finite(columns, name)
    return float(usable[-1]) if usable.size else None


@once
def _numbers() -> tuple[str, ...]:
    return tuple(key for key, value in _defaults().items() if isinstance(value, float))


@once
def _lists() -> tuple[str, ...]:
    return tuple(key for key, value in flatten(Config()).items() if isinstance(value, tuple))


def _as_declared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as runs record them: numbers where declared (YAML reads `1e-5` as a text), lists as text."""
    declared = dict(settings)
    for key in _lists():
        if isinstance(value := settings.get(key), list):
            declared[key] = as_text(tuple(value))
    for key in _numbers():
        value = settings.get(key)
        if isinstance(value, str):
            with suppress(ConfigError):  # not a number: it stays a text
                declared[key] = convert(key, value, float)
    return declared


def _changed(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (value, default)
        for key, default in _defaults().items()
        if key in settings
        and (value := settings[key]) != default
        and key not in _NO_DIFFERENCE
        and not (default is None and key in _FROM_DATA)
    }


def _has_living_writer(status: dict[str, Any]) -> bool:
    usable = parse_status(to_json(status).encode())
    return usable is not None and 0 < usable["pid"] < 2**31 and is_alive(usable)


def _status(status: dict[str, Any], otherwise: str) -> tuple[str, str]:
    name, reason = text(status.get("status")) or "unknown", text(status.get("reason")) or otherwise
    if name != "running" or _has_living_writer(status):
        return name, reason
    heartbeat = _real(status.get("heartbeat"))
    last = ""
    if heartbeat is not None and 0 < heartbeat < 2**36:
        last = f", last heartbeat at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(heartbeat))} UTC"
    process, host = text(status.get("pid")), text(status.get("host"))
    return "died", f"its process {process} on host {host} is gone{last}; the same command resumes it"


def _device(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    if recorded := text(environment.get("device")):
        return recorded
    chosen = text(settings.get("training.device"))
    if chosen not in ("", "auto"):
        return chosen
    return "cpu" if text(environment.get("torch")).endswith("+cpu") else ""


def _command(directory: str, settings: Mapping[str, Any]) -> str:
    """Return the command that trains the same run again, in another directory."""
    words = ["python", "-m", "dcgan_dist.train"]
    if "://" in directory:  # --config cannot read from a URL
        for key, value in settings.items():
            if key not in _NO_DIFFERENCE and key in _defaults() and value is not None:
                words += [f"--{key}", text(value)]
        words += ["--name", f"{directory.rpartition('/')[2]}-again"]
    else:
        words += ["--config", f"{directory}/config.yaml", "--run-dir", f"{directory}-again"]
        if settings.get("cluster.storage"):
            words += ["--cluster.storage", "null"]
    return shlex.join(words)


def _parent(trial: Any, step: Any, digest: Any) -> Parent | None:
    return Parent(text(trial), _whole(step), text(digest)) if text(trial) else None


# Scores


def _interval(about: Any) -> tuple[float, float, float]:
    """Return value, low and high of {"value", "ci95"}; NaN if missing."""
    if not isinstance(about, dict):
        about = {"value": about}
    ends = about.get("ci95")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    numbers = (_real(about.get("value")), _real(low), _real(high))
    value, low, high = (math.nan if number is None else number for number in numbers)
    return value, low, high


def _scores_of(
    task: str, metrics: Any, protocol: str, step: int | None, method: str, weights: str = ""
) -> tuple[Score, ...]:
    if not isinstance(metrics, dict):
        return ()
    return tuple(
        Score(
            task,
            name,
            *_interval(about),
            n=_whole(about.get("n")) if isinstance(about, dict) else None,
            protocol=protocol,
            step=step,
            method=method,
            weights=weights,
        )
        for name, about in metrics.items()
    )


def _scores(content: Mapping[str, Any]) -> tuple[Score, ...]:
    entries: Iterator[tuple[str, Any]] = (
        (task, entry) for task, of_task in content.items() if isinstance(of_task, list) for entry in of_task
    )
    return tuple(
        score
        for task, entry in entries
        if isinstance(entry, dict)
        for score in _scores_of(
            task,
            entry.get("metrics"),
            text(entry.get("protocol")),
            _whole(entry.get("step")),
            text(entry.get("method")),
            text(entry.get("weights")),
        )
    )


def _newest(scores: Sequence[Score]) -> dict[str, Score]:
    """Return the score of the newest checkpoint by `TASK.METRIC`.

    Scores of averaged weights take precedence over those of raw weights; then the first protocol by name counts.
    """
    newest: dict[str, Score] = {}
    for score in scores:
        if score.step is None:
            continue
        key = f"{score.task}.{score.metric}"
        before = newest.get(key)
        if before is None or _rank(score) < _rank(before):
            newest[key] = score
    return newest


def _rank(score: Score) -> tuple[int, bool, str]:
    return (-(score.step or 0), score.weights == "raw", score.protocol)
