"""Draw one of the paper's figures of a trained run: a PNG of 300 dpi, and a JSON of the numbers behind it.

``python -m dcgan_dist.explore walk --run runs/rooms``; ``explore --help`` lists the figures, ``explore walk --help``
the settings of one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from dcgan_dist.command_line import parse_settings, run, yield_idle_cores
from dcgan_dist.errors import ConfigError
from dcgan_dist.launch.locations import lasting_output

PROG = "dcgan-dist explore"


def _command(arguments: Sequence[str]) -> None:
    yield_idle_cores()
    from dcgan_dist.exploration.catalogue import FIGURES

    name, *settings = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {PROG} FIGURE --run DIR [--SETTING VALUE ...]\n\n{__doc__}\n")
        for figure, about in FIGURES.items():
            print(f"  {figure:12} {about.about}")
        return
    if name not in FIGURES:
        raise ConfigError(f"figure is {name!r}: take one of {', '.join(FIGURES)}")
    chosen = FIGURES[name]
    config = parse_settings(chosen.settings, settings, f"{PROG} {name}", f"Draw {chosen.about}.")
    if config.run is None:
        raise ConfigError("run is missing: give --run DIR, the run directory to look into")
    from dcgan_dist.data.cache import cache_directory
    from dcgan_dist.distributed import pick_device
    from dcgan_dist.exploration.figure import write_figure
    from dcgan_dist.exploration.networks import open_trained

    begun = time.perf_counter()
    networks = open_trained(
        lasting_output(config.run),
        config.step,
        seed=config.seed,
        device=pick_device(config.device),
        cache=cache_directory(config.cache),
    )
    drawn = chosen.draw(config, networks)
    print(drawn.finding)
    for path in write_figure(drawn, name, config, networks, begun):
        print(path, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments)


if __name__ == "__main__":
    sys.exit(main())
