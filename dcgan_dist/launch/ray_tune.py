"""Run a sweep with Ray Tune: trials in parallel on the cluster of this process, or on one started for the sweep.

Tune schedules the trials: it assigns CPUs and GPUs, passes milestones to the scheduler, and stops the trials that the
scheduler gives up. The ledger (`sweeps/ledger.py`) is the only record of the sweep: each trial is recorded there before
it starts and when it has ended, and a sweep that is started again resumes from it. Tune's own record is in a temporary
folder and is not used.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.schedulers.pbt import _PBTTrialState
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.text import Text

from dcgan_dist.config import is_rooms, override
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.errors import ClusterError, ConfigError, DataError, DcganDistError, InputError, Stopped, TrialsFailed
from dcgan_dist.launch.capacity import Capacity
from dcgan_dist.launch.connection import connected_cluster, last_line
from dcgan_dist.launch.event_bus import EventBus, Handle, Line, PostedStream, Progress, Sender, WithoutRay, show
from dcgan_dist.launch.locations import absolute_input, absolute_output, is_url
from dcgan_dist.runs.lease import mark_run
from dcgan_dist.stopping import on_signals
from dcgan_dist.storage.locks import lock
from dcgan_dist.sweeps.best import write_best
from dcgan_dist.sweeps.exploit import SourceCheckpoint, check_space, explore, source_checkpoint
from dcgan_dist.sweeps.importance import importance
from dcgan_dist.sweeps.ledger import SWEEP_NAME, Ledger, check_directory, trial_location
from dcgan_dist.sweeps.objective import ranked
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.proposals import Proposals, proposals
from dcgan_dist.sweeps.record import TrialRecord
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.table import LiveTable, figure, make_console

if TYPE_CHECKING:  # they need torch, which only trials do
    from dcgan_dist.sweeps.trial import Milestones, TrialPlan

# Values that the user has set are kept.
TUNE_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keeps the meaning of the user's relative paths
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise ray.init warns about a future change
    "RAY_AIR_NEW_OUTPUT": "0",  # otherwise Tune prints its own tables
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # otherwise Tune writes its own files for each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the trials handle signals, by saving a checkpoint
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no score
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's record of the sweep is not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
SOURCE_NAME = "checkpoint.json"  # file in Tune's checkpoint: location, step and digest of the run's checkpoint
QUANTILE = 0.25  # share of a population that is replaced at a milestone, and share from which it is replaced
METRIC, TIME = "objective", "milestone"  # keys in Tune's results
WORST = -1e12  # metric of a trial without an objective: schedulers compare and average finite numbers
_SCRATCH = "dcgan_dist-tune-"  # prefix of temporary folders for Tune's files
_NEW_S = 60.0  # younger folders are not removed
_POLL_S = 0.2  # poll interval of a waiting process
_TAKE_S = 0.5  # interval at which the driver takes the events of the trials

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Launch:
    """The arguments of every trial's process.

    Attributes:
        plan: the sweep, with absolute paths.
        location: folder or URL of the sweep.
        session: identifies this launch.
        device: device of the trials.
        bus: event bus, to which trials post progress, and from which they learn that the sweep is being stopped.
    """

    plan: SweepPlan
    location: str
    session: str
    device: Literal["cpu", "cuda"]
    bus: Handle


# Conversion for Tune. The configuration of a trial has its name, the steps of the known milestones, and its values.


def to_tune(record: TrialRecord) -> dict[str, Any]:
    """Return the configuration of a trial in Tune."""
    known = {milestone["step"] for milestone in record.milestones}
    if record.parent is not None:
        # The milestone at which it was replaced; a kill may have prevented its entry in the ledger.
        known.add(record.parent["step"])
    return {"trial": record.trial, "known": sorted(known), "parent": record.parent, **record.parameters}


def from_tune(config: dict[str, Any]) -> tuple[str, list[int], dict[str, Any] | None, Parameters]:
    """Return the name, the steps of the known milestones, the source checkpoint, and the values of a trial."""
    rest = dict(config)
    return rest.pop("trial"), rest.pop("known"), rest.pop("parent"), rest


def tune_result(result: dict[str, Any], ended: str = "", reason: str = "") -> dict[str, Any]:
    """Return the result for Tune of a milestone, or of the end."""
    objective = result.get("objective")
    return {
        TIME: result["milestone"],
        METRIC: WORST if objective is None else objective,
        "report": result,
        "ended": ended,
        "reason": reason,
        "done": bool(ended),
    }


# In the process of a trial


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class TrialThread:
    """A trial in its own thread, which waits at each milestone for the decision whether it continues."""

    def __init__(self, work: Callable[[Callable[[dict[str, Any]], bool]], dict[str, Any]]) -> None:
        """Prepare to run `work`, which calls its argument with the result of each milestone and returns the last."""
        self._work = work
        self._results: queue.Queue[dict[str, Any] | _Raised] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._thread: threading.Thread | None = None

    def _deliver(self, result: dict[str, Any]) -> bool:
        self._results.put(result)
        return self._answers.get()

    def _run(self) -> None:
        try:
            self._results.put(self._work(self._deliver))
        except BaseException as error:  # noqa: BLE001  # raised again by `next`
            self._results.put(_Raised(error))

    def next(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """Continue to the next milestone or the end, and return its result; call `meanwhile` repeatedly.

        Raises:
            Exception: the error of the trial.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
            self._thread.start()
        else:
            self._answers.put(True)
        while True:
            try:
                result = self._results.get(timeout=_POLL_S)
            except queue.Empty:
                meanwhile()
                continue
            if isinstance(result, _Raised):
                raise result.error
            return result

    def stop(self) -> None:
        """Make the trial end at the milestone where it waits, and wait for its end; do nothing if it has ended."""
        if self._thread is not None:
            self._answers.put(False)
            self._thread.join()


class TrialActor(tune.Trainable):
    """Tune's trainable: a process that runs one trial after another. A step of Tune is a milestone of the trial."""

    def setup(self, config: dict[str, Any], launch: Launch | None = None) -> None:
        """Prepare the first trial of this process."""
        from dcgan_dist.parallel import yield_idle_cores

        assert launch is not None
        yield_idle_cores()
        self._launch = launch
        self._sender = Sender(launch.bus)
        self._stop_asked = launch.bus.stopped.remote()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the previous trial, and prepare the next one."""
        self._trial.stop()
        if not gc.get_freeze_count():
            gc.freeze()  # exclude the loaded modules from the collection at the end of each trial
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """End the trial; the process is not needed any more."""
        self._trial.stop()

    def _begin(self, config: dict[str, Any]) -> None:
        self._name, self._known, self._parent, self._parameters = from_tune(config)
        self._passed = 0
        self._stopping = threading.Event()
        self._progress = (0, 0)
        self._trial = TrialThread(self._work)

    def step(self) -> dict[str, Any]:
        """Train to the next milestone or the end."""
        result = self._trial.next(self._meanwhile)
        self._passed = result["report"]["step"]
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write a reference to the run's checkpoint of the current milestone; the checkpoint itself is not copied."""
        source = source_checkpoint(trial_location(self._launch.location, self._name), self._passed)
        Path(checkpoint_dir, SOURCE_NAME).write_text(json.dumps(asdict(source)), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: a trial resumes from its run directory, or from the `parent` in its configuration."""

    def _meanwhile(self) -> None:
        """Receive the request to stop, and post the progress."""
        asked, _ = ray.wait([self._stop_asked], timeout=0)
        if asked:
            self._stopping.set()
        if self._progress[0]:
            self._sender.post(Progress(self._name, *self._progress))
            self._progress = (0, 0)

    def _on_progress(self, step: int, steps: int) -> None:
        self._progress = (step, steps)

    def _work(self, deliver: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        launch = self._launch
        with _output_to(self._sender if launch.plan.config.verbose else None, self._name):
            return run_trial_here(
                launch,
                self._name,
                self._parameters,
                self._known,
                deliver,
                self._stopping.is_set,
                self._on_progress,
                parent=self._parent,
            )


@contextlib.contextmanager
def _output_to(sender: Sender | None, name: str) -> Iterator[None]:
    """Send the output of a trial to the driver; without a sender, it goes to the logs of Ray's workers."""
    if sender is None:
        yield
        return
    out = PostedStream(sender, prefix=f"{name}: ")
    err = PostedStream(sender, to_stderr=True, prefix=f"{name}: ")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.finish()
            err.finish()


def run_trial_here(
    launch: Launch,
    name: str,
    parameters: Parameters,
    known: list[int],
    deliver: Callable[[dict[str, Any]], bool],
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    parent: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a trial to its end, in this process or in workers that it starts; return the result for Tune."""
    from dcgan_dist.sweeps.trial import plan_trial, record_refusal, run_trial

    sweep, location = launch.plan.config, trial_location(launch.location, name)
    try:
        plan = plan_trial(launch.plan, name, location, parameters)
    except InputError as error:
        record_refusal(sweep, location, name, parameters, str(error), launch.session)
        return tune_result({"milestone": 0, "step": 0}, "failed", str(error))
    end = run_trial(
        plan,
        lambda result: deliver(tune_result(result)),
        should_stop,
        session=launch.session,
        known=known,
        device=launch.device if sweep.train.cluster.workers == 1 else "cpu",
        threads=max(1, int(sweep.cpus_per_trial)),
        on_progress=on_progress,
        source=None
        if parent is None
        else SourceCheckpoint(trial_location(launch.location, parent["trial"]), parent["step"], parent["digest"]),
        train_by=None if sweep.train.cluster.workers == 1 else partial(train_in_workers, launch, plan, should_stop),
    )
    return tune_result(end.result, end.status, end.reason)


def train_in_workers(launch: Launch, plan: TrialPlan, should_stop: Callable[[], bool], milestones: Milestones) -> None:
    """Train a trial in workers of Ray Train; they continue while this process, which has no reserved CPU, scores.

    If the trial does not continue after a milestone, its workers are ended at once, because their work since then is
    not needed.
    """
    from dcgan_dist.launch.ray_train import run_on_ray

    run_on_ray(
        override(plan.config, {"cluster.wait": True}),  # resources of a trial that has just ended become free soon
        plan.location,
        milestones.report,
        should_stop=should_stop,
        gpus_per_worker=launch.plan.config.gpus_per_trial,
        session=launch.session,
        quiet=not launch.plan.config.verbose,
    )


# In the driver: the searcher, the callback and the schedulers of Tune


class TrialSearch(Searcher):
    """Tune's searcher: first the unfinished trials of an earlier launch, then new ones."""

    def __init__(self, ledger: Ledger, source: Proposals) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._ledger, self._source = ledger, source
        self._open = deque(record for record in ledger.records.values() if not record.has_ended)
        self.left = len(self._open) + max(0, source.total - len(ledger.records))
        self.is_stopped = False

    def suggest(self, trial_id: str) -> Any:
        """Record the next trial in the ledger, and return its configuration."""
        if self.is_stopped or not self.left:
            return Searcher.FINISHED
        self.left -= 1
        if self._open:
            return to_tune(self._ledger.start(self._open.popleft()))
        name, number = self._ledger.next_name(), len(self._ledger.records)
        return to_tune(self._ledger.start(TrialRecord(trial=name, parameters=self._source.propose(name, number))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `LedgerCallback` passes the records to the search."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the record of the sweep."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class LedgerCallback(tune.Callback):
    """Tune's callback that records the events of trials in the ledger."""

    def __init__(self, ledger: Ledger, source: Proposals, launch: Launch, between_steps: Callable[[], None]) -> None:
        self._ledger, self._source, self._launch, self._between_steps = ledger, source, launch, between_steps
        self._took = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a milestone. If the result is `done` although the trial has not ended, the scheduler stopped it."""
        name, report = trial.config["trial"], result["report"]
        if "objective" in report:
            self._ledger.update(name, **_milestone_fields(self._ledger.records[name], report))
        ended, reason = result["ended"], result["reason"]
        if result["done"] and not ended:
            ended, reason = "stopped", report["if_stopped"]
        elif ended == "stopped":
            return  # stopped with the whole sweep: it will resume with it, so it has not ended
        if ended:
            self._finish(name, ended, reason)

    def _finish(self, name: str, status: Any, reason: str) -> None:
        self._source.tell(self._ledger.finish(name, status, reason))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record another attempt of a trial whose process died; the attempt gets the milestones recorded so far."""
        record = self._ledger.records[trial.config["trial"]]
        trial.config["known"] = to_tune(self._ledger.start(record))["known"]
        self._ledger.update(record.trial, reason=f"attempt {record.attempts} ended: {_describe_failure(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial has failed on all attempts."""
        name = trial.config["trial"]
        reason = f"{_describe_failure(trial)}, on each of {self._ledger.records[name].attempts} attempts"
        with contextlib.suppress(DcganDistError):
            mark_run(trial_location(self._launch.location, name), "failed", reason, session=self._launch.session)
        self._finish(name, "failed", reason)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Handle signals and, every half second, the events of the trials."""
        self._between_steps()
        if time.monotonic() - self._took < _TAKE_S:
            return
        self.take()
        self._took = time.monotonic()

    def take(self) -> None:
        """Handle the events that the trials have posted."""
        for event in ray.get(self._launch.bus.take.remote(0.001)):
            match event:
                case Line():
                    show(event)
                case Progress() if not self._ledger.records[event.trial].has_ended:
                    self._ledger.update(event.trial, step=event.step, steps=event.steps)


def _milestone_fields(record: TrialRecord, report: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that a milestone changes."""
    milestone = {
        "step": report["step"],
        "objective": report["objective"],
        "verdict": report["verdict"],
        "scores": {name: score["value"] for name, score in report["scores"].items()},
    }
    before = tuple(each for each in record.milestones if each["step"] < report["step"])
    fields = {key: report[key] for key in ("step", "steps", "scores", "objective", "verdict", "verdict_reason")}
    return {**fields, "milestones": (*before, milestone)}


def _describe_failure(trial: Any) -> str:
    """Return in one line why a trial failed."""
    text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    if not text or "actor died" in text or "worker process has died" in text:
        return "its process died (killed, crashed or out of memory)"
    return text.strip().splitlines()[-1][:300]


def make_scheduler(config: SweepConfig, records: Iterable[TrialRecord]) -> TrialScheduler:
    """Return Tune's scheduler for a sweep, with the milestones that trials reached before a restart."""
    scheduler: TrialScheduler
    if config.schedule == "asha":
        scheduler = _SuccessiveHalving(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            max_t=config.milestones + 1,  # at the last milestone the trial ends itself; the scheduler must not stop it
            grace_period=1,
            reduction_factor=config.reduction,
        )
    elif config.schedule == "median":
        scheduler = _MedianRule(time_attr=TIME, metric=METRIC, mode="max", grace_period=1, min_samples_required=3)
    else:
        return FIFOScheduler()
    _replay(scheduler, records)
    return scheduler


@dataclass(frozen=True)
class _EarlierTrial:
    """A trial of an earlier launch, with the only attribute that the schedulers use."""

    trial_id: str


def _replay(scheduler: Any, records: Iterable[TrialRecord]) -> None:
    passed = [
        (number, record.trial, milestone["objective"])
        for record in records
        # The last entry of a diverged trial is the step at which it diverged, not a milestone.
        for number, milestone in enumerate(record.milestones[: -1 if record.status == "diverged" else None], start=1)
    ]
    for trial in sorted({trial for _, trial, _ in passed}):
        scheduler.on_trial_add(None, _EarlierTrial(trial))
    for number, trial, objective in sorted(passed, key=lambda each: each[:2]):
        value = WORST if objective is None else objective
        scheduler.on_trial_result(None, _EarlierTrial(trial), {TIME: number, METRIC: value})


class _WithoutTies(TrialScheduler):
    """Ranks each trial without an objective below all earlier ones: with ties, all of them would continue."""

    _lacking = 0

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result[METRIC] == WORST:
            self._lacking += 1
            result = {**result, METRIC: WORST - self._lacking}
        return str(super().on_trial_result(tune_controller, trial, result))


class _SuccessiveHalving(_WithoutTies, AsyncHyperBandScheduler):
    """Asynchronous successive halving (ASHA), in which a resumed trial keeps its earlier results."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if isinstance(trial, _EarlierTrial):
            return
        for bracket in self._brackets:
            for _, recorded in bracket._rungs:
                if trial.config["trial"] in recorded:
                    recorded[trial.trial_id] = recorded.pop(trial.config["trial"])


class _MedianRule(_WithoutTies, MedianStoppingRule):
    """The median stopping rule, in which a resumed trial keeps its earlier results, and no trial is paused."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        earlier = None if isinstance(trial, _EarlierTrial) else _EarlierTrial(trial.config["trial"])
        if earlier in self._results:
            self._results[trial] = self._results.pop(earlier)

    def _best_result(self, trial: Any) -> float:
        """Return a trial's best result; if its newest result has no objective, return that one."""
        values = [float(result[METRIC]) for result in self._results[trial]]
        return values[-1] if values[-1] <= WORST else max(values)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return str(TrialScheduler.CONTINUE)


class _Population(PopulationBasedTraining):
    """Population based training: at every milestone the worst quarter continues from copies of the best quarter.

    All trials wait for each other at each milestone; if the cluster cannot run all at once, they take turns. So a
    source checkpoint has the same step as the trial that copies it, and is never replaced later. `explore` varies the
    values, which are recorded in the ledger together with the parent before the trial continues, so that a restart can
    repeat an interrupted copy.
    """

    def __init__(self, ledger: Ledger, most: int) -> None:
        super().__init__(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            perturbation_interval=1,
            quantile_fraction=QUANTILE,
            hyperparam_mutations={},
            custom_explore_fn=dict,  # Tune needs one; the values come from `_get_new_config`
            log_config=False,
            synch=True,
        )
        self._ledger, self._most = ledger, most
        open_ = [len(record.milestones) for record in ledger.records.values() if not record.has_ended]
        # The next milestone of the trials that are furthest; the others catch up first.
        self._next_perturbation_sync = 1 + max([0, *open_])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial; the base class refuses trials of a searcher, because it changes their values."""
        self._trial_state[trial] = _PBTTrialState(trial)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the configuration with which a trial continues from another trial's checkpoint."""
        checkpoint: Any = self._trial_state[trial_to_clone].last_checkpoint
        with checkpoint.as_directory() as folder:
            source = SourceCheckpoint(**json.loads(Path(folder, SOURCE_NAME).read_text(encoding="utf-8")))
        records, name = self._ledger.records, _name_of(trial)
        # A different number for each trial and milestone, so that each draw is different and can be repeated.
        number = list(records).index(name) + len(records) * source.step
        values = explore(self._ledger.space, records[source.trial].parameters, self._ledger.config.train.seed, number)
        made = self._ledger.start(
            replace(records[name], parameters=values, parent=source.as_parent(), step=source.step)
        )
        return to_tune(made), {}

    def _quantiles(self) -> tuple[list[Any], list[Any]]:
        """Return the worst and the best quarter; of the worst, only trials that are worse than all of the best."""
        lower, upper = super()._quantiles()
        bar = min((self._trial_state[trial].last_score or 0.0 for trial in upper), default=0.0)
        return [trial for trial in lower if (self._trial_state[trial].last_score or 0.0) < bar], upper

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the trial that is furthest behind; None if the maximum number of trials is running."""
        running = sum(trial.status == "RUNNING" for trial in tune_controller.get_trials())
        return None if running >= self._most else super().choose_trial_to_run(tune_controller)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let trials continue that waited for a trial that has ended."""
        self._release(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Let trials continue that waited for a trial that has failed."""
        self._release(tune_controller, trial)

    def _release(self, tune_controller: Any, gone: Any) -> None:
        state = self._trial_state[gone]
        state.last_score = None  # neither a source nor to be replaced
        state.last_train_time = max(state.last_train_time, int(self._next_perturbation_sync))  # do not wait for it
        waiting = [trial for trial in tune_controller.get_live_trials() if trial is not gone]
        times = [self._trial_state[trial].last_train_time for trial in waiting]
        if waiting and min(times) >= self._next_perturbation_sync:
            result: Any = self._trial_state[waiting[0]].last_result
            self.on_trial_result(tune_controller, waiting[0], result)


# The sweep as a whole


def check_sweep(config: SweepConfig) -> SweepPlan:
    """Check the settings of a sweep before anything is written; return the plan of the sweep.

    Raises:
        ConfigError: no sweep can be made of the settings; the message names one.
    """
    plan = SweepPlan.of(config)
    plan.objective.check(config.score)
    if config.schedule == "pbt":
        check_space(plan.space)
        if config.search == "optuna":
            raise ConfigError("search is 'optuna', but schedule is 'pbt', which changes values on the way: take random")
    if config.train.training.device == "cuda" and not config.gpus_per_trial:
        raise ConfigError("training.device is 'cuda', but gpus_per_trial is 0: give a share of a GPU such as 0.5")
    if config.train.run_dir is not None:
        raise ConfigError(
            f"run_dir is {config.train.run_dir!r}: each trial has its own; sweep_dir says where the sweep lies"
        )
    return replace(plan, config=absolute_paths(config))


def check_data(plan: SweepPlan) -> None:
    """Check that this host can read the data; otherwise every trial would fail.

    Raises:
        DataError: `data.path` or `score.data` cannot be read.
    """
    config, searched = plan.config, plan.space.keys
    # Rooms need no check: the first trial that needs them makes them.
    if "data.path" not in searched and not is_rooms(config.train.data.path):
        open_dataset(
            config.train.data.path,
            image_size=None if "model.image_size" in searched else config.train.model.image_size,
            channels=None if "model.channels" in searched else config.train.model.channels,
            cache=config.train.data.cache,
            image_member=config.train.data.image_member,
        )
    data = config.score.data
    if data is not None and not is_url(data) and not is_rooms(data) and not Path(data).exists():
        raise DataError(f"score.data is {data!r}, which does not exist: give a folder or file that score.task can read")


def trials_at_once(config: SweepConfig, capacity: Capacity) -> int:
    """Return the number of trials that fit on the cluster at the same time, at most `concurrent`.

    Raises:
        ClusterError: not even one fits.
    """
    cpus, gpus, workers = config.cpus_per_trial, config.gpus_per_trial, config.train.cluster.workers
    slots = capacity.slots(cpus, gpus)
    if slots < workers:
        each = f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")
        raise ClusterError(
            f"cluster.workers is {workers}, {each} each, but {capacity}, room for {slots}: take fewer workers, or "
            "less --cpus_per_trial or --gpus_per_trial"
        )
    return min(slots // workers, config.concurrent or slots)


def absolute_paths(config: SweepConfig) -> SweepConfig:
    """Return the settings with paths that mean the same in every process."""
    inputs = {"data.path": config.train.data.path, "score.data": config.score.data}
    outputs = {"data.cache": config.train.data.cache, "cluster.storage": config.train.cluster.storage}
    changes = {key: absolute_input(value) for key, value in inputs.items() if value is not None}
    return override(config, changes | {key: absolute_output(value) for key, value in outputs.items() if value})


def run_sweep(config: SweepConfig, location: str, show_results: Callable[[Ledger], None] | None = None) -> Ledger:
    """Run or resume a sweep in a folder or URL, and return its closed ledger.

    Inside a Ray job, its cluster is used; otherwise the one that RAY_ADDRESS or `ray start` names; otherwise a cluster
    is started on this machine, and ended with the sweep. SIGTERM and SIGINT make the trials stop after a last
    checkpoint; a second signal ends the sweep at once. In both cases the same call resumes the sweep.

    Args:
        config: the settings.
        location: folder or URL of the sweep.
        show_results: called with the closed ledger at the end, also after a signal.

    Raises:
        ConfigError: the space, the objective or the scores cannot be used.
        DataError: this is the only host, and cannot read the data.
        ClusterError: the resources of the cluster are not enough for a trial, or its hosts do not share the folder.
        RunDirectoryError: the folder is in use, or is that of another sweep.
        TrialsFailed: all trials failed.
        Stopped: ended by a signal.
    """
    plan, location = check_sweep(config), absolute_output(location)
    config = plan.config
    check_directory(plan, location)
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    console = make_console()  # for the standard output before it is redirected
    with contextlib.redirect_stdout(WithoutRay(sys.stdout)), connected_cluster(), quiet_ray(config.verbose):
        capacity = Capacity.of_cluster()
        most = trials_at_once(config, capacity)
        in_steps = plan
        if capacity.hosts == 1:  # in a cluster of several hosts, the driver's host may not have the data
            check_data(plan)
            in_steps = plan.in_steps()
        if capacity.hosts > 1 and not is_url(location) and not config.train.cluster.storage:
            raise ClusterError(
                "cluster.storage is left out, but the cluster has several hosts: give a folder or URL that all of them "
                "share, such as --cluster.storage s3://BUCKET/sweeps"
            )
        with Ledger.open(plan, location) as ledger:
            if capacity.hosts > 1 and not is_url(location):
                _require_shared(location)
            try:
                _Sweep(in_steps, ledger, most).run(console)
                ledger.close("finished")
            except Stopped as stop:
                ledger.close("stopped", str(stop))
                raise
            finally:
                if show_results is not None and ledger.records:
                    show_results(ledger)
            return ledger


@contextlib.contextmanager
def quiet_ray(verbose: bool) -> Iterator[None]:
    """Silence Ray's loggers in the block, unless `verbose`."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO if verbose else logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a folder for Tune's files, which is locked while it is used; remove folders of killed drivers."""
    for old in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _NEW_S:  # a newer one may be about to be locked
                with _locked(old):
                    shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as folder, _locked(Path(folder)):
        yield folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it at the latest when this process ends.

    Raises:
        OSError: another process holds it, or the folder cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _sees(path: str) -> str | None:
    """Return None if this host sees a file, otherwise the host's name."""
    return None if Path(path).exists() else socket.gethostname()


def _require_shared(location: str) -> None:
    look: Any = ray.remote(_sees)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    blind = ray.get(
        [
            look.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                f"{location}/{SWEEP_NAME}"
            )
            for node in nodes
        ]
    )
    for host in filter(None, blind):
        raise ClusterError(
            f"host {host} does not see the driver's files in {location!r}; give a --cluster.storage that all hosts "
            "share, or a URL such as s3://BUCKET/sweeps"
        )


def _score_finalist(launch: Launch, trial: str, step: int) -> dict[str, Any]:
    """Score a trial in full, in its own process."""
    from dcgan_dist.parallel import yield_idle_cores

    yield_idle_cores()
    from dcgan_dist.sweeps.trial import score_in_full

    sweep = launch.plan.config
    threads = max(1, int(sweep.cpus_per_trial))
    return score_in_full(sweep, trial_location(launch.location, trial), step, launch.device, threads)


def _name_of(trial: Any) -> str:
    return str(trial.config["trial"])


class _Sweep:
    """The driver's side of one sweep."""

    def __init__(self, plan: SweepPlan, ledger: Ledger, most: int) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        bus = ray.remote(EventBus).options(num_cpus=0, scheduling_strategy=here).remote()
        config = plan.config
        self._config, self._ledger, self._most = config, ledger, most
        self._launch = Launch(
            plan=plan,
            location=ledger.location,
            session=uuid.uuid4().hex,
            device="cuda" if config.gpus_per_trial else "cpu",
            bus=bus,
        )
        ended = [record for record in ledger.records.values() if record.has_ended]
        self._source = proposals(config, ledger.space, ledger.objective, ended)
        self._search = TrialSearch(ledger, self._source)
        self._signals: list[int] = []

    def run(self, console: Console) -> None:
        """Run the trials, and score the best ones in full.

        Raises:
            TrialsFailed: all trials failed.
            Stopped: a signal ended the sweep.
        """
        config, location, total = self._config, self._ledger.location, self._source.total
        done = sum(record.has_ended for record in self._ledger.records.values())
        begins = f"resuming after {done} of" if self._ledger.resumed else "starting"
        console.print(
            Text(
                f"{begins} {total} trials: {config.search}, {config.schedule}, {min(self._most, total)} at a time on "
                f"{self._launch.device}; sweep directory {location}"
            ),
            soft_wrap=True,
        )
        with on_signals(self._signals.append), LiveTable(self._ledger, console):
            if self._search.left:
                with scratch_folder() as scratch:
                    self._tune(scratch)
            if not self._signals:
                self._conclude(console)
        if self._signals:
            over = sum(record.has_ended for record in self._ledger.records.values())
            raise Stopped(
                self._signals[0],
                f"stopped with {over} of {total} trials done; the same command resumes the sweep: {location}",
            )

    def _conclude(self, console: Console) -> None:
        """Score the finalists, compute the importance of settings, and write best.yaml."""
        records = list(self._ledger.records.values())
        if all(record.status == "failed" for record in records):
            raise TrialsFailed(f"all {len(records)} trials failed, {records[0].trial} because: {records[0].reason}")
        self._score_finalists(console)
        if not self._signals:
            self._ledger.importance = importance(self._ledger.records.values())
            write_best(self._ledger)

    def _score_finalists(self, console: Console) -> None:
        """Score the best trials by the whole protocol, each with the resources of a trial."""
        if self._config.score.task == "none" and not self._config.score.count:
            return  # only stability, for which there is no fuller protocol
        best = ranked(
            replace(record, full_objective=None)
            for record in self._ledger.records.values()
            if record.status == "finished" and record.objective is not None
        )
        remote: Any = ray.remote(_score_finalist).options(
            num_cpus=self._config.cpus_per_trial, num_gpus=self._config.gpus_per_trial
        )
        left = {
            remote.remote(self._launch, record.trial, record.step): record.trial
            for record in best[: self._config.score.finalists]
            if self._ledger.records[record.trial].full_objective is None
        }
        if left:
            console.print(Text(f"scoring in full: {', '.join(left.values())}"), soft_wrap=True)
        while left and not self._signals:
            done, _ = ray.wait(list(left), timeout=_TAKE_S)
            for reference in done:
                trial = left.pop(reference)
                self._take_full_scores(trial, reference)
                if (value := self._ledger.records[trial].full_objective) is not None:
                    console.print(Text(f"{trial} in full: {figure(value)}; {len(left)} to go"), soft_wrap=True)
        for reference in left:
            ray.cancel(reference, force=True)

    def _take_full_scores(self, trial: str, reference: Any) -> None:
        try:
            scores = ray.get(reference)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else last_line(error)
            print(f"{trial} could not be scored in full: {cause}", file=sys.stderr, flush=True)
            return
        record = self._ledger.records[trial]
        values = record.values | {name: score["value"] for name, score in scores.items()}
        objective = self._ledger.objective.value(values, record.verdict)
        self._ledger.update(trial, full_scores=scores, full_objective=objective)

    def _tune(self, scratch: str) -> None:
        count = self._search.left
        callback = LedgerCallback(self._ledger, self._source, self._launch, self._handle_signals)
        is_population = self._config.schedule == "pbt"
        tune.run(
            tune.with_parameters(TrialActor, launch=self._launch),
            name="sweep",
            storage_path=scratch,
            resources_per_trial=self._resources(),
            num_samples=count,
            max_concurrent_trials=count if is_population else min(self._most, count),  # a population takes turns
            search_alg=self._search,
            scheduler=_Population(self._ledger, self._most)
            if is_population
            else make_scheduler(self._config, self._ledger.records.values()),
            reuse_actors=True,
            max_failures=self._config.trial_failures,
            callbacks=[callback],
            verbose=0,
            raise_on_failed_trial=False,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        )
        callback.take()

    def _resources(self) -> dict[str, float]:
        if self._config.train.cluster.workers > 1:
            return {"cpu": 0, "gpu": 0, "memory": 1 << 20}  # the workers request their own; Tune needs some resource
        return {"cpu": self._config.cpus_per_trial, "gpu": self._config.gpus_per_trial}

    def _handle_signals(self) -> None:
        """Stop the trials after a first signal, and the sweep at once after a second one.

        It is called between the steps of Tune, because an exception from a signal handler inside Ray's own code would
        be taken for an error of Ray.
        """
        if len(self._signals) > 1:
            stop = Stopped(
                self._signals[-1], "ended at once by a signal; the same command resumes from the newest checkpoints"
            )
            for record in self._ledger.records.values():
                with contextlib.suppress(DcganDistError):  # the trials may be killed before they can record it
                    where = trial_location(self._ledger.location, record.trial)
                    mark_run(where, "stopped", str(stop), session=self._launch.session)
            raise stop
        if self._signals and not self._search.is_stopped:
            self._search.is_stopped = True
            self._launch.bus.stop.remote()
