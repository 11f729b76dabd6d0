"""Training in several Ray Train workers: on the cluster this process is in, or one started for the run.

The driver (this process) starts one worker per rank, prints what they print, and turns the way they ended into the
same errors that training in one process raises. Checkpoints and metrics are the run directory's; Ray's own record of
the run is not used and not kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.util
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import (  # the public callback hears of no start
    ControllerCallback,
    WorkerGroupCallback,
)
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dcgan_dist.config import Config, override
from dcgan_dist.distributed import join_world, leave_world
from dcgan_dist.errors import ClusterError, DcganDistError, Diverged, InputError, Stopped, WorkerFailed
from dcgan_dist.launch.capacity import Capacity, resources_per_worker
from dcgan_dist.launch.connection import connected_cluster, last_line
from dcgan_dist.launch.guard import start_guard
from dcgan_dist.launch.locations import absolute_input, absolute_output, is_url
from dcgan_dist.launch.switchboard import (
    Broke,
    Event,
    Handle,
    Joined,
    Left,
    Line,
    Lost,
    Metrics,
    Placed,
    PostedStream,
    Sender,
    Settled,
    Started,
    Switchboard,
    WithoutRay,
    show,
)
from dcgan_dist.launch.torch_backend import NamedInterfaceConfig
from dcgan_dist.printing import tell
from dcgan_dist.runs.documents import Row
from dcgan_dist.runs.lease import mark_run
from dcgan_dist.stopping import Interrupted, on_signals
from dcgan_dist.training.trainer import train

# Ray's defaults notice a lost host after 10 minutes. A value of the user's own is left as it is.
RAY_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the user's keep their meaning
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each run, for what no worker here listens to
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every line twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # it shows what every library logs
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it, ray.init prints a warning about its own future
}
PEER_PATIENCE_S = 5  # time for a worker that lost its peers to learn why
SETTLE_PATIENCE_S = {True: 10, False: 120}  # for the other workers, after bad input, and where a checkpoint is saved
CLUSTER_PATIENCE_S = 30  # for an answer, before asking whether the cluster is there at all: it may be busy
END_PATIENCE_S = (
    600  # for the end of Ray Train, which starts on a busy machine in minutes; a lost cluster shows earlier
)
NEEDLESS = {"PlacementGroupCleanerCallback", "DatasetsCallback"}  # of Ray Train's callbacks, each with a process a run
STARTS = 10  # attempts of a minute each to find the CPUs or GPUs for a restarted group
WAIT_MESSAGE_S = 60

ReportHook = Callable[[Row, str | None], None]


@dataclass(frozen=True)
class _Assignment:
    """What every worker is told."""

    config: Config
    run_location: str
    session: str
    device: Literal["cpu", "cuda"]
    gpus: float  # of each worker
    board: Handle
    marker: str | None  # a file that every host must see, for storage that is a folder


class _BoardReporter:
    """The reporter of a worker: the leader's log lines go to the driver, whose request to stop comes back."""

    def __init__(self, board: Handle, sender: Sender, is_leader: bool) -> None:
        self._sender = sender
        self._is_leader = is_leader
        self._stopped: Future[bool] = board.stopped.remote().future()

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Pass a log line on, without waiting."""
        if self._is_leader:
            self._sender.post(Metrics(metrics, checkpoint_dir))

    def should_stop(self) -> bool:
        """Whether the driver asked to stop; a look at local memory, no message."""
        return self._stopped.done()


class _StartNotice(ControllerCallback, WorkerGroupCallback):
    """In Ray Train's controller: gives the driver the means to end it, and to free what its workers hold."""

    def __init__(self, board: Handle, guard: Handle) -> None:
        self._board, self._guard = board, guard

    def after_controller_start(self, *_context: object) -> None:
        """Post the controller's handle."""
        Sender(self._board).post(Started(ray.get_runtime_context().current_actor))

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Post the group's placement, before its workers do anything."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get([self._guard.hold.remote(group), Sender(self._board).post(Placed(group))])


class _FailureNotice(ray.train.UserCallback):
    """In Ray Train's controller: tells the driver of every failed worker, also of those that are replaced."""

    def __init__(self, board: Handle) -> None:
        self._board = board

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Post the kind of each failure; the text of Ray's exceptions runs to pages."""
        Sender(self._board).post(Lost({rank: type(error).__name__ for rank, error in worker_exceptions.items()}))


def _work(assignment: _Assignment) -> None:
    """Train as one worker of the group; what no restart would change is settled with the driver, not raised."""
    board, rank = assignment.board, ray.train.get_context().get_world_rank()
    if ray.get(board.settled.remote(0)):
        return
    host = ray.util.get_node_ip_address()
    sender = Sender(board)
    ray.get(sender.post(Joined(rank, host, os.getpid())))
    out = PostedStream(sender)
    err = PostedStream(sender, to_stderr=True, prefix="" if rank == 0 else f"[rank {rank}] ")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _require_shared(assignment, host)
            world = join_world(assignment.device)
            reporter = _BoardReporter(board, sender, world.is_leader)
            train(
                assignment.config,
                world,
                reporter,
                run_location=assignment.run_location,
                session=assignment.session,
            )
            event: Event = Left(rank)
        except (Diverged, Stopped, InputError) as error:
            event = Settled(rank, type(error), str(error))
        except Exception as error:
            # A worker that settles the outcome leaves its peers in the middle of a collective, which fails in them.
            lost_peers = isinstance(error, RuntimeError)
            if not (lost_peers and ray.get(board.settled.remote(PEER_PATIENCE_S))):
                traceback.print_exc()
                ray.get(sender.post(Broke(rank, _describe(error))))
                raise
            event = Left(rank)
        finally:
            out.finish()
            err.finish()
            leave_world()
    ray.get(sender.post(event))  # waits, so that everything posted before has arrived too


def _require_shared(assignment: _Assignment, host: str) -> None:
    if assignment.marker is not None and not Path(assignment.marker).exists():
        folder = Path(assignment.marker).parent
        raise ClusterError(
            f"cluster.storage: host {host} does not see the driver's files in {str(folder)!r}; give a folder that all "
            "hosts share, or a URL such as s3://BUCKET/runs"
        )


def run_on_ray(
    config: Config,
    run_location: str,
    on_report: ReportHook | None = None,
    *,
    should_stop: Callable[[], bool] | None = None,
    gpus_per_worker: float | None = None,
    session: str = "",
    quiet: bool = False,
) -> None:
    """Train in `cluster.workers` processes of Ray Train, on a GPU each where the cluster has GPUs.

    Inside a Ray job, or where RAY_ADDRESS or `ray start` names a cluster, that one is used; elsewhere a cluster of this
    machine is started, and ended with the run. SIGTERM and SIGINT make the workers stop after a last checkpoint; a
    second one ends the run at once. However it ends, its CPUs and GPUs are free again within about two seconds.

    It may be called from any thread, also within a Ray actor; signals are then those of the thread's owner to handle.

    Args:
        config: the settings; `cluster` of them are for here.
        run_location: path or URL of the run directory.
        on_report: called with the metrics of every log line, and the newest checkpoint: that of the same step, if any.
        should_stop: asked every half second at least; True stops the run as a signal does.
        gpus_per_worker: GPUs, or a fraction of one, for each worker; 0 to train on CPUs. Left out, one each where the
            cluster has GPUs and `training.device` is not `cpu`.
        session: names the launch, whose writers of the run directory take over from each other; left out, a new one.
        quiet: whether to print nothing, and to leave stdout as it is.

    Raises:
        ClusterError: the cluster has too few CPUs or GPUs, or its hosts share no storage.
        InputError: what a worker found wrong with the settings, the data or the run directory.
        Diverged: a loss or gradient became non-finite.
        Stopped: ended by a signal or `should_stop`.
        WorkerFailed: a worker died or failed more often than `cluster.max_failures` allows.
    """
    config = _with_absolute_paths(config)
    run_location = absolute_output(run_location)
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    with (
        contextlib.nullcontext() if quiet else contextlib.redirect_stdout(WithoutRay(sys.stdout)),
        connected_cluster(),
        tempfile.TemporaryDirectory(prefix="dcgan_dist-ray-") as scratch,
    ):
        capacity = Capacity.of_cluster()
        gpus = capacity.check(config, gpus_per_worker, quiet=quiet)
        # Where there is no room yet, other hosts will join.
        several = capacity.hosts > 1 or capacity.room(config.cluster.cpus_per_worker, gpus) < config.cluster.workers
        with _marker(config, several) as marker:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            board: Handle = ray.remote(Switchboard).options(num_cpus=0, scheduling_strategy=here).remote()
            assignment = _Assignment(
                config=config,
                run_location=run_location,
                session=session or uuid.uuid4().hex,
                device="cuda" if gpus else "cpu",
                gpus=gpus,
                board=board,
                marker=marker,
            )
            run = _Run(config, board, _trainer(assignment, scratch), on_report, should_stop, quiet)
            try:
                run.follow()
            except (WorkerFailed, Stopped, Interrupted) as error:
                if not run.settled:  # else the leader has recorded it
                    _record(run_location, error, assignment.session)
                raise
            finally:
                with contextlib.suppress(RayError):  # a cluster that was lost has none
                    ray.kill(board)  # the guard, which keeps it alive, waits for its end


def _record(run_location: str, error: WorkerFailed | Stopped | Interrupted, session: str) -> None:
    try:
        mark_run(run_location, "failed" if isinstance(error, WorkerFailed) else "stopped", str(error), session=session)
    except DcganDistError as problem:
        tell(f"the status of the run could not be recorded: {problem}", to_stderr=True)


def _with_absolute_paths(config: Config) -> Config:
    data, storage = config.data, config.cluster.storage
    return override(
        config,
        {
            "data.path": absolute_input(data.path),
            "data.cache": None if data.cache is None else absolute_output(data.cache),
            "cluster.storage": None if storage is None else absolute_output(storage),
        },
    )


class _Trainer(TorchTrainer):
    """Ray's, without what no run here needs."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the older class of this name
        return [each for each in callbacks if type(each).__name__ not in NEEDLESS]


def _trainer(assignment: _Assignment, scratch: str) -> TorchTrainer:
    cluster, guard = assignment.config.cluster, start_guard(assignment.board)

    def work() -> None:
        _work(assignment)

    return _Trainer(
        work,
        # NCCL refuses two processes on one GPU.
        torch_config=NamedInterfaceConfig(backend="gloo" if 0 < assignment.gpus < 1 else None),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=assignment.gpus > 0,
            resources_per_worker=resources_per_worker(cluster, assignment.gpus),
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,  # Ray Train goes on with an earlier run of the same name
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # mypy sees the older class of this name
                max_failures=cluster.max_failures,
                controller_failure_limit=-1 if cluster.wait else STARTS,
            ),
            callbacks=[_StartNotice(assignment.board, guard), _FailureNotice(assignment.board)],  # type: ignore[list-item]
        ),
    )


@contextlib.contextmanager
def _marker(config: Config, several_hosts: bool) -> Iterator[str | None]:
    """Put a file into the folder that several hosts are said to share, for the workers to look for.

    Raises:
        ClusterError: several hosts and no storage that they share, or one that cannot be written.
    """
    storage = config.cluster.storage
    if not several_hosts or (storage is not None and is_url(storage)):
        yield None
        return
    if storage is None:
        raise ClusterError(
            "cluster.storage is left out, but the cluster has several hosts: give a folder or URL that all of them "
            "share, such as --cluster.storage s3://BUCKET/runs"
        )
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".hosts-", dir=storage)
    except OSError as error:
        raise ClusterError(f"cluster.storage is {storage!r}, which cannot be written: {error.strerror}") from error
    os.close(descriptor)
    try:
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


class _Run:
    """The driver's side of one run."""

    def __init__(
        self,
        config: Config,
        board: Handle,
        trainer: TorchTrainer,
        on_report: ReportHook | None,
        should_stop: Callable[[], bool] | None,
        quiet: bool,
    ) -> None:
        self._cluster = config.cluster
        self._board = board
        self._trainer = trainer
        self._on_report = on_report
        self._should_stop = should_stop
        self._quiet = quiet
        self._signals: list[int] = []
        self._controller: Handle = None
        self._placement: Handle = None
        self._asked: Any = None  # what the switchboard was asked for and has not given
        self._asked_at = 0.0
        self._running: dict[int, Joined] = {}  # workers of the present group by rank
        self._left: set[int] = set()  # ranks of it that are done
        self._broke: dict[int, str] = {}  # what those that failed said last
        self.settled: Settled | None = None
        self._settled_at = 0.0
        self._failures = 0
        self._summary = ""  # of the last failure
        self._error: Exception | None = None

    def follow(self) -> None:
        """Run Ray Train to its end, pass events on, and raise what ended it."""
        fit = threading.Thread(target=self._fit, daemon=True)
        with on_signals(self._signals.append):
            fit.start()
            try:
                self._watch(fit)
            finally:
                self._end(fit)
        self._conclude()

    def _watch(self, fit: threading.Thread) -> None:
        obeyed = 0
        idle_since = time.monotonic()
        while fit.is_alive():
            self._take(wait_s=0.5)
            if not self._signals and self._should_stop is not None and self._should_stop():
                self._signals.append(signal.SIGTERM)
            if len(self._signals) > obeyed:
                self._obey()
                obeyed += 1
            if self._all_left:
                return  # Ray Train would take seconds more to notice, and hold the CPUs and GPUs meanwhile
            if self.settled and time.monotonic() - self._settled_at > SETTLE_PATIENCE_S[self._is_input_error()]:
                return  # the others wait for the one that settled
            if self._running or self._left or self.settled:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > WAIT_MESSAGE_S:
                idle_since = time.monotonic()
                self._say(f"still waiting for {Capacity.wanted(self._cluster)}; {Capacity.of_cluster()}")
        self._take(wait_s=0.1)

    @property
    def _all_left(self) -> bool:
        return len(self._left) == self._cluster.workers

    def _end(self, fit: threading.Thread) -> None:
        """End Ray Train where it has not ended itself; disconnecting under its thread would end this process."""
        deadline = time.monotonic() + END_PATIENCE_S
        with contextlib.suppress(RayError, WorkerFailed):  # a cluster that was lost needs no end
            if fit.is_alive() and self._placement is not None:
                remove_placement_group(self._placement)  # Ray keeps it when a controller is killed
            while fit.is_alive() and time.monotonic() < deadline:
                if self._controller is not None:
                    ray.kill(self._controller)
                    fit.join(timeout=5)
                else:
                    self._take(wait_s=0.5)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            self._error = error

    def _obey(self) -> None:
        if len(self._signals) > 1 or not self._running:
            raise Stopped(self._signals[-1], "ended at once when asked to, with no last checkpoint")
        self._say("stopping after a last checkpoint; a second signal ends the run at once")
        self._board.stop.remote()

    def _is_input_error(self) -> bool:
        return self.settled is not None and issubclass(self.settled.error, InputError)

    def _events(self, wait_s: float) -> list[Event]:
        """Return the events that came, waiting a while for the first; on a busy machine, none in time is no news."""
        if self._asked is None:
            self._asked, self._asked_at = self._board.take.remote(wait_s), time.monotonic()
        try:
            events: list[Event] = ray.get(self._asked, timeout=wait_s + 1)
        except GetTimeoutError:  # the answer will hold events: it is waited for, not asked for again
            if time.monotonic() - self._asked_at > CLUSTER_PATIENCE_S:
                self._look_for_cluster()
            return []
        except RayError as error:
            raise WorkerFailed(f"the Ray cluster was lost: {last_line(error)}") from error
        self._asked = None
        return events

    def _take(self, wait_s: float) -> None:
        for event in self._events(wait_s):
            match event:
                case Line():
                    if not self._quiet:
                        show(event)
                case Metrics() if self._on_report is not None:
                    self._on_report(event.values, event.checkpoint)
                case Joined():
                    self._running[event.rank] = event
                case Left() | Settled():
                    self._leave(event)
                case Started():
                    self._controller = event.controller
                case Placed():
                    self._placement = event.group
                case Broke():
                    self._broke[event.rank] = event.message
                case Lost():
                    self._lose(event)

    def _look_for_cluster(self) -> None:
        """Ask the cluster's head for a sign of life.

        Raises:
            WorkerFailed: there is none.
        """
        try:
            living = Capacity.of_cluster().hosts
        except (RayError, RuntimeError) as error:
            raise WorkerFailed(f"the Ray cluster was lost: {last_line(error)}") from error
        if not living:
            raise WorkerFailed("the Ray cluster was lost: none of its hosts is alive")
        self._asked_at = time.monotonic()

    def _leave(self, event: Left | Settled) -> None:
        self._running.pop(event.rank, None)
        self._left.add(event.rank)
        if isinstance(event, Settled) and (self.settled is None or event.rank == 0):  # the leader knows where files are
            self.settled, self._settled_at = event, time.monotonic()

    def _lose(self, event: Lost) -> None:
        if self.settled or self._all_left:
            return
        self._failures += 1
        self._summary = self._describe(event)
        self._running, self._left, self._broke = {}, set(), {}
        allowed = self._cluster.max_failures
        if allowed < 0 or self._failures <= allowed:
            count = f"{self._failures} of at most {allowed}" if allowed >= 0 else str(self._failures)
            self._say(f"{self._summary}: restarting from the newest checkpoint (restart {count})")

    def _say(self, text: str) -> None:
        if not self._quiet:
            tell(text)

    def _describe(self, event: Lost) -> str:
        """Say who failed; a worker that died explains its peers' errors, so those are not mentioned."""
        dead = [rank for rank in sorted(event.reasons) if rank not in self._broke]
        rank = (dead or sorted(event.reasons))[0]
        worker = self._running.get(rank)
        place = f"rank {rank}" if worker is None else f"rank {rank} (process {worker.pid} on host {worker.host})"
        if not dead:
            return f"worker {place} failed with {self._broke[rank]}"
        if worker is not None and worker.host not in Capacity.of_cluster().addresses:
            return f"worker {place} was lost with its host"
        silent = "Timeout" in event.reasons[rank]
        return f"worker {place} " + (
            "does not answer any more" if silent else "died (killed, crashed or out of memory)"
        )

    def _conclude(self) -> None:
        if self.settled and issubclass(self.settled.error, Stopped):
            raise Stopped(self._signals[0] if self._signals else signal.SIGTERM, self.settled.message)
        if self.settled:
            raise self.settled.error(self.settled.message)
        if self._all_left:
            return
        if self._error and self._summary:
            raise WorkerFailed(
                f"{self._summary}; the same command resumes from the newest checkpoint, and --cluster.max_failures "
                f"{max(self._cluster.max_failures, 0) + 1} restarts lost workers by itself"
            ) from self._error
        if self._error:
            raise WorkerFailed(f"the workers could not be started: {last_line(self._error)}") from self._error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
