"""Train a DCGAN; run again with the same run directory, training resumes.

On one machine ``python -m dcgan_dist.train --config configs/rooms.yaml``; over processes with ``--cluster.workers N``
(Ray Train), under ``torchrun``, or as a Ray job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dcgan_dist.command_line import parse_settings, run, yield_idle_cores
from dcgan_dist.config import Config
from dcgan_dist.launch.locations import lasting_output

PROG = "dcgan-dist train"


def train_command(arguments: Sequence[str]) -> None:
    """Read the settings and train, in this process or in a group of workers."""
    config = parse_settings(Config, arguments, PROG, __doc__ or "")
    location = lasting_output(run_location(config))
    yield_idle_cores()
    from dcgan_dist.distributed import join_world, leave_world, under_torchrun

    if config.cluster.workers > 1 and not under_torchrun():
        from dcgan_dist.launch.ray_train import run_on_ray

        run_on_ray(config, location)
        print_results(location)
        return
    from dcgan_dist.training.trainer import train

    world = join_world(config.training.device)
    try:
        train(config, world, run_location=location)
        if world.is_leader:
            print_results(location)
    finally:
        leave_world()


def run_location(config: Config) -> str:
    """Return the folder or URL of the run directory: run_dir as given, or STORAGE/NAME."""
    if config.cluster.storage:
        return f"{config.cluster.storage.rstrip('/')}/{config.name}"
    return config.run_dir or str(Path("runs") / config.name)


def print_results(location: str) -> None:
    """Say where the results of a run are."""
    root = location.rstrip("/")
    grids = sorted(Path(root, "samples").glob("step-*.png"))  # none here when the run directory is a URL
    print(f"run directory   {root}")
    print(f"sample grid     {grids[-1] if grids else f'{root}/samples'}")
    print(f"curves          tensorboard --logdir {shlex.quote(root)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(train_command, PROG, arguments, after_signal="the same command goes on from the newest checkpoint")


if __name__ == "__main__":
    sys.exit(main())
