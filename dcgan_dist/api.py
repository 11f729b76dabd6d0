"""The Python API: what the commands do, as functions that return what they made, and a run that draws and scores.

::

    import dcgan_dist as dd
    run = dd.train("configs/rooms.yaml", {"optim.lr": 1e-3})     # or dd.Run("s3://bucket/runs/rooms")
    run.metrics()["loss_d"]; run.checkpoints; run.scores
    images = run.sample(64, seed=0)                              # uint8 (64, S, S, C)
    run.evaluate("rooms")

Settings are given as a YAML file, as an object of a settings class, or as a mapping of dotted or nested names; those of
`overrides` come over them, and None clears one. Nothing is printed unless `progress` asks for it. Errors are those of
`dcgan_dist.errors`: `InputError` for what was given, `Diverged`, `Stopped` by a signal (after a last checkpoint), ….
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dcgan_dist.command_line import settings_of
from dcgan_dist.config import Config, Weights, check_whole
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.generation.settings import SampleConfig
from dcgan_dist.parallel import yield_idle_cores
from dcgan_dist.printing import heard_by
from dcgan_dist.runs.run import Run as SavedRun
from dcgan_dist.runs.scores import Score
from dcgan_dist.settings import Group
from dcgan_dist.sweeps.settings import SweepConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console
    from rich.progress import Progress as Bars

    from dcgan_dist.data.manifest import Manifest
    from dcgan_dist.exploration.figure import Measured
    from dcgan_dist.sweeps.record import TrialRecord

Row = Mapping[str, Any]
Progress = bool | Callable[[Row], None]
Overrides = Mapping[str, Any] | None
Settings = TypeVar("Settings", bound=Group)


class Run(SavedRun):
    """A run directory, on a disk or on object storage: to read, to draw samples from, and to score.

    Its settings are those of when it was opened; `status`, `steps`, `checkpoints`, `scores` and metrics are read each
    time. Two runs are equal if they have the same location.

    >>> run = Run("runs/rooms")
    >>> run.metrics()["loss_d"]
    >>> run.sample(64, seed=0)

    Attributes:
        location: folder or URL, as it was given.
        folder: the same, to read files from.
    """

    def __init__(self, location: str | Path) -> None:
        """Open a run.

        Raises:
            RunDirectoryError: there is none, or its settings cannot be read.
            StorageError: the storage fails.
        """
        super().__init__(location)
        self.settings  # noqa: B018 a mistyped path would look like a run without results

    @cached_property
    def config(self) -> Config:
        """The settings of the run, with those that depended on the data filled in.

        Raises:
            ConfigError: they are of a version that knew other settings.
        """
        return load_config({key: value for key, value in self.settings.items() if key != "environment"})

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        label: int | str | None = None,
        step: int | Literal["latest"] = "latest",
        weights: Weights = "auto",
        truncation: float | None = None,
        statistics: Literal["running", "batch"] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> npt.NDArray[np.uint8]:
        """Return samples 0 to `count` - 1 of the sequence that `seed` gives.

        Args:
            count: how many.
            seed: of z. Sample i depends on the seed, i and the checkpoint alone.
            label: number or name of a class, for samples of it alone; left out, a conditional run shows all in turn.
            step: of the checkpoint.
            weights: averaged or raw ones; `auto` takes the averaged ones where there are any.
            truncation: bound of |z|; a smaller one gives less variety and more typical samples.
            statistics: of batch norm: `running` averages of training, or those of each `batch` of 64 samples; left out,
                those that the run was trained to sample with.
            device: `cpu`, `cuda` or `auto`.

        Returns:
            uint8, (count, S, S, C).

        Raises:
            ConfigError: no such label, no averaged weights, a truncation that is out of range.
            RunDirectoryError: no such checkpoint, a damaged one, or one whose samples are not finite.
        """
        yield_idle_cores()
        import numpy as np

        from dcgan_dist.distributed import pick_device
        from dcgan_dist.generation.samples import open_samples

        check_whole("count", count, 1)
        check_whole("seed", seed)
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device is {device!r}: take auto, cpu or cuda")
        if statistics not in (None, "running", "batch"):
            raise ConfigError(f"statistics is {statistics!r}: take running or batch, or leave it out")
        if not isinstance(truncation, float | int | None):
            raise ConfigError(f"truncation is {truncation!r}: take a positive number")
        samples = open_samples(
            self,
            str(step),
            seed=seed,
            label=None if label is None else str(label),
            truncation=truncation,
            statistics=statistics,
            weights=weights,
            device=pick_device(device).type,
        )
        return np.concatenate([images for images, _ in samples.images(0, count)])

    def evaluate(
        self, task: str = "rooms", *, data: str | Path | None = None, progress: Progress = False, **settings: Any
    ) -> list[Score]:
        """Score the run, write the scores into its scores.json, and return them; see `evaluate`.

        Args:
            task: such as `rooms`, `cifar10` or `fidelity`.
            data: labelled images, where the task has none of its own.
            progress: see `prepare`.
            **settings: further ones of the command, such as `step="all"`.

        Returns:
            The scores, those of controls too.

        Raises:
            InputError: a setting, the run or the data cannot be used.
        """
        given = {} if data is None else {"data": str(data)}
        return evaluate({"run": self.location, "task": task, **given, **settings}, progress=progress)


@dataclass(frozen=True)
class Figure:
    """A figure that was drawn.

    Attributes:
        name: of the figure.
        finding: one sentence with the most telling numbers.
        measured: what is behind the picture, with arrays and images: an object of a class of the figure's module, such
            as `dcgan_dist.exploration.walk.Walk`.
        files: paths or URLs of the picture, of the JSON, and of what else belongs to it.
    """

    name: str
    finding: str
    measured: Measured
    files: list[str]

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of the JSON, as mappings and lists."""
        return self.measured.numbers


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended.

    Attributes:
        location: folder or URL.
        trials: what became of each trial, by its name.
    """

    location: str
    trials: dict[str, TrialRecord]

    def run(self, trial: str) -> Run:
        """Return the run of a trial.

        Raises:
            KeyError: there is no such trial.
        """
        from dcgan_dist.sweeps.ledger import trial_location

        return Run(trial_location(self.location, self.trials[trial].trial))

    @property
    def best(self) -> Run | None:
        """The run of the trial with the highest objective; None where no trial has one."""
        from dcgan_dist.sweeps.objective import best_of

        found = best_of(list(self.trials.values()))
        return None if found is None else self.run(found.trial)


def _settings(
    settings_class: type[Settings], config: str | Path | Settings | Mapping[str, Any] | None, overrides: Overrides
) -> Settings:
    """See `settings_of`; runs and paths among the values are taken for what names them."""

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value.location if isinstance(value, SavedRun) else str(value) if isinstance(value, Path) else value
            for key, value in values.items()
        }

    given = named(config) if isinstance(config, Mapping) else config
    return settings_of(settings_class, given, named(overrides) if isinstance(overrides, Mapping) else overrides)


def override(config: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings with some replaced, by dotted or nested name; None clears one.

    Raises:
        ConfigError: an unknown setting, a wrong type, or a value out of range.
    """
    return _settings(type(config), config, changes)


def load_config(config: str | Path | Config | Mapping[str, Any] | None = None, overrides: Overrides = None) -> Config:
    """Return the settings of a training run, checked.

    Args:
        config: see `train`.
        overrides: settings over those.

    Raises:
        ConfigError: no such file, an unknown setting, a wrong type, or a value out of range.
    """
    return _settings(Config, config, overrides)


def train(
    config: str | Path | Config | Mapping[str, Any] | None = None,
    overrides: Overrides = None,
    *,
    progress: Progress = False,
) -> Run:
    """Train, or resume the run in the run directory, and return the run.

    In this process, or with `cluster.workers` above 1 in workers of Ray Train.

    Args:
        config: path of a YAML file, or the name of one of the package's, such as `rooms`; a `Config`; or a mapping of
            dotted or nested names; left out, the defaults (20,000 procedural rooms).
        overrides: settings over those, by dotted name; None clears one, as `training.epochs` where steps are given.
        progress: True draws a bar in notebooks and terminals; a function is given the metrics of each log line.

    Raises:
        InputError: settings, data or the run directory cannot be used.
        Diverged: a loss or gradient became non-finite; the last finite state is saved.
        Stopped: ended by a signal, after a last checkpoint.
    """
    yield_idle_cores()
    from dcgan_dist.train import run_location, start

    settings = load_config(config, overrides)
    location = run_location(settings)
    with _followed(progress, "training", lambda: int(SavedRun(location).settings["training"]["steps"])) as on_row:
        start(settings, location, on_row, quiet=True)
    return Run(location)


def prepare(
    config: str | Path | PrepareConfig | Mapping[str, Any], overrides: Overrides = None, *, progress: Progress = False
) -> Manifest:
    """Make shards from a source of images, find their near-duplicates, or check them (`verify`).

    Args:
        config: the settings of the command `prepare`; see `train`.
        overrides: settings over those.
        progress: a function is given ``{"line": ...}`` for each line that the command would print; True prints them.

    Returns:
        The manifest of the shards.

    Raises:
        InputError: a setting, the source or the output cannot be used.
        StorageError: the disk is full or fails.
        DcganDistError: shards that were checked are damaged.
    """
    yield_idle_cores()
    from dcgan_dist.data.dataset import open_dataset
    from dcgan_dist.prepare import run_prepare

    settings = _settings(PrepareConfig, config, overrides)
    with _lines(progress):
        run_prepare(settings)
        return open_dataset(str(settings.verify or settings.output)).manifest


def sample(
    config: str | Path | SampleConfig | Mapping[str, Any], overrides: Overrides = None, *, progress: Progress = False
) -> str:
    """Draw samples of a run into a grid, an archive, a folder or shards; for samples in memory see `Run.sample`.

    Args:
        config: the settings of the command `sample`; see `train`.
        overrides: settings over those.
        progress: see `prepare`.

    Returns:
        The output, a path or URL.

    Raises:
        InputError: a setting, the run or the output cannot be used.
        StorageError: they cannot be written.
    """
    yield_idle_cores()
    from dcgan_dist.sample import write

    settings = _settings(SampleConfig, config, overrides)
    with _lines(progress):
        write(settings)
    assert settings.output is not None
    return settings.output


def evaluate(
    config: str | Path | EvaluateConfig | Mapping[str, Any], overrides: Overrides = None, *, progress: Progress = False
) -> list[Score]:
    """Score what a run's discriminator learned, or how good its generator's samples are, into its scores.json.

    Args:
        config: the settings of the command `evaluate`; see `train`.
        overrides: settings over those.
        progress: see `prepare`.

    Returns:
        The scores, those of controls too, in the order in which they were asked for.

    Raises:
        InputError: a setting, the run or the data cannot be used.
    """
    yield_idle_cores()
    from dcgan_dist.evaluate import score

    settings = _settings(EvaluateConfig, config, overrides)
    with _lines(progress):
        return [Score.of(settings.task, entry) for entry in score(settings)]


def explore(
    figure: str, config: str | Path | Mapping[str, Any], overrides: Overrides = None, *, progress: Progress = False
) -> Figure:
    """Draw one of the paper's figures of a run, and write it into the run's folder `figures`.

    Args:
        figure: such as `walk`, `filters` or `arithmetic`; `python -m dcgan_dist.explore` lists them.
        config: the settings of the figure; see `train`.
        overrides: settings over those.
        progress: see `prepare`.

    Returns:
        The figure: a sentence, what it measured, and where its files are.

    Raises:
        InputError: no such figure; or a setting, the run or the data cannot be used.
        StorageError: it cannot be written.
    """
    yield_idle_cores()
    from dcgan_dist.explore import draw, settings_class

    settings = _settings(settings_class(figure), config, overrides)
    with _lines(progress):
        measured, finding, files = draw(figure, settings)
    return Figure(figure, finding, measured, files)


def sweep(
    config: str | Path | SweepConfig | Mapping[str, Any], overrides: Overrides = None, *, progress: Progress = False
) -> Sweep:
    """Search hyperparameters by many trials on Ray, or resume a sweep.

    Args:
        config: the settings of the command `sweep`; see `train`.
        overrides: settings over those.
        progress: see `prepare`.

    Returns:
        The sweep, with the record and the run of each trial.

    Raises:
        InputError: a setting, the data or the sweep directory cannot be used.
        TrialsFailed: every single trial failed.
        Stopped: ended by a signal; the same call resumes it.
    """
    yield_idle_cores()
    from dcgan_dist.sweep import search

    settings = _settings(SweepConfig, config, overrides)
    with _lines(progress):
        ledger = search(settings)
    return Sweep(ledger.location, dict(ledger.records))


def report(
    directories: str | Path | Sequence[str | Path], output: str | Path = "report.html", *, progress: Progress = False
) -> list[Path]:
    """Show all runs and sweeps below some directories as one page and as tables.

    Args:
        directories: folders or URLs.
        output: of the page; trials.csv, trials.parquet and metrics.parquet in the same folder are replaced.
        progress: see `prepare`.

    Returns:
        Paths of the page and the tables.

    Raises:
        InputError: a directory is not there, or the output cannot be written.
    """
    from dcgan_dist.results.aggregate import collect
    from dcgan_dist.results.report import check_output, write_report

    places = [directories] if isinstance(directories, str | Path) else directories
    page = check_output(output)
    with _lines(progress):
        return list(write_report(collect([str(place) for place in places]), page).values())


@contextmanager
def _lines(progress: Progress) -> Iterator[None]:
    """Give what would be printed within the block to whom `progress` says."""
    if progress is True:
        yield
        return
    with heard_by((lambda line: progress({"line": line})) if callable(progress) else (lambda _line: None)):
        yield


@contextmanager
def _followed(progress: Progress, what: str, total: Callable[[], int]) -> Iterator[Callable[[Row], None] | None]:
    """Give what is to be called with the metrics of each log line; print nothing else within the block."""
    with heard_by(lambda _line: None):
        if progress is not True:
            yield progress if callable(progress) else None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        console, about = Console(), TextColumn("{task.fields[about]}")
        bars = Bars(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), about, console=console)
        bar = bars.add_task(what, total=None, about="")
        with _shown(bars, console) as refresh:

            def on_row(row: Row) -> None:
                losses = f"loss_d {row['loss_d']:.3f}, loss_g {row['loss_g']:.3f}, {row['images_per_s']:.0f} images/s"
                steps = bars.tasks[0].total or total()
                bars.update(bar, total=steps, completed=int(row["step"]), about=losses)
                refresh()

            yield on_row
            bars.update(bar, total=total(), completed=total())


@contextmanager
def _shown(bars: Bars, console: Console) -> Iterator[Callable[[], None]]:
    """Show bars in a terminal or in the output of a notebook's cell, and nowhere else; yield what draws them again."""
    if console.is_jupyter:
        # Rich itself takes ipywidgets, which not everybody has, and whose state is not saved with the notebook.
        from IPython.display import display

        shown = display(bars, display_id=True)
        yield lambda: shown.update(bars)
        shown.update(bars)
    elif console.is_terminal:
        with bars:
            yield lambda: None  # a thread of its own draws them
    else:
        yield lambda: None


__all__ = [
    "Figure",
    "Run",
    "Score",
    "Sweep",
    "evaluate",
    "explore",
    "load_config",
    "override",
    "prepare",
    "report",
    "sample",
    "sweep",
    "train",
]
