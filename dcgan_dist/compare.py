"""Show every run and sweep below some directories as a table in the terminal; `report` shows the same as a page.

``python -m dcgan_dist.compare runs sweeps``; ``--sort final.loss_d`` sorts by any column of trials.csv.
"""

from __future__ import annotations

import difflib
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcgan_dist.command_line import parse_settings, print_progress, run
from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import ConfigError
from dcgan_dist.results.aggregate import Collection, Score, Trial, collect
from dcgan_dist.results.page_content import is_lower_better, score_names
from dcgan_dist.results.read_cache import cache_file
from dcgan_dist.results.settings import CompareConfig
from dcgan_dist.results.tables import trial_table

PROG = "dcgan-dist compare"

_WIDE = 160  # characters of a line if the output is not a terminal
_SCORES = 3  # scores that have a column, at most
_NEVER_SHOWN = ("data.cache", "data.cache_gib")

_STYLES = {
    "finished": "green",
    "running": "cyan",
    "waiting": "dim",
    "stopped": "yellow",
    "failed": "red",
    "diverged": "red",
    "died": "red",
}


def compare_command(arguments: Sequence[str]) -> None:
    """Read the given locations, and print the table."""
    config = parse_settings(CompareConfig, arguments, PROG, __doc__ or "", word_for="directories")
    locations = config.places
    collection = collect(locations, cache_file(config.cache, "\n".join(locations)), print_progress)
    order, sorted_by = sort_trials(collection, config.sort)
    shown = order if config.rows == 0 else order[: config.rows]
    # For a pipe rich would take 80 columns; if COLUMNS is set, it takes that number.
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if is_sized else _WIDE, highlight=False)
    _print(console, collection, shown)
    counts = Counter(trial.status for trial in collection.trials)
    by_status = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    left = f"; the first {len(shown):,} are shown, --rows 0 shows all" if len(shown) < len(order) else ""
    console.print(_safe(f"{len(order):,} trial{'' if len(order) == 1 else 's'} by {sorted_by}: {by_status}{left}"))


def render(collection: Collection, shown: Sequence[Trial], width: int) -> str:
    """Return the output of the command for some trials of a collection, in lines of at most `width` characters."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as capture:
        _print(console, collection, shown)
    return capture.get()


def _print(console: Console, collection: Collection, shown: Sequence[Trial]) -> None:
    for sweep in collection.sweeps:
        best = f", best {sweep.best}" if sweep.best else ""
        objective = f", objective {sweep.objective}" if sweep.objective else ""
        console.print(_safe(f"sweep {sweep.key}: {sweep.status}, {len(sweep.trials)} trials{objective}{best}"))
        for problem in sweep.problems:
            console.print(_safe(f"{sweep.key}: {problem}"))
    if shown:
        console.print(make_table(shown, collection, console.width))
    for trial in shown:
        for problem in trial.problems:
            console.print(_safe(f"{trial.key}: {problem}"))
    for path, reason in collection.unreadable:
        console.print(_safe(f"unreadable: {path}: {reason}"))


# Order


def sort_trials(collection: Collection, column: str | None) -> tuple[list[Trial], str]:
    """Return the sorted trials, those without a value last, and the name of the column.

    Args:
        collection: the trials.
        column: column of trials.csv, with a leading - for descending order; None for the objective, or, if there is
            none, the first score, best first.

    Raises:
        ConfigError: there is no such column.
    """
    if column is not None:
        name = column.removeprefix("-")
        table = trial_table(collection)
        if name not in table:
            near = difflib.get_close_matches(name, list(table), n=1)
            hint = f"did you mean {near[0]}?" if near else "take one of trials.csv, such as final.loss_d"
            raise ConfigError(f"sort is {column!r}, but no column has that name: {hint}")
        values = dict(zip((trial.key for trial in collection.trials), table[name][1], strict=True))
        return _ordered(collection, lambda trial: values[trial.key], falling=column.startswith("-")), column
    if any(trial.objective is not None for trial in collection.trials):
        return _ordered(collection, lambda trial: trial.objective, falling=True), "the objective"
    best = next(iter(score_names(collection)), None)
    if best is None:
        return list(collection.trials), "directory"
    falling = not is_lower_better(best)
    return _ordered(collection, lambda trial: _value(trial.scores.get(best)), falling=falling), best


def _ordered(collection: Collection, value: Callable[[Trial], Any], *, falling: bool) -> list[Trial]:
    usable = {trial.key: value(trial) for trial in collection.trials}
    given = [trial for trial in collection.trials if not _is_missing(usable[trial.key])]
    # Numbers and texts cannot be compared: texts come after all numbers.
    given.sort(
        key=lambda trial: (
            (isinstance(usable[trial.key], str), usable[trial.key])
            if isinstance(usable[trial.key], int | float | str)
            else (True, str(usable[trial.key]))
        ),
        reverse=falling,
    )
    return given + [trial for trial in collection.trials if _is_missing(usable[trial.key])]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


# The table


def make_table(trials: Sequence[Trial], collection: Collection, width: int) -> Table:
    """Return the table of trials: their differences and results; below 120 characters a narrower one."""
    narrow = width < 120
    scores = score_names(collection)[: 1 if narrow else _SCORES]
    table = Table(show_lines=narrow)
    table.add_column("trial", overflow="fold", ratio=2 if narrow else None)
    table.add_column("settings", overflow="fold", ratio=3)
    table.add_column("status\nverdict", overflow="fold", ratio=2 if narrow else None)
    for name in ["step", *scores, "loss D\nloss G", "images/s"]:
        table.add_column(name.replace(".", "\n", 1), justify="right", overflow="fold")
    shared = _shared(collection.trials)
    for trial in trials:
        status = Text(_plain(trial.status), style=_STYLES.get(trial.status, ""))
        status.append(f"\n{_plain(trial.verdict.name)}", style="dim" if trial.verdict.name == "undecided" else "")
        if trial.status in ("failed", "diverged", "died") and trial.reason:
            status.append(f"\n{_plain(trial.reason)[: 60 if narrow else 120]}", style="dim")
        table.add_row(
            _safe(trial.key),
            _settings(trial, shared, 6 if narrow else 12),
            status,
            "" if trial.step is None else f"{trial.step:,}",
            *(_score(trial.scores.get(name)) for name in scores),
            "\n".join(f"{trial.final[name]:.3g}" if name in trial.final else "-" for name in ("loss_d", "loss_g")),
            "" if trial.throughput is None else f"{trial.throughput:,.0f}",
        )
    return table


def _shared(trials: Sequence[Trial]) -> set[str]:
    """Return the changed settings that have the same value in all trials, which need not be shown."""
    if len(trials) < 2:
        return set()
    first = trials[0].changed
    return {key for key in first if all(trial.changed.get(key) == first[key] for trial in trials)}


def _settings(trial: Trial, shared: set[str], most: int) -> Text:
    """Return the parameters of a sweep, or else the changed settings; those with an effect on stability come first."""
    values = dict(trial.parameters)
    if not values:
        values = {key: value for key, (value, _) in trial.changed.items() if key not in shared}
    keys = sorted((key for key in values if key not in _NEVER_SHOWN), key=_rank)
    shown = Text()
    for key in keys[:most]:
        name = _short(key)
        shown.append(f"{_plain(name)} ", style="dim")
        shown.append(f"{_number(values[key])}  ")
    if len(keys) > most:
        shown.append(f"and {len(keys) - most} more", style="dim")
    shown.rstrip()
    return shown


def _rank(key: str) -> int:
    """Return the sort key of a setting: first the paper's three, then other ones, last those about how it is run."""
    groups = ("optim.lr", "optim.beta1", "model.slope", "optim.", "model.", "data.path", "")
    late = key.startswith(("cluster.", "data.", "training.")) and key not in ("data.path", "training.batch_size")
    return len(groups) + 1 if late else next(rank for rank, group in enumerate(groups) if key.startswith(group))


def _short(key: str) -> str:
    """Return a setting's name without its group, if no other setting has the same one."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in flatten(Config())) == 1 else key


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value))[:40]


def _score(score: Score | None) -> str:
    if score is None or math.isnan(score.value):
        return ""
    interval = "" if math.isnan(score.low) else f"\n{score.low:.4g} to {score.high:.4g}"
    return f"{score.value:.4g}{interval}"


def _plain(text: str) -> str:
    """Return a line of text without control characters, which could change the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _safe(text: str) -> Text:
    """Return a text that rich does not parse as markup."""
    return Text(_plain(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(compare_command, PROG, arguments, prints_result=True)


if __name__ == "__main__":
    sys.exit(main())
