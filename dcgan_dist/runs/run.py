"""A run, read-only except for scores, on a disk or on object storage; reading takes no lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from dcgan_dist.config import ModelConfig, check_whole, is_rooms
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.runs.checkpoints import STATE_NAME, Checkpoint, name_of, step_of, step_of_grid, steps_in
from dcgan_dist.runs.documents import Row, StatusRecord
from dcgan_dist.runs.lease import read_status
from dcgan_dist.runs.names import CONFIG_NAME, METRICS_NAME, SCORES_NAME
from dcgan_dist.runs.scores import Entry, Score, add_scores, read_scores
from dcgan_dist.settings import modernised
from dcgan_dist.storage.folder import Folder, folder_at
from dcgan_dist.storage.remote import FIRST_PATIENCE_S

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Loaded = TypeVar("Loaded")


class NoCheckpoint(RunDirectoryError):
    """A run has no checkpoint yet."""


class Run:
    """A run directory. Two objects are equal if they have the same location. Pickling keeps the location only.

    Each property reads its file at the first access; `status`, `steps`, `checkpoints` and `scores` at every access.

    Attributes:
        location: folder or URL, as it was given.
        folder: the same as a `Folder`, to read from.
    """

    def __init__(self, location: str | Path, *, patience: float | None = None) -> None:
        """Store the location; nothing is read yet.

        Args:
            location: folder or URL.
            patience: see `folder_at`.

        Raises:
            DataError: the location is a URL of an unknown scheme.
        """
        self.location = str(location)
        self.folder: Folder = folder_at(location, patience=patience)
        self._checkpoint: Checkpoint | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.location == self.location

    def __hash__(self) -> int:
        return hash(self.location)

    def __reduce__(self) -> tuple[type[Run], tuple[str]]:
        return type(self), (self.location,)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Content of config.yaml: the nested settings, and `environment`: host, versions and git commit of the run.

        Raises:
            RunDirectoryError: the location is not a run, or its settings cannot be read.
            StorageError: the storage fails.
        """
        # This is the first access to the location, which may be mistyped: give up sooner than usual.
        content = folder_at(self.location, patience=FIRST_PATIENCE_S).get(CONFIG_NAME)
        if content is None:
            raise RunDirectoryError(
                f"{self.location} is no run directory: it has no {CONFIG_NAME}; give --run DIR of a run"
            )
        try:
            settings = yaml.safe_load(content)
            if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
                raise ValueError("it holds no settings of a model")
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise RunDirectoryError(f"{self.location}/{CONFIG_NAME} cannot be read: {reason}") from error
        return settings | {"model": modernised(ModelConfig, settings["model"])}

    @cached_property
    def model(self) -> ModelConfig:
        """Settings of the networks.

        Raises:
            RunDirectoryError: as `settings`, or the settings are those of another version.
        """
        try:
            return ModelConfig(**self.settings["model"])
        except (TypeError, ConfigError) as error:
            reason = " ".join(str(error).split())
            raise RunDirectoryError(f"{self.location} was made by another version: {reason}") from error

    @property
    def is_rooms(self) -> bool:
        """Whether it was trained on procedural rooms, whose attributes are known."""
        of_rooms = self.settings.get("environment", {}).get("rooms_seed") is not None
        return of_rooms or is_rooms(str(self.settings.get("data", {}).get("path", "")))

    @property
    def status(self) -> StatusRecord | None:
        """Current content of status.json; None if it does not exist.

        Raises:
            StorageError: the storage fails.
        """
        return read_status(self.folder)

    def rows(self) -> list[Row]:
        """Return the lines of metrics.jsonl, [] if it does not exist; an incomplete last line is left out.

        Raises:
            RunDirectoryError: a line in the middle is damaged.
            StorageError: the storage fails.
        """
        lines = (self.folder.get(METRICS_NAME) or b"").split(b"\n")
        rows = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rows.append(cast(Row, dict(json.loads(line))))
            except (ValueError, TypeError) as error:
                where = f"{self.location}/{METRICS_NAME}"
                raise RunDirectoryError(f"{where} is damaged in line {number}: {error}") from error
        return rows

    def metrics(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the numeric columns of metrics.jsonl, each (lines,); NaN where a line has no number.

        Raises:
            RunDirectoryError, StorageError: as `rows`.
        """
        import numpy as np  # takes a tenth of a second, so commands that read no metrics do not import it

        rows = self.rows()
        names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
        return {
            name: np.array([row.get(name) if isinstance(row.get(name), int | float) else np.nan for row in rows], float)
            for name in names
        }

    # Checkpoints

    @property
    def steps(self) -> list[int]:
        """Steps of the current checkpoints, ascending.

        Raises:
            RunDirectoryError: there is no checkpoint, or the location is not a run.
            StorageError: the storage fails.
        """
        self.settings  # noqa: B018 raises if the location is not a run
        if self.folder.path is not None:
            steps = steps_in(self.folder.path / "checkpoints")
        else:
            # Checkpoints without state.json are still being uploaded, or their upload was interrupted.
            names = [name for name in self.folder.versions("checkpoints") if name.endswith(f"/{STATE_NAME}")]
            steps = sorted(step for name in names if (step := step_of(name.split("/")[1])) is not None)
        if not steps:
            raise NoCheckpoint(f"{self.location} has no checkpoint yet: train it for longer, or give another run")
        return steps

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The current checkpoints, by ascending step; [] if there is none.

        Raises:
            RunDirectoryError: the location is not a run, or the state.json of a checkpoint is damaged.
            StorageError: the storage fails.
        """
        try:
            steps = self.steps
        except NoCheckpoint:
            return []
        return [self.checkpoint(step) for step in steps]

    def chosen_steps(self, step: str) -> list[int]:
        """Return the steps that `step` selects: `latest`, `all`, or a number, which need not have a checkpoint.

        Raises:
            ConfigError: it is something else.
            RunDirectoryError, StorageError: as `steps`.
        """
        step = str(step)
        if not step.isdecimal() and step not in ("latest", "all"):
            raise ConfigError(f"step is {step!r}: take latest, all, or the number of a step")
        steps = self.steps
        if step.isdecimal():
            return [int(step)]
        return steps[-1:] if step == "latest" else steps

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            ConfigError: the step is not a whole number.
            RunDirectoryError: there is no such checkpoint, or its state.json is damaged.
            StorageError: the storage fails.
        """
        check_whole("step", step)
        if self._checkpoint is None or self._checkpoint.step != step:
            self.settings  # noqa: B018 raises if the location is not a run
            where = f"{self.location.rstrip('/')}/checkpoints/{name_of(step)}"
            folder = folder_at(where)
            content = folder.get(STATE_NAME)
            if content is None:
                steps = ", ".join(map(str, self.steps))
                raise RunDirectoryError(
                    f"{self.location} has no whole checkpoint of step {step}; it has those of steps {steps}"
                )
            self._checkpoint = Checkpoint.parse(folder, content, where)
        return self._checkpoint

    def load_each(
        self, load: Callable[[Run, int], Loaded], steps: Sequence[int], say: Callable[[str], None]
    ) -> Iterator[Loaded]:
        """Load several checkpoints, each when the iterator reaches it.

        A run that is still training keeps only its newest checkpoints. If one of `steps` other than the first has been
        removed by the time it is needed, it is skipped, and `say` is called with a message.

        Raises:
            RunDirectoryError, StorageError: as `load`.
        """
        for number, step in enumerate(steps):
            try:
                yield load(self, step)
            except RunDirectoryError:
                if number == 0 or step in self.steps:
                    raise
                say(f"step {step} is not scored: its checkpoint is gone, since a run in training keeps only the newest")

    # Samples and scores

    @property
    def sample_steps(self) -> list[int]:
        """Steps with grids of samples (`samples/step-NNNNNNNN.png`), ascending."""
        names = [name.rpartition("/")[2] for name in self.folder.versions("samples")]
        return sorted({step for name in names if (step := step_of_grid(name)) is not None and name[0] == "s"})

    @property
    def scores(self) -> dict[str, list[Score]]:
        """The current content of scores.json: scores by task, each task's by step; {} if it does not exist.

        Raises:
            RunDirectoryError, StorageError: as `entries`.
        """
        try:
            return {task: [Score.of(task, entry) for entry in entries] for task, entries in self.entries().items()}
        except (AttributeError, TypeError, ValueError) as error:
            where = self.folder.at(SCORES_NAME)
            raise RunDirectoryError(f"{where} has an invalid score ({error}): move it away") from error

    def entries(self) -> dict[str, list[Entry]]:
        """Return the current content of scores.json: entries by task; {} if it does not exist.

        Raises:
            RunDirectoryError: it is damaged.
            StorageError: the storage fails.
        """
        return read_scores(self.folder)

    def add_scores(self, task: str, entries: Sequence[Entry]) -> None:
        """Add scores to scores.json; see `scores.add_scores`."""
        add_scores(self.folder, task, entries)
