"""One trial of a sweep: train, and at each milestone score the checkpoint and judge the stability.

This module does not use Ray. The caller passes `deliver`, which gets the result of every milestone and decides whether
the trial continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any, Literal

import torch

import dcgan_dist.vector_math  # noqa: F401 - the first import: equal bits in every process need it
from dcgan_dist.config import Config, override
from dcgan_dist.distributed import World, join_world
from dcgan_dist.errors import Diverged, InputError, RunDirectoryError, Stopped
from dcgan_dist.evaluation.generator_scores import GeneratorEvaluation
from dcgan_dist.evaluation.scoring import evaluate
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.parallel import LocalPool
from dcgan_dist.results.stability import MIN_LINES, UNBORN, Verdict, judge
from dcgan_dist.runs.checkpoints import step_of
from dcgan_dist.runs.documents import Row
from dcgan_dist.runs.lease import STALE_SECONDS, Status, is_alive
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import Entry
from dcgan_dist.runs.writer import open_run
from dcgan_dist.settings import as_record, as_text
from dcgan_dist.sweeps.exploit import SourceCheckpoint, copy_checkpoint
from dcgan_dist.sweeps.objective import FRECHET_SAMPLES, OF_SAMPLES, Objective
from dcgan_dist.sweeps.plan import SweepPlan, with_steps
from dcgan_dist.sweeps.settings import ScoreConfig, SweepConfig
from dcgan_dist.sweeps.space import run_changes, run_settings
from dcgan_dist.training.setup import environment
from dcgan_dist.training.trained import load_generator
from dcgan_dist.training.trainer import train

_ORPHAN_PATIENCE_S = STALE_SECONDS + 150  # Ray kills the processes of a dead driver, on a busy machine with a delay
_STOP_REASONS = {
    "asha": "it was not among the best 1 in {reduction:g} that got this far",
    "median": "the others' median was better",
}

Result = dict[str, Any]
"""The result of a milestone: `milestone` (from 1), `step`, `steps`, `scores`, `objective`, `verdict`, `verdict_reason`,
the `train_seconds` of the run so far and the `score_seconds` of this milestone, and `if_stopped`, the reason to record
if the trial is stopped here."""
Deliver = Callable[[Result], bool]
"""Function that gets the result of a milestone and returns whether the trial continues."""
OnProgress = Callable[[int, int], None]
"""Function that is called with the step of a log line and the number of all steps."""


def _ignore_progress(step: int, steps: int) -> None:
    pass


@dataclass(frozen=True)
class TrialPlan:
    """A trial with valid settings.

    Attributes:
        name: name of the trial, such as `t0007`.
        location: folder or URL of its run directory.
        config: settings of its run; a milestone is a multiple of `training.checkpoint_every`, or the last step.
        milestones: steps at which it is scored, ascending; the last one is the end of the run.
        score: settings of the scores.
        objective: objective of the sweep.
        early: template of the reason if the schedule stops the trial.
    """

    name: str
    location: str
    config: Config
    milestones: tuple[int, ...]
    score: ScoreConfig
    objective: Objective
    early: str

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.milestones[-1]


def milestone_steps(total: int, count: int) -> tuple[int, ...]:
    """Return `count` steps of a run of `total` steps: multiples of the first one, and the end as the last one.

    A run with fewer than `count` steps has fewer milestones.
    """
    interval = max(1, total // count)
    return (*(interval * number for number in range(1, min(count, total))), total)


def _log_every(interval: int, most: int) -> int:
    """Return the largest number of steps between log lines, at most `most`, that divides `interval`.

    It is small enough for a verdict within one interval.
    """
    longest = min(most, max(1, interval // MIN_LINES))
    return next(pause for pause in range(longest, 0, -1) if interval % pause == 0)


def plan_trial(plan: SweepPlan, name: str, location: str, parameters: Mapping[str, Any]) -> TrialPlan:
    """Override the sweep's settings with the parameters of a trial, and compute its milestones.

    Args:
        plan: the sweep.
        name: name of the trial.
        location: folder or URL of its run directory.
        parameters: values from the search space, by dotted name.

    Raises:
        ConfigError: a value is not valid for its setting.
        DataError: the data, which determine the length of a run that is given in epochs, cannot be used.
    """
    sweep = plan.config
    config = override(sweep.train, run_changes(parameters) | _own_settings(sweep, name))
    if config.training.steps is None:
        config = with_steps(config)
    assert config.training.steps is not None
    milestones = milestone_steps(config.training.steps, sweep.milestones)
    interval = milestones[0]
    config = override(
        config,
        {
            "training.checkpoint_every": interval,
            "training.sample_every": interval,
            "training.log_every": _log_every(interval, config.training.log_every),
            "training.keep_every": 1,
        },
    )
    return TrialPlan(
        name=name,
        location=location,
        config=config,
        milestones=milestones,
        score=sweep.score,
        objective=plan.objective,
        early=f"stopped early by {sweep.schedule} at step {{step:,}} of {milestones[-1]:,}: "
        + _STOP_REASONS.get(sweep.schedule, "others did better").format(reduction=sweep.reduction),
    )


def _own_settings(sweep: SweepConfig, name: str) -> dict[str, Any]:
    """Return the settings that a sweep gives to each trial, by dotted name."""
    return {"name": name, "run_dir": None, "cluster.cpus_per_worker": sweep.cpus_per_trial}


class Milestones:
    """The reporter of the training loop: it measures the trial at milestones, and stops it if `deliver` says so.

    Attributes:
        step: step of the newest log line.
        last: the newest result.
    """

    def __init__(
        self,
        plan: TrialPlan,
        device: torch.device,
        deliver: Deliver,
        should_stop: Callable[[], bool],
        on_progress: OnProgress,
    ) -> None:
        self.plan, self.run = plan, Run(plan.location)
        self.step = 0
        self.last: Result = {"milestone": 0, "step": 0, "steps": plan.steps, "scores": {}}
        self._device = device
        self._deliver = deliver
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._fidelity: GeneratorEvaluation | None = None

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Take a log line; at a milestone before the last, measure the trial and wait for the decision about it.

        Raises:
            Stopped: the trial does not continue.
        """
        self.step = int(metrics["step"])
        self._on_progress(self.step, self.plan.steps)
        saved = step_of(Path(checkpoint_dir).name) if checkpoint_dir else None
        # The last log line of a run that diverges comes with an older checkpoint, which is not that of a milestone.
        if self.step in self.plan.milestones[:-1] and saved == self.step:
            self._pass(self.step)

    def should_stop(self) -> bool:
        """Whether the whole sweep is being stopped."""
        return self._should_stop()

    def catch_up(self, known: Collection[int]) -> None:
        """Measure milestones whose checkpoints were saved by a process that was killed before it delivered them.

        Args:
            known: steps of the milestones that were delivered.

        Raises:
            Stopped: the trial does not continue.
        """
        if self.run.status is None:
            return
        try:
            saved = set(self.run.steps)
        except RunDirectoryError:  # none yet
            return
        for step in self.plan.milestones[:-1]:
            if step in saved and step not in known:
                self.step = step
                self._pass(step)

    def _pass(self, step: int) -> None:
        if not self._deliver(self.measure(step)):
            raise Stopped(SIGTERM, self.plan.early.format(step=step))

    def measure(self, step: int) -> Result:
        """Score the checkpoint of a milestone, judge the run so far, and return both."""
        begun = time.monotonic()
        scores = {**self._representation(step), **self._fidelity_scores(step)}
        return self._result(step, scores, diverged=False, begun=begun)

    def conclude(self, diverged: bool) -> Result:
        """Return the result of the last milestone, with a new verdict by all log lines until the end of the run."""
        return self._result(self.step, self.last["scores"], diverged=diverged, begun=time.monotonic())

    def _result(self, step: int, scores: dict[str, Any], *, diverged: bool, begun: float) -> Result:
        rows = [row for row in self.run.rows() if row["step"] <= step]
        verdict = judge(rows, diverged=diverged)
        if step < self.plan.steps and _has_not_begun(verdict):
            verdict = dataclasses.replace(verdict, name="undecided", reason=f"not begun: {verdict.reason}")
        scores = {**scores, "stability": {"value": verdict.score, "ci95": None, "n": len(rows)}}
        self.last = {
            "milestone": sum(step >= milestone for milestone in self.plan.milestones),
            "step": step,
            "steps": self.plan.steps,
            "scores": scores,
            "objective": self.plan.objective.value(
                {name: score["value"] for name, score in scores.items()}, verdict.name
            ),
            "verdict": verdict.name,
            "verdict_reason": verdict.reason,
            "train_seconds": rows[-1]["time_s"] if rows else 0.0,
            "score_seconds": time.monotonic() - begun,
            "if_stopped": self.plan.early.format(step=step),
        }
        return self.last

    def _representation(self, step: int) -> dict[str, Any]:
        score = self.plan.score
        if score.task == "none":
            return {}
        settings = EvaluateConfig(
            task=score.task,
            data=score.data,
            step=str(step),
            count=score.data_count,
            labels_per_class=score.labels_per_class,
            draws=score.draws,
            choosing_draws=1,
            cache=self.plan.config.data.cache,
            keep_features=False,
        )
        entries = evaluate(settings, self.run, self._device, LocalPool(1), _show_nothing, _say_nothing)
        return {"representation": _share(entries[0]["metrics"]["accuracy"])}

    def _fidelity_scores(self, step: int) -> dict[str, Any]:
        samples = self.plan.score.count
        if not samples:
            return {}
        loaded = load_generator(self.run, step)
        if self._fidelity is None:
            self._fidelity = _fidelity(samples, self.plan.config.data.cache, self.run, self._device)
        entry = self._fidelity.score(loaded.network) | loaded.entry(step)
        self.run.add_scores("fidelity", [entry])
        return {name: _plain(metric) for name, metric in entry["metrics"].items() if name in OF_SAMPLES}


def _fidelity(samples: int, cache: str | None, run: Run, device: torch.device) -> GeneratorEvaluation:
    """Return an evaluation that compares samples with as many images of the run's data, or all if there are fewer."""
    settings = EvaluateConfig(task="fidelity", count=samples, cache=cache)
    fidelity = GeneratorEvaluation(settings, run.settings, run.model, device, LocalPool(1))
    fidelity.count = min(samples, fidelity.data.count)
    fidelity.prepare()
    return fidelity


def _has_not_begun(verdict: Verdict) -> bool:
    """Return whether samples are alike because they never differed, which is no collapse in an unfinished run."""
    best_of_real = verdict.signals.get("distance_of_real", 0.0) / (verdict.signals.get("distance_of_best", 0.0) or 1.0)
    return verdict.name == "collapse" and best_of_real < UNBORN


def _show_nothing(protocol: str, entries: list[Entry]) -> None:
    """Print no table: the sweep has its own."""


def _say_nothing(message: str) -> None:
    """Print no lines either."""


def _plain(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": metric["value"], "ci95": list(metric["ci95"]), "n": metric["n"]}


def _share(metric: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an accuracy from percent to a share."""
    return {"value": metric["value"] / 100, "ci95": [end / 100 for end in metric["ci95"]], "n": metric["n"]}


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial in this process, and its last result."""

    status: Literal["finished", "stopped", "diverged", "failed"]
    reason: str
    result: Result


def run_trial(
    plan: TrialPlan,
    deliver: Deliver,
    should_stop: Callable[[], bool],
    *,
    session: str,
    known: Collection[int] = (),
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    threads: int = 1,
    on_progress: OnProgress = _ignore_progress,
    source: SourceCheckpoint | None = None,
    train_by: Callable[[Milestones], None] | None = None,
) -> TrialEnd:
    """Train and measure a trial in this process; resume from its newest checkpoint if it has one.

    Args:
        plan: the trial.
        deliver: gets the result of every milestone except the last, whose result is part of the returned end.
        should_stop: function that returns whether the whole sweep is being stopped; then the trial ends with a
            checkpoint.
        session: identifies this launch of the sweep; if a process of another launch writes the run directory, it is
            awaited.
        known: steps of the milestones that were delivered in an earlier process.
        device: where to compute.
        threads: threads for computation on CPUs.
        on_progress: called with the progress.
        source: a checkpoint of another trial from which to continue, unless it was copied before.
        train_by: function that trains in other processes, which use the given reporter; if None, train in this process.

    Returns:
        The end of the trial. Ends that a retry would not change (divergence, bad input, a stop) are returned, not
        raised.
    """
    torch.set_num_threads(threads)
    world = join_world(device)
    milestones = Milestones(plan, world.device, deliver, should_stop, on_progress)
    try:
        # Building networks advances PyTorch's global generator, although their initial weights depend on the seed
        # alone.
        with torch.random.fork_rng(devices=[]):
            return _run(plan, milestones, world, session, known, source, train_by)
    finally:
        del milestones
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # other trials share the GPU


def _run(
    plan: TrialPlan,
    milestones: Milestones,
    world: World,
    session: str,
    known: Collection[int],
    source: SourceCheckpoint | None,
    train_by: Callable[[Milestones], None] | None,
) -> TrialEnd:
    try:
        _await_end_of_orphan(plan.location, session, milestones.should_stop)
        if source is not None:
            copy_checkpoint(plan.location, source, session=session)
        try:
            milestones.catch_up(known)
        except Stopped as stop:
            record_end(plan.location, "stopped", str(stop), session=session)
            raise
        if train_by is None:
            train(plan.config, world, milestones, run_location=plan.location, session=session)
        else:
            train_by(milestones)
        milestones.step = plan.steps
        return TrialEnd("finished", "", milestones.measure(plan.steps))
    except Diverged as error:
        return TrialEnd("diverged", str(error), milestones.conclude(diverged=True))
    except Stopped as stop:
        return TrialEnd("stopped", str(stop), milestones.last | {"step": milestones.step})
    except InputError as error:
        record_end(plan.location, "failed", str(error), session=session, settings=as_record(plan.config))
        return TrialEnd("failed", str(error), milestones.last | {"step": milestones.step})


def _await_end_of_orphan(location: str, session: str, should_stop: Callable[[], bool]) -> None:
    """Wait, for a limited time, while a process of a killed driver still writes the run directory."""
    give_up = time.monotonic() + _ORPHAN_PATIENCE_S
    while time.monotonic() < give_up and not should_stop():
        status = Run(location).status
        if status is None or status.get("session") == session or not is_alive(status):
            return
        time.sleep(0.2)


def record_end(
    location: str, status: Status, reason: str, *, session: str, settings: Mapping[str, Any] | None = None
) -> None:
    """Record in a trial's run directory how it ended, if the training loop could not.

    Args:
        location: folder or URL of the run directory, which is created if missing.
        status: how the trial ended.
        reason: why it ended.
        session: identifies this launch of the sweep.
        settings: nested settings for config.yaml, if there is none yet.
    """
    with contextlib.suppress(RunDirectoryError), open_run(location, session=session) as run:
        if settings is not None and run.read_config() is None:
            run.write_config(settings, environment())
        run.set_status(status, reason)


def record_refusal(
    sweep: SweepConfig, location: str, name: str, parameters: Mapping[str, Any], reason: str, session: str
) -> None:
    """Write the run directory of a trial whose settings were refused: the settings, and why it failed."""
    nested: dict[str, Any] = {}
    for key, value in (run_settings(sweep, parameters) | _own_settings(sweep, name)).items():
        *groups, last = key.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = as_text(value)
    record_end(location, "failed", reason, session=session, settings=nested)


def score_in_full(
    sweep: SweepConfig, location: str, step: int, device: Literal["cpu", "cuda"], threads: int
) -> dict[str, Any]:
    """Score a finalist's checkpoint by the whole protocol of `evaluate`, write its scores.json, and return the scores.

    Args:
        sweep: settings of the sweep, with the task.
        location: folder or URL of the run directory.
        step: step of the checkpoint.
        device: where to compute.
        threads: threads for computation on CPUs.

    Raises:
        DataError, RunDirectoryError: the data or the run cannot be used.
    """
    torch.set_num_threads(threads)
    score, cache, pool, here = sweep.score, sweep.train.data.cache, LocalPool(1), join_world(device).device
    scores: dict[str, Any] = {}
    run = Run(location)
    if score.task != "none":
        settings = EvaluateConfig(task=score.task, data=score.data, step=str(step), cache=cache, keep_features=False)
        entries = evaluate(settings, run, here, pool, _show_nothing, _say_nothing)
        scores["representation"] = _share(entries[0]["metrics"]["accuracy"])
    if score.count:
        loaded = load_generator(run, step)
        entry = _fidelity(FRECHET_SAMPLES, cache, run, here).score(loaded.network) | loaded.entry(step)
        run.add_scores("fidelity", [entry])
        scores |= {name: _plain(metric) for name, metric in entry["metrics"].items() if name in OF_SAMPLES}
    return scores


__all__ = [
    "Milestones",
    "TrialEnd",
    "TrialPlan",
    "milestone_steps",
    "plan_trial",
    "record_end",
    "record_refusal",
    "run_trial",
    "score_in_full",
]
