"""Show every run and sweep below some directories, local or on storage, as one page, trials.csv and parquet files.

``python -m dcgan_dist.report runs sweeps --output report.html``; with ``--watch`` it is kept up to date. Each DIR is a
run directory, a sweep directory, or any folder or URL (s3://BUCKET/runs) above such. Exit status 0: the page is
written, also where single runs could not be read (it lists them); 2: nothing was found, or it cannot be written.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dcgan_dist.command_line import parse_settings, run, split_words
from dcgan_dist.config import ReportConfig
from dcgan_dist.errors import ConfigError, InputError, RunDirectoryError, StorageError
from dcgan_dist.paths import expanded
from dcgan_dist.results.aggregate import Pile, Tell, collect
from dcgan_dist.results.page import write_page
from dcgan_dist.results.remembered import cache_file
from dcgan_dist.results.tables import write_tables
from dcgan_dist.results.thumbnails import Thumbnails
from dcgan_dist.stopping import Interrupted
from dcgan_dist.storage.files import writing
from dcgan_dist.storage.folder import check_writable, folder_at

PROG = "dcgan-dist report"

_FAILURES = 10  # looks in a row that may fail while watching


def report_command(arguments: Sequence[str]) -> None:
    """Read the places given and write the page and the tables; with `watch`, again and again."""
    words, options = split_words(arguments, {"watch": "10"})
    config = parse_settings(ReportConfig, options, PROG, __doc__ or "", "DIR ... ")
    places = need_places(words)
    output = check_output(config.output)
    cache = cache_file(config.cache, str(output.absolute()))
    thumbnails = Thumbnails()
    pile = write_report(places, output, cache, told, thumbnails)
    if config.watch is None:
        return
    try:
        watch(places, output, cache, config.watch, pile, thumbnails)
    except Interrupted as stop:
        if stop.number != signal.SIGINT:  # Ctrl-C is how watching ends
            raise
        print("stopped watching; the page stays as it is", flush=True)


def need_places(words: Sequence[str]) -> list[str]:
    """Return the directories and URLs given.

    Raises:
        ConfigError: there are none.
    """
    if not words:
        raise ConfigError("no directory given: name those with runs and sweeps, such as `runs` or `s3://bucket/runs`")
    return list(words)


def told(line: str) -> None:
    """Print a line on the progress, where it is in nobody's way."""
    print(line, file=sys.stderr, flush=True)


def check_output(output: str | Path) -> Path:
    """Return the path of the page; its folder need not be there.

    Raises:
        ConfigError: it cannot be written.
    """
    path = expanded(output)
    if "://" in str(output):
        raise ConfigError(f"output is {str(output)!r}: the page is written to a disk; take a path, and copy it then")
    if not path.name.lower().endswith((".html", ".htm")) and not path.is_dir():
        raise ConfigError(f"output is {str(output)!r}: name a file that ends in .html; the tables go beside it")
    if path.is_dir():
        raise ConfigError(f"output is {str(output)!r}, a folder: name a file in it, such as {path / 'report.html'}")
    try:
        check_writable(str(path.parent))
    except RunDirectoryError as error:
        raise ConfigError(f"output {str(output)!r} cannot be written: {error}") from error
    return path


def write_report(
    places: Sequence[str],
    output: str | Path,
    cache: Path | None = None,
    tell: Tell | None = None,
    thumbnails: Thumbnails | None = None,
) -> Pile:
    """Write the page and the tables of all that is at and below `places`, and print their paths.

    Args:
        places: folders, or URLs of any fsspec file system.
        output: path of the page; the tables go beside it.
        cache: file that makes the next time faster, see `collect`.
        tell: is given lines on the progress.
        thumbnails: given again, grids that have not changed are not decoded again.

    Returns:
        What the page shows.

    Raises:
        InputError: a place is no directory, nothing was found there, or the page cannot be written.
        StorageError: the disk is full.
    """
    page = check_output(output)
    pile = collect(places, cache, tell)
    tables = _write(pile, page, thumbnails or Thumbnails())
    for name, path in zip(("report", "table", "typed table", "curves"), (page, *tables), strict=True):
        print(f"{name:15} {path}", flush=True)
    return pile


def write_report_beside(location: str) -> None:
    """Write the page and the tables of a sweep into its own folder or URL, and print their paths.

    Raises:
        InputError: they cannot be written.
        StorageError: the disk is full, or the storage fails.
    """
    where = folder_at(location)
    if where.path is not None:
        write_report([location], where.path / "report.html")
        return
    with TemporaryDirectory(prefix="dcgan_dist-report-") as folder:
        _write(collect([location]), Path(folder, "report.html"), Thumbnails())
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            where.write(path.relative_to(folder).as_posix(), path.read_bytes())
    print(f"{'report':15} {location.rstrip('/')}/report.html", flush=True)


def _write(pile: Pile, output: Path, thumbnails: Thumbnails) -> list[Path]:
    """Write all files and return the paths of the tables; the page comes last, when what it stands beside is there."""
    with writing(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    tables = write_tables(pile, output.parent)
    write_page(pile, output, now=time.time(), thumbnails=thumbnails)
    return tables


def is_running(pile: Pile) -> bool:
    """Whether something in the pile goes on."""
    return any(status == "running" for _, status, _ in _states(pile))


def watch(
    places: Sequence[str],
    output: Path,
    cache: Path,
    seconds: float,
    pile: Pile,
    thumbnails: Thumbnails,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page anew whenever something has changed, until nothing in the pile is running.

    Args:
        places: see `write_report`.
        output: the page.
        cache: see `write_report`.
        seconds: between two looks.
        pile: what the page shows now.
        thumbnails: see `write_report`.
        sleep: waits.

    Raises:
        InputError: a place is gone, and stays so for several looks.
        StorageError: storage cannot be read or written, for several looks.
    """
    failures = 0
    while is_running(pile):
        sleep(seconds)
        try:
            before, pile = pile, collect(places, cache, told)
            if pile.read or _states(pile) != _states(before):
                _write(pile, output, thumbnails)
                print(f"{time.strftime('%H:%M:%S')} {_states_told(pile)}", flush=True)
        except (InputError, StorageError) as error:
            failures += 1
            if failures == _FAILURES:
                raise
            told(f"{error}; trying again in {seconds:g} s")
        else:
            failures = 0
    print("all have ended", flush=True)


def _states(pile: Pile) -> list[tuple[str, str, str]]:
    trials = [(trial.key, trial.status, trial.reason) for trial in pile.trials]
    return trials + [(sweep.key, sweep.status, sweep.reason) for sweep in pile.sweeps]


def _states_told(pile: Pile) -> str:
    counts: dict[str, int] = {}
    for trial in pile.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    return f"{len(pile.trials):,} trials: " + ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(report_command, PROG, arguments, after_signal="a page that was there stays as it is")


if __name__ == "__main__":
    sys.exit(main())
