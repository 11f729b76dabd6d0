"""Train in several Ray Train workers, on the cluster of this process or on one that is started for the run.

::

    driver: run_on_ray ─ starts ─> Ray Train's controller ─ starts, restarts ─> a worker for each rank: trainer.train
       │                              │                                            │
       │<── EventBus: Placed, Lost ───┘                                            │   rank 0 writes the run directory
       │<── EventBus: Joined, Line, Metrics, Settled, Failed, Left ────────────────┤
       └─── EventBus: stop (a signal, `should_stop`) ─────────────────────────────>┘   seen between two steps
    Watchdog: frees CPUs and GPUs if the driver is killed

The driver (this process) prints what workers print, and raises the same errors as training in one process. Ray's own
record of the run is not used, and removed.
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
from ray.train.v2._internal.execution.callback import (  # the public callbacks are not called at a start
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
from dcgan_dist.launch.event_bus import (
    Event,
    EventBus,
    Failed,
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
    WithoutRay,
    show,
)
from dcgan_dist.launch.locations import absolute_input, absolute_output, is_url
from dcgan_dist.launch.torch_backend import NamedInterfaceConfig
from dcgan_dist.launch.watchdog import start_watchdog
from dcgan_dist.printing import tell
from dcgan_dist.runs.documents import Row
from dcgan_dist.runs.lease import mark_run
from dcgan_dist.stopping import Interrupted, on_signals
from dcgan_dist.training.trainer import train

# Values that the user has set are kept.
RAY_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keeps the meaning of the user's relative paths
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each run, for an event that no worker here uses
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # would print every line twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # would print the logs of every library
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # with Ray's defaults, a lost host is detected after 10 minutes
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # otherwise ray.init warns about a future change
}
PEER_PATIENCE_S = 5  # time for a worker that lost its peers to learn the reason
# Time for the other workers to end after a worker has settled the outcome. Key: whether it was bad input; otherwise the
# leader may still be saving a checkpoint.
SETTLE_PATIENCE_S = {True: 10, False: 120}
CLUSTER_PATIENCE_S = 30  # time for an answer, before asking whether the cluster still exists: it may be busy
# Time for Ray Train to end: on a busy machine it may still be starting, which takes minutes. A lost cluster is detected
# earlier.
END_PATIENCE_S = 600
NEEDLESS = {"PlacementGroupCleanerCallback", "DatasetsCallback"}  # Ray Train's callbacks that start a process for a run
STARTS = 10  # attempts, of a minute each, to get the CPUs or GPUs for a restarted group
WAIT_MESSAGE_S = 60  # pause between messages while workers wait for resources

ReportHook = Callable[[Row, str | None], None]


@dataclass(frozen=True)
class _Assignment:
    """The arguments of every worker."""

    config: Config
    run_location: str
    session: str
    device: Literal["cpu", "cuda"]
    gpus: float  # of each worker
    bus: Handle
    marker: str | None  # if the storage is a folder, a file that every host must see


class _BusReporter:
    """The reporter of a worker: it posts the leader's log lines to the driver, and receives the request to stop."""

    def __init__(self, bus: Handle, sender: Sender, is_leader: bool) -> None:
        self._sender = sender
        self._is_leader = is_leader
        self._stopped: Future[bool] = bus.stopped.remote().future()

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Post a log line, without waiting."""
        if self._is_leader:
            self._sender.post(Metrics(metrics, checkpoint_dir))

    def should_stop(self) -> bool:
        """Return whether the driver asked to stop; this only reads local memory, and sends no message."""
        return self._stopped.done()


class _StartNotice(ControllerCallback, WorkerGroupCallback):
    """In Ray Train's controller: sends the driver the handles with which it can end the run and free its resources."""

    def __init__(self, bus: Handle, watchdog: Handle) -> None:
        self._bus, self._watchdog = bus, watchdog

    def after_controller_start(self, *_context: object) -> None:
        """Post the controller's handle."""
        Sender(self._bus).post(Started(ray.get_runtime_context().current_actor))

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Post the placement group of the workers before they start to work."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get([self._watchdog.set_group.remote(group), Sender(self._bus).post(Placed(group))])


class _FailureNotice(ray.train.UserCallback):
    """In Ray Train's controller: notifies the driver of every failed worker, also if it is replaced."""

    def __init__(self, bus: Handle) -> None:
        self._bus = bus

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Post the type of each failure, because the text of Ray's exceptions can have pages."""
        Sender(self._bus).post(Lost({rank: type(error).__name__ for rank, error in worker_exceptions.items()}))


def _train_worker(assignment: _Assignment) -> None:
    """Train as one worker of the group.

    Outcomes that a restart would not change are posted to the driver and not raised, because Ray Train would restart
    the group after an error.
    """
    bus, rank = assignment.bus, ray.train.get_context().get_world_rank()
    if ray.get(bus.settled.remote(0)):
        return
    host = ray.util.get_node_ip_address()
    sender = Sender(bus)
    ray.get(sender.post(Joined(rank, host, os.getpid())))
    out = PostedStream(sender)
    err = PostedStream(sender, to_stderr=True, prefix="" if rank == 0 else f"[rank {rank}] ")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _require_shared(assignment, host)
            world = join_world(assignment.device)
            reporter = _BusReporter(bus, sender, world.is_leader)
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
            # A worker that settles the outcome leaves its peers in the middle of a collective, which then fails in
            # them: their errors do not count.
            lost_peers = isinstance(error, RuntimeError)
            if not (lost_peers and ray.get(bus.settled.remote(PEER_PATIENCE_S))):
                traceback.print_exc()
                ray.get(sender.post(Failed(rank, _describe(error))))
                raise
            event = Left(rank)
        finally:
            out.finish()
            err.finish()
            leave_world()
    ray.get(sender.post(event))  # wait until this event, and so all earlier ones, have arrived


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
    """Train in `cluster.workers` processes of Ray Train, each on a GPU if the cluster has GPUs.

    Inside a Ray job, its cluster is used; otherwise the one that RAY_ADDRESS or `ray start` names; otherwise a cluster
    is started on this machine, and ended with the run. SIGTERM and SIGINT make the workers stop after a last
    checkpoint; a second signal ends the run at once. However the run ends, its CPUs and GPUs are free again within
    about two seconds.

    It may be called from any thread, also within a Ray actor; then the caller has to handle signals.

    Args:
        config: the settings; `cluster` configures this launch.
        run_location: path or URL of the run directory.
        on_report: called with the metrics of every log line and the newest checkpoint, which is that of the same step
            if there is one.
        should_stop: called at least every half second; True stops the run like a signal.
        gpus_per_worker: GPUs, or a fraction of one, for each worker; 0 to train on CPUs. If None, one if the cluster
            has GPUs and `training.device` is not `cpu`.
        session: identifies the launch; a process may take the run's lease from another one of the same launch. If
            empty, a new one.
        quiet: whether to print nothing, and not to replace stdout.

    Raises:
        ClusterError: the cluster has too few CPUs or GPUs, or its hosts share no storage.
        InputError: a worker cannot use the settings, the data or the run directory.
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
        # If the workers do not fit yet, other hosts will join.
        several = capacity.hosts > 1 or capacity.slots(config.cluster.cpus_per_worker, gpus) < config.cluster.workers
        with _marker(config, several) as marker:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            bus: Handle = ray.remote(EventBus).options(num_cpus=0, scheduling_strategy=here).remote()
            assignment = _Assignment(
                config=config,
                run_location=run_location,
                session=session or uuid.uuid4().hex,
                device="cuda" if gpus else "cpu",
                gpus=gpus,
                bus=bus,
                marker=marker,
            )
            run = _Run(config, bus, _trainer(assignment, scratch), on_report, should_stop, quiet)
            try:
                run.follow()
            except (WorkerFailed, Stopped, Interrupted) as error:
                if not run.settled:  # otherwise the leader has recorded it
                    _record(run_location, error, assignment.session)
                raise
            finally:
                with contextlib.suppress(RayError):  # the cluster may be lost
                    ray.kill(bus)  # the watchdog holds a handle of it, and waits for its end


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
    """Ray's trainer, without callbacks that no run here needs."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the older class of this name
        return [each for each in callbacks if type(each).__name__ not in NEEDLESS]


def _trainer(assignment: _Assignment, scratch: str) -> TorchTrainer:
    cluster, watchdog = assignment.config.cluster, start_watchdog(assignment.bus)

    def train_worker() -> None:
        _train_worker(assignment)

    return _Trainer(
        train_worker,
        # gloo for fractions of a GPU, because NCCL refuses two processes on one GPU.
        torch_config=NamedInterfaceConfig(backend="gloo" if 0 < assignment.gpus < 1 else None),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=assignment.gpus > 0,
            resources_per_worker=resources_per_worker(cluster, assignment.gpus),
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,  # Ray Train would resume an earlier run with the same name
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # mypy sees the older class of this name
                max_failures=cluster.max_failures,
                controller_failure_limit=-1 if cluster.wait else STARTS,
            ),
            callbacks=[_StartNotice(assignment.bus, watchdog), _FailureNotice(assignment.bus)],  # type: ignore[list-item]
        ),
    )


@contextlib.contextmanager
def _marker(config: Config, several_hosts: bool) -> Iterator[str | None]:
    """Write a file into the folder that several hosts should share, so that workers can check that they see it.

    Raises:
        ClusterError: there are several hosts and no shared storage, or the storage cannot be written.
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
        bus: Handle,
        trainer: TorchTrainer,
        on_report: ReportHook | None,
        should_stop: Callable[[], bool] | None,
        quiet: bool,
    ) -> None:
        self._cluster = config.cluster
        self._bus = bus
        self._trainer = trainer
        self._on_report = on_report
        self._should_stop = should_stop
        self._quiet = quiet
        self._signals: list[int] = []
        self._controller: Handle = None
        self._placement: Handle = None
        self._asked: Any = None  # a request to the event bus that has not been answered yet
        self._asked_at = 0.0
        self._running: dict[int, Joined] = {}  # workers of the present group by rank
        self._left: set[int] = set()  # ranks of the present group that have returned
        self._failed: dict[int, str] = {}  # errors of failed workers of the present group by rank
        self.settled: Settled | None = None
        self._settled_at = 0.0
        self._failures = 0
        self._summary = ""  # of the last failure
        self._error: Exception | None = None

    def follow(self) -> None:
        """Run Ray Train to its end, handle its events, and raise the error that ended it."""
        fit = threading.Thread(target=self._fit, daemon=True)
        with on_signals(self._signals.append):
            fit.start()
            try:
                self._watch(fit)
            finally:
                self._end(fit)
        self._conclude()

    def _watch(self, fit: threading.Thread) -> None:
        handled = 0
        idle_since = time.monotonic()
        while fit.is_alive():
            self._take_events(wait_s=0.5)
            if not self._signals and self._should_stop is not None and self._should_stop():
                self._signals.append(signal.SIGTERM)
            if len(self._signals) > handled:
                self._handle_signal()
                handled += 1
            if self._all_left:
                return  # Ray Train would take seconds longer, and hold the CPUs and GPUs meanwhile
            if self.settled and time.monotonic() - self._settled_at > SETTLE_PATIENCE_S[self._is_input_error()]:
                return  # the other workers hang, waiting for the one that settled the outcome
            if self._running or self._left or self.settled:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > WAIT_MESSAGE_S:
                idle_since = time.monotonic()
                self._print(f"still waiting for {Capacity.wanted(self._cluster)}; {Capacity.of_cluster()}")
        self._take_events(wait_s=0.1)

    @property
    def _all_left(self) -> bool:
        return len(self._left) == self._cluster.workers

    def _end(self, fit: threading.Thread) -> None:
        """End Ray Train if it has not ended itself; disconnecting while its thread runs would end this process."""
        deadline = time.monotonic() + END_PATIENCE_S
        with contextlib.suppress(RayError, WorkerFailed):  # a lost cluster needs no end
            if fit.is_alive() and self._placement is not None:
                remove_placement_group(self._placement)  # Ray keeps it when the controller is killed
            while fit.is_alive() and time.monotonic() < deadline:
                if self._controller is not None:
                    ray.kill(self._controller)
                    fit.join(timeout=5)
                else:  # wait for the controller's handle
                    self._take_events(wait_s=0.5)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            self._error = error

    def _handle_signal(self) -> None:
        if len(self._signals) > 1 or not self._running:
            raise Stopped(self._signals[-1], "ended at once when asked to, with no last checkpoint")
        self._print("stopping after a last checkpoint; a second signal ends the run at once")
        self._bus.stop.remote()

    def _is_input_error(self) -> bool:
        return self.settled is not None and issubclass(self.settled.error, InputError)

    def _events(self, wait_s: float) -> list[Event]:
        """Return new events, waiting for the first; return [] if a busy machine does not answer in time."""
        if self._asked is None:
            self._asked, self._asked_at = self._bus.take.remote(wait_s), time.monotonic()
        try:
            events: list[Event] = ray.get(self._asked, timeout=wait_s + 1)
        except GetTimeoutError:
            # Keep waiting for this answer, which will contain events: they would be lost with another request.
            if time.monotonic() - self._asked_at > CLUSTER_PATIENCE_S:
                self._check_cluster()
            return []
        except RayError as error:
            raise WorkerFailed(f"the Ray cluster was lost: {last_line(error)}") from error
        self._asked = None
        return events

    def _take_events(self, wait_s: float) -> None:
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
                case Failed():
                    self._failed[event.rank] = event.message
                case Lost():
                    self._lose(event)

    def _check_cluster(self) -> None:
        """Check that the cluster's head answers.

        Raises:
            WorkerFailed: it does not answer, or no host is alive.
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
        # The leader's message counts, because it contains the paths.
        if isinstance(event, Settled) and (self.settled is None or event.rank == 0):
            self.settled, self._settled_at = event, time.monotonic()

    def _lose(self, event: Lost) -> None:
        if self.settled or self._all_left:
            return
        self._failures += 1
        self._summary = self._describe(event)
        self._running, self._left, self._failed = {}, set(), {}
        allowed = self._cluster.max_failures
        if allowed < 0 or self._failures <= allowed:
            count = f"{self._failures} of at most {allowed}" if allowed >= 0 else str(self._failures)
            self._print(f"{self._summary}: restarting from the newest checkpoint (restart {count})")

    def _print(self, text: str) -> None:
        if not self._quiet:
            tell(text)

    def _describe(self, event: Lost) -> str:
        """Return which worker failed; a dead worker is the cause of its peers' errors, so these are not mentioned."""
        dead = [rank for rank in sorted(event.reasons) if rank not in self._failed]
        rank = (dead or sorted(event.reasons))[0]
        worker = self._running.get(rank)
        name = f"rank {rank}" if worker is None else f"rank {rank} (process {worker.pid} on host {worker.host})"
        if not dead:
            return f"worker {name} failed with {self._failed[rank]}"
        if worker is not None and worker.host not in Capacity.of_cluster().addresses:
            return f"worker {name} was lost with its host"
        silent = "Timeout" in event.reasons[rank]
        return f"worker {name} " + ("does not answer any more" if silent else "died (killed, crashed or out of memory)")

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
