"""Search hyperparameters with many trials (Ray Tune); run again with the same sweep directory, the sweep resumes.

``python -m dcgan_dist.sweep --config configs/sweeps/stability.yaml``, on one machine or as a Ray job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcgan_dist.command_line import parse_settings, run, yield_idle_cores
from dcgan_dist.launch.locations import lasting_output
from dcgan_dist.results.report import write_report_of
from dcgan_dist.sweeps.settings import SweepConfig

if TYPE_CHECKING:
    from dcgan_dist.sweeps.ledger import Ledger

from dcgan_dist.command_line import FrontDoor

PROG = "dcgan-dist sweep"


def sweep_command(arguments: Sequence[str]) -> None:
    """Run the sweep, and print its results."""
    config = parse_settings(SweepConfig, arguments, PROG, __doc__ or "")
    yield_idle_cores()
    from dcgan_dist.sweeps.table import print_results

    location = search(config, print_results).location
    for name, path in write_report_of(location).items():
        print(f"{name:15} {path}", flush=True)


def search(config: SweepConfig, show: Callable[[Ledger], None] | None = None) -> Ledger:
    """Run or resume the sweep, and return its closed ledger.

    Args:
        config: the settings.
        show: called with the closed ledger at the end, also after a signal.

    Raises:
        DcganDistError: as `ray_tune.run_sweep`.
    """
    from dcgan_dist.launch.ray_tune import run_sweep

    return run_sweep(config, lasting_output(sweep_location(config)), show)


def sweep_location(config: SweepConfig) -> str:
    """Return the folder or URL of the sweep: sweep_dir as given, otherwise STORAGE/NAME or sweeps/NAME."""
    if config.sweep_dir:
        return config.sweep_dir
    if config.train.cluster.storage:
        return f"{config.train.cluster.storage.rstrip('/')}/{config.name}"
    return str(Path("sweeps") / config.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(sweep_command, PROG, arguments, after_signal="the same command resumes the sweep")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.sweep(...)` is `api.sweep`

if __name__ == "__main__":
    sys.exit(main())
