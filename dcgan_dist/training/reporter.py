"""What the loop reports to the process that launched it, and how that process stops it."""

from __future__ import annotations

from typing import Protocol

from dcgan_dist.runs.documents import Row


class Reporter(Protocol):
    """The seam between the loop and its launcher; every rank has one."""

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Take a row of metrics, and the newest checkpoint if there is one: that of the row's step if it made one.

        The last row of a run that diverged comes with the checkpoint of its last finite state. An error that is raised
        here ends the run.
        """

    def should_stop(self) -> bool:
        """Whether to end the run at this step with a last checkpoint.

        Asked every step on a CPU and every few steps on a GPU, after `report` of the same step.
        """


class Silent:
    """A reporter for runs that nobody follows."""

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Return False."""
        return False
