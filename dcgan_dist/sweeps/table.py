"""A sweep in the terminal: the live table while it runs, and the ranking at its end."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dcgan_dist.printing import is_heard
from dcgan_dist.settings import as_text
from dcgan_dist.sweeps.best import best_location, train_command
from dcgan_dist.sweeps.ledger import Ledger, trial_location
from dcgan_dist.sweeps.objective import Objective, ranked
from dcgan_dist.sweeps.record import TrialRecord

PLAIN_SECONDS = 10.0
"""Pause between two summaries if standard output is not a terminal."""
_POLL_SECONDS = 0.5
_PLAIN_WIDTH = 160
_FRAME = 8  # lines of the table besides the trials
_COLOURS = {
    "running": "cyan",
    "failed": "red",
    "diverged": "red",
    "stopped": "dim",
    "stable": "green",
    "undecided": "dim",
    **dict.fromkeys(("collapse", "discriminator_wins", "oscillation"), "yellow"),
}


class LiveTable:
    """The table of a running sweep, as a context manager.

    On a terminal, one table is kept up to date: the running trials, and below them the best of those that have ended.
    Elsewhere, a line is printed for each trial whose status changes, and a summary every 10 s.
    """

    def __init__(self, ledger: Ledger, console: Console | None = None) -> None:
        """Prepare to show a sweep.

        Args:
            ledger: ledger of the sweep.
            console: where to print; if None, standard output.
        """
        self._ledger = ledger
        self._console = console or make_console()
        self._live: Live | None = None
        self._printed = {name: record.status for name, record in ledger.records.items()}
        self._summarised, self._summary = 0.0, ""
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self.render, refresh_per_second=1 / _POLL_SECONDS, transient=True
            )
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._keep_printing, name="sweep-table", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()
            self._print_changes()

    def render(self) -> Group:
        """Return the current table, with as many trials as fit on the screen."""
        records = list(self._ledger.records.values())
        running = [record for record in records if record.status == "running"]
        most = max(len(running), self._console.height - _FRAME)
        shown = [*running, *ranked(record for record in records if record.has_ended)][:most]
        table = Table(box=None, pad_edge=False, header_style="bold")
        keys = short_names(self._ledger.space.keys)
        table.add_column("trial")
        for name in keys.values():
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("step", "status", "verdict", self._ledger.objective.label, "left"):
            table.add_column(name, justify="left" if name in ("status", "verdict") else "right", no_wrap=True)
        for record in shown:
            left = seconds_left(record)
            table.add_row(
                record.trial,
                *(figure(record.parameters.get(key)) for key in keys),
                f"{record.step:,}/{record.steps:,}",
                coloured(record.status),
                coloured(record.verdict),
                figure(record.objective),
                "" if left is None else duration(left),
            )
        lines: list[Text | Table] = [Text(summary(self._ledger), style="bold"), Text(best_line(self._ledger)), table]
        if len(shown) < len(records):
            lines.append(Text(f"and {len(records) - len(shown)} more, in sweep.json", style="dim"))
        return Group(*lines)

    def _keep_printing(self) -> None:
        while True:
            self._print_changes()
            now = time.monotonic()
            if now - self._summarised >= PLAIN_SECONDS:
                self._summarised = now
                running = [record for record in self._ledger.records.values() if record.status == "running"]
                line = summary(self._ledger)
                if running or line != self._summary:
                    self._print(line)
                self._summary = line
                for record in running:
                    self._print(f"  {describe(record, self._ledger.objective)}")
            if self._done.wait(_POLL_SECONDS):
                return

    def _print_changes(self) -> None:
        for name, record in self._ledger.records.items():
            if self._printed.get(name) != record.status:
                self._printed[name] = record.status
                self._print(describe(record, self._ledger.objective))

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def make_console() -> Console:
    """Return a console for standard output; if that is not a terminal, wide enough for the columns of a sweep."""
    console = Console(quiet=is_heard())
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, quiet=is_heard())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted name, or the whole name if two have the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)}


def figure(value: object) -> str:
    """Return a value as text for a table: three significant digits, "" for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(as_text(value))


def coloured(name: str | None) -> Text:
    """Return a status or verdict in its colour."""
    return Text((name or "").replace("_", " "), style=_COLOURS.get(name or "", ""))


def duration(seconds: float) -> str:
    """Return a duration as text, such as `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def seconds_left(record: TrialRecord) -> float | None:
    """Return the seconds that a running trial still needs if it is not stopped early; None if unknown."""
    if record.status != "running" or not 0 < record.step <= record.steps:
        return None
    return record.seconds / record.step * (record.steps - record.step)


def share_done(records: Sequence[TrialRecord], wanted: int) -> float:
    """Return the share of a sweep that is done; a trial that has ended counts fully, even if it was stopped early."""
    done = sum(1.0 if record.has_ended else record.step / record.steps if record.steps else 0.0 for record in records)
    return min(1.0, done / wanted) if wanted else 1.0


def sweep_seconds_left(records: Sequence[TrialRecord], wanted: int) -> float | None:
    """Return the seconds that a sweep still needs; None while the duration of a trial is unknown.

    It is assumed that new trials take as long as those that have ended did on average, and that as many run at the same
    time as now.
    """
    running = [record for record in records if record.status == "running"]
    left = {record.trial: seconds for record in running if (seconds := seconds_left(record)) is not None}
    lengths = [record.seconds for record in records if record.status in ("finished", "stopped", "diverged")]
    lengths = lengths or [record.seconds + left[record.trial] for record in running if record.trial in left]
    if not lengths:
        return None
    each = sum(lengths) / len(lengths)
    # A running trial may be stopped early, like those that have ended.
    of_running = sum(min(left.get(record.trial, each), max(each - record.seconds, 0.0)) for record in running)
    to_come = max(0, wanted - sum(record.has_ended for record in records) - len(running))
    return (of_running + to_come * each) / max(1, len(running))


def summary(ledger: Ledger) -> str:
    """Return a line about the progress of a sweep."""
    records = list(ledger.records.values())
    wanted = ledger.trials_wanted
    parts = [f"sweep {ledger.config.name}: {sum(record.has_ended for record in records)} of {wanted} trials ended"]
    for status in ("stopped", "diverged", "failed", "running"):
        count = sum(record.status == status for record in records)
        if count:
            parts.append(f"{count} {status}")
    parts.append(f"{share_done(records, wanted):.0%} done")
    left = sweep_seconds_left(records, wanted)
    if left is not None and share_done(records, wanted) < 1:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def best_line(ledger: Ledger) -> str:
    """Return a line about the best trial so far."""
    best = ledger.best
    if best is None:
        return "no trial has a score yet"
    score = f"{ledger.objective.label} {figure(best.objective)}"
    return f"best so far: {best.trial}, {score}, {settings(best.parameters)}"


def settings(parameters: Mapping[str, Any]) -> str:
    """Return the values of a trial as one line of text."""
    return ", ".join(f"{key} {figure(value)}" for key, value in parameters.items())


def describe(record: TrialRecord, objective: Objective) -> str:
    """Return a line of text about a trial."""
    parts = [f"{record.trial} {record.status} at step {record.step:,} of {record.steps:,}"]
    if record.verdict:
        parts.append(record.verdict.replace("_", " "))
    if record.objective is not None:
        parts.append(f"{objective.label} {figure(record.objective)}")
    parts.append(settings(record.parameters))
    left = seconds_left(record)
    if left is not None:
        parts.append(f"{duration(left)} left")
    reason = f" ({record.reason})" if record.reason else ""
    return "; ".join(parts) + reason


def print_results(ledger: Ledger, console: Console | None = None) -> None:
    """Print the results: the ranking, the Pareto front, the importance of settings, locations, and the next command."""
    console = console or make_console()
    records = ranked(ledger.records.values())
    console.print(_ranking(ledger, records))
    reasons = [record for record in records if record.status in ("failed", "diverged")]
    for record in reasons:
        console.print(Text(f"{record.trial} {record.status}: {record.reason}"), soft_wrap=True)
    if ledger.objective.is_multiple:
        names, front = ", ".join(ledger.objective.names), ", ".join(ledger.pareto_front)
        console.print(Text(f"Pareto front over {names}: {front or 'empty'}"), soft_wrap=True)
    _print_importance(ledger, console)
    _print_locations(ledger, console)


def _ranking(ledger: Ledger, records: Sequence[TrialRecord]) -> Table:
    keys, objective = short_names(ledger.space.keys), ledger.objective
    table = Table(title=summary(ledger), title_justify="left", box=None, pad_edge=False)
    table.add_column("trial")
    for name in keys.values():
        table.add_column(name, justify="right")
    for name in objective.names:
        table.add_column(name, justify="right")
    if objective.weights:
        table.add_column("score", justify="right")
    finalists = any(record.full_objective is not None for record in records)
    if finalists:
        table.add_column(f"{objective.label} in full", justify="right")
    for name in ("verdict", "status", "step"):
        table.add_column(name, justify="right" if name == "step" else "left")
    for record in records:
        values = [figure(record.parameters.get(key)) for key in keys]
        scores = [_with_interval(record.scores.get(name, {})) for name in objective.names]
        if objective.weights:
            scores.append(figure(record.objective))
        if finalists:
            scores.append(_in_full(record, objective))
        names = (coloured(record.verdict), coloured(record.status))
        steps = f"{record.step:,}/{record.steps:,}"
        table.add_row(record.trial, *values, *scores, *names, steps, style="dim" if record.objective is None else "")
    return table


def _in_full(record: TrialRecord, objective: Objective) -> str:
    if objective.weights:
        return figure(record.full_objective)
    return _with_interval(record.full_scores.get(objective.names[0], {}))


def _with_interval(score: Mapping[str, Any]) -> str:
    value, interval = score.get("value"), score.get("ci95")
    if value is None or not interval or None in interval:
        return figure(value)
    return f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"


def _print_importance(ledger: Ledger, console: Console) -> None:
    importance = ledger.importance
    if not importance:
        console.print("Importance of the settings: printed at the end of a sweep with 8 or more scored trials")
        return
    console.print(
        "Importance: share of the variance of the score that is due to the setting, alone or together with others (95%"
        " interval); a trial that diverged, collapsed or failed counts like the worst one that has a score",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("setting")
    table.add_column("share", justify="right")
    table.add_column("interval", justify="right")
    for key, found in sorted(importance.items(), key=lambda item: -item[1]["value"]):
        low, high = found["ci95"]
        table.add_row(f"  {key}", f"{found['value']:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)


def _print_locations(ledger: Ledger, console: Console) -> None:
    location, best = ledger.location.rstrip("/"), ledger.best
    lines = [("sweep directory", location), ("curves", f"tensorboard --logdir {shlex.quote(f'{location}/trials')}")]
    if best is not None:
        lines += [
            ("best trial", f"{trial_location(location, best.trial)} ({settings(best.parameters)})"),
            ("its settings", best_location(location)),
            ("train it in full", train_command(location)),
        ]
    else:
        lines.append(("best trial", "none: no trial has a score, or all diverged or collapsed"))
    for name, text in lines:
        console.print(Text(f"{name:<17} {text}"), soft_wrap=True)


__all__ = ["LiveTable", "print_results"]
