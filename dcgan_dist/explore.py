"""Draw one of the paper's figures of a trained run: a PNG of 300 dpi, and a JSON of the numbers behind it.

``python -m dcgan_dist.explore walk runs/rooms``; ``explore all`` draws the whole set. ``explore --help`` lists
the figures, ``explore walk --help`` the settings of one.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcgan_dist.command_line import parse_settings, run, yield_idle_cores
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.launch.locations import lasting_output
from dcgan_dist.runs.run import Run
from dcgan_dist.storage.folder import check_writable

if TYPE_CHECKING:
    from dcgan_dist.exploration.figure import AllConfig, FigureConfig, Measured
    from dcgan_dist.exploration.networks import Trained

from dcgan_dist.command_line import FrontDoor

PROG = "dcgan-dist explore"
ALL = "all"


def _command(arguments: Sequence[str]) -> None:
    yield_idle_cores()
    from dcgan_dist.exploration.catalogue import FIGURES
    from dcgan_dist.exploration.figure import AllConfig

    name, *settings = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {PROG} FIGURE RUN [--SETTING VALUE ...]\n\n{__doc__}\n")
        for figure, about in FIGURES.items():
            print(f"  {figure:12} {about.about}")
        print(f"  {ALL:12} every figure that needs nothing from a person")
        return
    if name == ALL:
        everything = parse_settings(AllConfig, settings, f"{PROG} {ALL}", "Draw every figure of a run.", word_for="run")
        _draw_all(everything, _open(everything))
        return
    chosen = settings_class(name)
    config = parse_settings(chosen, settings, f"{PROG} {name}", f"Draw {FIGURES[name].about}.", word_for="run")
    _draw(name, config, _open(config))


def settings_class(figure: str) -> type[FigureConfig]:
    """Return the class of a figure's settings.

    Raises:
        ConfigError: there is no such figure.
    """
    from dcgan_dist.exploration.catalogue import FIGURES

    if figure not in FIGURES:
        raise ConfigError(f"figure is {figure!r}: take {ALL}, or one of {', '.join(FIGURES)}")
    return FIGURES[figure].settings


def draw(figure: str, config: FigureConfig) -> tuple[Measured, str, list[str]]:
    """Draw a figure of the run that the settings name, and write it.

    Returns:
        What it measured, its finding, and the paths or URLs of its files.

    Raises:
        InputError: a setting, the run or the data cannot be used.
        StorageError: it cannot be written.
    """
    return _draw_and_write(figure, config, _open(config))


def _open(config: FigureConfig) -> Trained:
    """Load the networks that the settings name."""
    if config.run is None:
        raise ConfigError("run is missing: give RUN or --run RUN, the run directory to look into")
    if config.output is not None and Path(config.output).is_file():
        raise ConfigError(f"output is {config.output!r}, a file: name a folder, and the files in it by --name")
    from dcgan_dist.distributed import pick_device
    from dcgan_dist.exploration.figure import folder_of
    from dcgan_dist.exploration.networks import open_trained
    from dcgan_dist.storage.cache import cache_directory

    check_writable(folder_of(config, lasting_output(config.run)))

    return open_trained(
        Run(lasting_output(config.run)),
        config.step,
        seed=config.seed,
        device=pick_device(config.device),
        cache=cache_directory(config.cache),
        weights=config.weights,
    )


def _draw(name: str, config: FigureConfig, networks: Trained) -> None:
    """Draw a figure, write it, and say what came out and where it is."""
    _, finding, paths = _draw_and_write(name, config, networks)
    print("\n".join([finding, *paths]), flush=True)


def _draw_and_write(name: str, config: FigureConfig, networks: Trained) -> tuple[Measured, str, list[str]]:
    from dcgan_dist.exploration.catalogue import FIGURES
    from dcgan_dist.exploration.figure import write_figure

    begun, figure = time.perf_counter(), FIGURES[name]
    measured: Measured = figure.measure(config, networks)
    canvas, finding = figure.draw(measured), figure.finding(measured)
    return measured, finding, write_figure(name, measured, canvas, finding, config, networks, begun)


def _draw_all(config: AllConfig, networks: Trained) -> None:
    """Draw every figure that the run and its data admit; say of the others why they are left out.

    Raises:
        DataError: figures are missing because of the data.
    """
    from dcgan_dist.exploration.catalogue import FIGURES

    common = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
    figures = {name: figure for name, figure in FIGURES.items() if not figure.is_tool}
    left_out: dict[str, ConfigError | DataError] = {}
    for number, (name, figure) in enumerate(figures.items(), start=1):
        print(f"\n[{number} of {len(figures)}] {name}: {figure.about}", flush=True)
        known = {entry.name for entry in dataclasses.fields(figure.settings)}
        try:
            _draw(name, figure.settings(**{key: value for key, value in common.items() if key in known}), networks)
        except (ConfigError, DataError) as error:
            left_out[name] = error
            print(f"left out: {error}", flush=True)
    drawn = len(figures) - len(left_out)
    print(f"\n{drawn} of {len(figures)} figures drawn" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    for name, reason in left_out.items():
        if isinstance(reason, DataError):
            raise DataError(f"{name} could not be drawn: {reason}") from reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(_command, PROG, arguments, after_signal="figures that were finished are kept")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.explore(...)` is `api.explore`

if __name__ == "__main__":
    sys.exit(main())
