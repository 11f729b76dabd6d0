"""Show every run and sweep below some directories, local or on storage, as one page, trials.csv and parquet files.

``python -m dcgan_dist.report runs sweeps --output report.html``; with ``--watch`` it is kept up to date. Each DIR is a
run directory, a sweep directory, or any folder or URL (s3://BUCKET/runs) that contains some. Exit status 0: the page
was written, even if some runs could not be read (the page lists them); 2: nothing was found, or it cannot be written.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dcgan_dist.command_line import FrontDoor, parse_settings, print_progress, run
from dcgan_dist.errors import InputError, StorageError
from dcgan_dist.results.aggregate import Collection, collect
from dcgan_dist.results.read_cache import cache_file
from dcgan_dist.results.report import check_output, write_report
from dcgan_dist.results.settings import ReportConfig
from dcgan_dist.results.thumbnails import Thumbnails
from dcgan_dist.stopping import Interrupted

PROG = "dcgan-dist report"

_FAILURES = 10  # successive failures at which watching ends


def report_command(arguments: Sequence[str]) -> None:
    """Read the given locations, and write the page and the tables; with `watch`, repeatedly."""
    config = parse_settings(ReportConfig, arguments, PROG, __doc__ or "", word_for="directories")
    locations = config.places
    output = check_output(config.output)
    cache = cache_file(config.cache, str(output.absolute()))
    thumbnails = Thumbnails()
    collection = collect(locations, cache, print_progress)
    for name, path in write_report(collection, output, thumbnails).items():
        print(f"{name:15} {path}", flush=True)
    if config.watch is None:
        return
    try:
        watch(locations, output, cache, config.watch, collection, thumbnails)
    except Interrupted as stop:
        if stop.number != signal.SIGINT:  # Ctrl-C is the normal end of watching
            raise
        print("stopped watching; the page is kept", flush=True)


def is_running(collection: Collection) -> bool:
    """Return whether a run or a sweep of the collection is running."""
    return any(status == "running" for _, status, _ in _states(collection))


def watch(
    locations: Sequence[str],
    output: Path,
    cache: Path,
    seconds: float,
    collection: Collection,
    thumbnails: Thumbnails,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page again whenever something has changed, until nothing in the collection is running.

    Args:
        locations: folders, or URLs of any fsspec file system.
        output: path of the page.
        cache: cache file, see `collect`.
        seconds: pause between two reads.
        collection: the collection that the page shows now.
        thumbnails: the thumbnails of the present page.
        sleep: function that waits.

    Raises:
        InputError: a location is gone in 10 reads.
        StorageError: storage could not be read or written 10 times.
    """
    failures = 0
    while is_running(collection):
        sleep(seconds)
        try:
            before, collection = collection, collect(locations, cache, print_progress)
            if collection.read or _states(collection) != _states(before):
                write_report(collection, output, thumbnails)
                print(f"{time.strftime('%H:%M:%S')} {_summary(collection)}", flush=True)
        except (InputError, StorageError) as error:
            failures += 1
            if failures == _FAILURES:
                raise
            print_progress(f"{error}; trying again in {seconds:g} s")
        else:
            failures = 0
    print("all have ended", flush=True)


def _states(collection: Collection) -> list[tuple[str, str, str]]:
    trials = [(trial.key, trial.status, trial.reason) for trial in collection.trials]
    return trials + [(sweep.key, sweep.status, sweep.reason) for sweep in collection.sweeps]


def _summary(collection: Collection) -> str:
    counts: dict[str, int] = {}
    for trial in collection.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    by_status = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return f"{len(collection.trials):,} trials: {by_status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(report_command, PROG, arguments, after_signal="a page that existed before is kept")


sys.modules[__name__].__class__ = FrontDoor  # `dcgan_dist.report(...)` is `api.report`

if __name__ == "__main__":
    sys.exit(main())
