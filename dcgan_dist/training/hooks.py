"""What can be attached to a run without the loop knowing of it: a method for each event.

Every rank calls its hooks, at the same steps. A hook must not use collectives. It writes by `RunWriter` or elsewhere:
other files in a run directory are not uploaded to object storage, and not rewound when the run resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dcgan_dist.distributed import World, say
from dcgan_dist.errors import DcganDistError, Diverged, Stopped
from dcgan_dist.printing import tell
from dcgan_dist.runs.documents import Row
from dcgan_dist.runs.lease import Status
from dcgan_dist.runs.writer import RunWriter
from dcgan_dist.stopping import Interrupted
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.fixed_samples import Grids
from dcgan_dist.training.progress import Progress
from dcgan_dist.training.reporter import Reporter


class Hook:
    """Does nothing at any event; a subclass overrides the methods it needs."""

    def on_row(self, row: Row) -> None:
        """A row of metrics was measured; the samples and the checkpoint of its step are still to come."""

    def on_samples(self, step: int, grids: Grids) -> None:
        """Grids of samples were drawn (leader only)."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint was written, on object storage too, and older ones were removed (leader only).

        A step can be saved twice, and a process that is killed right after a checkpoint does not call this for it.
        """

    def on_step_done(self, row: Row, checkpoint: Path | None) -> None:
        """All that the step of a row asked for is done; `checkpoint` is the newest there is."""

    def on_end(self, status: Status, reason: str, facts: Mapping[str, int]) -> None:
        """The run ended: `finished`, `diverged`, `stopped` or `failed`, with its last step and counts of images."""


class RunFiles(Hook):
    """Writes metrics.jsonl, grids of samples and status.json into the run directory (leader only)."""

    def __init__(self, run: RunWriter, damage: DamageLog, steps: int) -> None:
        self._run, self._damage, self._steps = run, damage, steps

    def on_row(self, row: Row) -> None:
        """Append the row, and put its step into status.json."""
        self._run.append_metrics(row)
        facts: dict[str, object] = {"step": row["step"], "steps": self._steps}
        if len(self._damage.found):
            facts |= {"images_lost": row["images_lost"], "damage": self._damage.found.to_json()}
        self._run.set_status("running", "", **facts)

    def on_samples(self, step: int, grids: Grids) -> None:
        """Write the grids."""
        for name, grid in grids.items():
            self._run.write_image(name, grid)

    def on_end(self, status: Status, reason: str, facts: Mapping[str, int]) -> None:
        """Write how the run ended."""
        self._run.set_status(status, reason, **facts)


class TensorBoard(Hook):
    """Writes the numbers of each row as scalars of TensorBoard (leader only)."""

    def __init__(self, run: RunWriter) -> None:
        self._run = run

    def on_row(self, row: Row) -> None:
        """Append the scalars."""
        self._run.append_scalars(row["step"], {key: value for key, value in row.items() if key != "step"})


class ProgressLines(Hook):
    """Prints a line for each row: how fast, how far, how long to go."""

    def __init__(self, world: World, steps: int, batch_size: int) -> None:
        self._world, self._steps, self._batch_size = world, steps, batch_size

    def on_row(self, row: Row) -> None:
        """Print the line."""
        step, total = row["step"], self._steps
        left = (total - step) * self._batch_size / max(row["images_per_s"], 1e-9)
        say(
            self._world,
            f"step {step:,}/{total:,} {step / total:4.0%} | {row['images_per_s']:,.0f} images/s, "
            f"waiting for data {row['data_wait']:.0%} | loss D {row['loss_d']:.3f} G {row['loss_g']:.3f} | "
            f"D(x) {row['d_real']:.2f} D(G(z)) {row['d_fake']:.2f} | {readable_time(left)} left",
        )


class Launcher(Hook):
    """Reports each row, with the newest checkpoint, to the process that launched the run."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def on_step_done(self, row: Row, checkpoint: Path | None) -> None:
        """Report it."""
        self._reporter.report(row, str(checkpoint) if checkpoint else None)


def readable_time(seconds: float) -> str:
    """Write a duration as a person would: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Hooks(Hook):
    """Several hooks as one, called in turn."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks

    def on_row(self, row: Row) -> None:
        """Call `on_row` of each."""
        for hook in self._hooks:
            hook.on_row(row)

    def on_samples(self, step: int, grids: Grids) -> None:
        """Call `on_samples` of each."""
        for hook in self._hooks:
            hook.on_samples(step, grids)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Call `on_checkpoint` of each."""
        for hook in self._hooks:
            hook.on_checkpoint(step, folder)

    def on_step_done(self, row: Row, checkpoint: Path | None) -> None:
        """Call `on_step_done` of each."""
        for hook in self._hooks:
            hook.on_step_done(row, checkpoint)

    def on_end(self, status: Status, reason: str, facts: Mapping[str, int]) -> None:
        """Call `on_end` of each."""
        for hook in self._hooks:
            hook.on_end(status, reason, facts)

    @contextmanager
    def reporting_errors(self, progress: Progress) -> Iterator[None]:
        """Call `on_end` where an error or a signal ends the block."""
        try:
            yield
        except (Exception, Interrupted) as error:
            status: Status = "failed"
            if isinstance(error, Diverged | Stopped | Interrupted):
                status = "diverged" if isinstance(error, Diverged) else "stopped"
            try:
                self.on_end(status, f"{error}" or type(error).__name__, {"step": progress.step})
            except DcganDistError as second:  # the first error is what matters
                if str(second) != str(error):
                    tell(str(second), to_stderr=True)
            raise
