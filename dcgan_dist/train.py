"""Train a DCGAN; run again with the same run directory, training resumes.

On one machine: ``python -m dcgan_dist.train --config configs/rooms.yaml``; in several processes: with
``--cluster.workers N`` (Ray Train), under ``torchrun``, or as a Ray job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dcgan_dist.command_line import FrontDoor, parse_settings, run, yield_idle_cores
from dcgan_dist.config import Config
from dcgan_dist.launch.locations import lasting_output
from dcgan_dist.runs.documents import Row

PROG = "dcgan-dist train"


def train_command(arguments: Sequence[str]) -> None:
    """Train, in this process or in a group of workers, and print the locations of the results."""
    config = parse_settings(Config, arguments, PROG, __doc__ or "")
    yield_idle_cores()
    location = run_location(config)
    if start(config, location):
        print_results(location)


class _Rows:
    """The reporter of a run in this process: it passes log lines to a function."""

    def __init__(self, on_row: Callable[[Row], None]) -> None:
        self._on_row = on_row

    def report(self, metrics: Row, checkpoint_dir: str | None) -> None:
        """Pass a log line on."""
        self._on_row(metrics)

    def should_stop(self) -> bool:
        """Return False: a run in this process is stopped by signals."""
        return False


def start(config: Config, location: str, on_row: Callable[[Row], None] | None = None, *, quiet: bool = False) -> bool:
    """Train to the end, in this process or in a group of Ray's workers; return whether this process is the leader.

    Args:
        config: the settings.
        location: folder or URL of the run directory.
        on_row: called with the metrics of each log line.
        quiet: whether Ray's workers print nothing.

    Raises:
        DcganDistError: as `trainer.train` and `ray_train.run_on_ray`.
    """
    from dcgan_dist.distributed import join_world, leave_world, under_torchrun

    if config.cluster.workers > 1 and not under_torchrun():
        from dcgan_dist.launch.ray_train import run_on_ray

        run_on_ray(config, location, None if on_row is None else lambda row, _: on_row(row), quiet=quiet)
        return True
    from dcgan_dist.training.trainer import train

    world = join_world(config.training.device)
    try:
        train(config, world, None if on_row is None else _Rows(on_row), run_location=location)
        return world.is_leader
    finally:
        leave_world()


def run_location(config: Config) -> str:
    """Return the folder or URL of the run directory: run_dir as given, or STORAGE/NAME."""
    if config.cluster.storage:
        return lasting_output(f"{config.cluster.storage.rstrip('/')}/{config.name}")
    return lasting_output(config.run_dir or str(Path("runs") / config.name))


def print_results(location: str) -> None:
    """Print the locations of a run's results."""
    root = location.rstrip("/")
    grids = sorted(Path(root, "samples").glob("step-*.png"))  # empty if the run directory is a URL
    print(f"run directory   {root}")
    print(f"sample grid     {grids[-1] if grids else f'{root}/samples'}")
    print(f"curves          tensorboard --logdir {shlex.quote(root)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(train_command, PROG, arguments, after_signal="the same command resumes from the newest checkpoint")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.train(...)` is `api.train`

if __name__ == "__main__":
    sys.exit(main())
