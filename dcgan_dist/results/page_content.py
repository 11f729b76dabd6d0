"""The content of the page as plain values: sentences, tables, and the data that its scripts draw."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from dcgan_dist.config import Config, flatten
from dcgan_dist.results.aggregate import SWEPT_TASK, Collection, Score, Sweep, Trial
from dcgan_dist.results.published import PUBLISHED, SETUPS, Setup, published_key

PAPER_KEYS = ("optim.lr", "optim.beta1", "model.slope")
"""The settings to which the paper found training most sensitive; the defaults of `Config` are its values."""

LOWER_IS_BETTER = (
    *("frechet_distance", "fid", "kid", "loss_d", "loss_g"),
    *("pixel_auc", "feature_auc", "pixel_near_copies", "feature_near_copies"),
)
DIVERSITY = ("coverage", "recall", "distance_ratio")
STABILITY = f"{SWEPT_TASK}.stability"
CURVES = ("loss_d", "loss_g", "d_real", "d_fake", "sample_distance", "images_per_s", "filter_oscillation", "lr")
Curve = npt.NDArray[np.float64]

VERDICTS = ("stable", "discriminator_wins", "collapse", "oscillation", "diverged", "undecided")

DASH = "\N{EN DASH}"  # shown for unknown values
_LONGEST = 2000  # characters of a setting's value that are shown


# Numbers and names in sentences


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text, with about `digits` significant digits; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-2:
        digit, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{digit.rstrip('0').rstrip('.')}e{int(power)}"
    # Ties are rounded up, as in the page's script, so that 88.25 is 88.3 in the text and in the table.
    rounded = Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal_from_float(float(value))
    return f"{float(rounded):.{digits}g}"


def value_text(value: object) -> str:
    """Return a value of a setting as text of bounded length."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif value is None:
        text = "none"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def short(text: str, most: int = 60) -> str:
    """Return a text as one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def count(amount: int, name: str) -> str:
    """Return a number with a noun in the right form, such as `1 trial` or `24 trials`."""
    return f"{amount:,} {name}" + ("" if amount == 1 else "s")


def _enumeration(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def plain(name: str) -> str:
    """Return a name with spaces instead of underscores."""
    return name.replace("_", " ")


def _with_interval(score: Score) -> str:
    interval = f" ({number(score.low)} to {number(score.high)})" if math.isfinite(score.low) else ""
    return f"{number(score.value)}{interval}"


def verdict_of(trial: Trial) -> str:
    """Return the verdict on a trial: `diverged` if that is its status, whatever its log says."""
    return "diverged" if trial.status == "diverged" else trial.verdict.name or "undecided"


# Scores


def is_lower_better(name: str) -> bool:
    """Return whether a lower value of the score `TASK.METRIC` is better."""
    metric = name.rpartition(".")[2]
    return metric in LOWER_IS_BETTER or metric.startswith("error")


def score_names(collection: Collection) -> list[str]:
    """Return the names of the scores that trials have: objectives of sweeps first, then the most useful and common."""
    found = Counter(
        name for trial in collection.trials for name, score in trial.scores.items() if math.isfinite(score.value)
    )
    wanted = [f"{SWEPT_TASK}.{name}" for sweep in collection.sweeps for name in _objectives(sweep)]

    def rank(name: str) -> tuple[int, int, int, str]:
        metric = name.rpartition(".")[2]
        kind = 0 if metric in ("representation", "accuracy") else 1 if metric in DIVERSITY else 2
        return (wanted.index(name) if name in wanted else len(wanted), kind, -found[name], name)

    return sorted(found, key=rank)


def _objectives(sweep: Sweep) -> list[str]:
    return [part.partition(":")[0].strip() for part in sweep.objective.split(",") if part.strip()]


def score_labels(names: Sequence[str]) -> dict[str, str]:
    """Return a short label for each score: the metric, with the task if the metric alone is ambiguous."""
    metrics = Counter(name.rpartition(".")[2] for name in names)
    labels = {}
    for name in names:
        task, _, metric = name.rpartition(".")
        alone = metrics[metric] == 1 and (metric != "accuracy" or task == SWEPT_TASK)
        labels[name] = plain(metric if alone or task == SWEPT_TASK else f"{task} {metric}")
    return labels


def best_trial(collection: Collection, main: str | None) -> Trial | None:
    """Return the best trial: of a single sweep its own choice, otherwise the best by the main score.

    Diverged and collapsed trials rank below all others.
    """
    by_key = {trial.key: trial for trial in collection.trials}
    if len(collection.sweeps) == 1 and collection.sweeps[0].best in by_key:
        return by_key[collection.sweeps[0].best]
    if main is None:
        return None
    scored = [trial for trial in collection.trials if main in trial.scores and math.isfinite(trial.scores[main].value)]
    sign = -1 if is_lower_better(main) else 1

    def rank(trial: Trial) -> tuple[bool, float]:
        return verdict_of(trial) not in ("diverged", "collapse"), sign * trial.scores[main].value

    return max(scored, key=rank, default=None)


# The summary


def summary(collection: Collection) -> list[str]:
    """Return the results in plain sentences, the most important first."""
    trials = collection.trials
    if not trials:
        return ["No run was found that could be read."]
    single = sum(trial.sweep is None for trial in trials)
    sources = [count(len(collection.sweeps), "sweep")] if collection.sweeps else []
    sources += [count(single, "single run")] if single and collection.sweeps else []
    statuses = Counter(trial.status for trial in trials)
    counts = _enumeration([f"{amount:,} {name}" for name, amount in statuses.most_common()])
    where = f" in {_enumeration(sources)}" if sources else ""
    sentences = [f"{count(len(trials), 'trial')}{where}: {counts}."]
    verdicts = Counter(verdict_of(trial) for trial in trials)
    judged = [f"{verdicts[name]:,} {plain(name)}" for name in VERDICTS if verdicts[name]]
    judged += [f"{amount:,} {short(plain(name), 30)}" for name, amount in verdicts.items() if name not in VERDICTS]
    sentences.append(f"Judged by their losses and samples: {_enumeration(judged)}.")
    names = score_names(collection)
    main = names[0] if names else None
    best = best_trial(collection, main)
    if best is not None:
        sentences.append(_about_best(best, main, score_labels(names)))
        if main is not None and (compared := _against_paper(collection, best, main, score_labels(names)[main])):
            sentences.append(compared)
    if not names:
        sentences.append("No trial has a score yet.")
    for sweep in collection.sweeps:
        if sweep.trials_wanted is not None and len(sweep.trials) < sweep.trials_wanted:
            sentences.append(
                f"The sweep {short(sweep.name)} has started {len(sweep.trials):,} of its {sweep.trials_wanted:,} trials"
                f" ({sweep.status})."
            )
    return sentences


def _settings_text(trial: Trial, keys: Iterable[str]) -> str:
    values = [(key, trial.settings.get(key, trial.parameters.get(key))) for key in keys]
    return ", ".join(
        f"{key.rpartition('.')[2]} {number(value) if _is_number(value) else short(value_text(value), 30)}"
        for key, value in values
        if value is not None
    )


def _about_best(best: Trial, main: str | None, labels: Mapping[str, str]) -> str:
    got = best.scores.get(main) if main else None
    score = f" with {labels[main]} {_with_interval(got)}" if got and main else ""
    keys = list(best.parameters) or list(PAPER_KEYS)
    where = _settings_text(best, keys[:6])
    verdict = verdict_of(best)
    caution = "" if verdict == "stable" else f" It was judged {plain(verdict)}: look at its samples."
    return f"The best is {short(best.key)}{score}" + (f", at {where}." if where else ".") + caution


def _against_paper(collection: Collection, best: Trial, main: str, label: str) -> str | None:
    paper = {key: value for key, value in flatten(Config()).items() if key in PAPER_KEYS}
    values = ", ".join(f"{key.rpartition('.')[2]} {number(paper[key])}" for key in PAPER_KEYS)
    others = [
        trial
        for trial in collection.trials
        if trial.sweep == best.sweep
        and main in trial.scores
        and math.isfinite(trial.scores[main].value)
        and all(_is_number(trial.settings.get(key)) for key in PAPER_KEYS)
    ]
    if main not in best.scores or best.sweep is None or not others:
        return None

    def distance(trial: Trial) -> float:
        lr, beta1, slope = (float(trial.settings[key]) for key in PAPER_KEYS)
        decades = abs(math.log10(lr / float(paper["optim.lr"]))) if lr > 0 else math.inf
        return decades + abs(beta1 - float(paper["optim.beta1"])) + abs(slope - float(paper["model.slope"]))

    nearest = min(others, key=distance)
    is_same = distance(nearest) < 0.01
    if nearest is best:
        kind = "is at" if is_same else "is also the trial nearest to"
        return f"The best {kind} the paper's setting ({values})."
    ours, theirs = best.scores[main], nearest.scores[main]
    gap = (ours.value - theirs.value) * (-1 if is_lower_better(main) else 1)
    relation = f"{number(abs(gap), 2)} {'better' if gap >= 0 else 'worse'}"
    if all(math.isfinite(score.low) for score in (ours, theirs)):
        apart = ours.low > theirs.high or theirs.low > ours.high
        sure = "their 95% intervals do not overlap" if apart else "their 95% intervals overlap, so that may be chance"
    else:
        sure = "without intervals, so that may be chance"
    where = "" if is_same else f" ({_settings_text(nearest, PAPER_KEYS)})"
    which = "The paper's setting" if is_same else "The trial nearest to the paper's setting"
    found = f"{which} ({values}) is {short(nearest.key)}{where}: {label} {_with_interval(theirs)}."
    if ours.step is not None and theirs.step is not None and ours.step != theirs.step:
        steps = f"{theirs.step:,} steps and {ours.step:,}"
        return f"{found} The best is {relation}, but that compares {steps}."
    return f"{found} The best is {relation}; {sure}."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# Representation scores next to the paper's tables


@dataclass(frozen=True)
class Row:
    """A row of a table of accuracies, as texts to be shown."""

    method: str
    accuracy: str
    interval: str
    n: str
    protocol: str
    remark: str
    kind: str  # published, paper, control, ours


@dataclass(frozen=True)
class Representation:
    """The table of accuracies of one task and protocol, the paper's rows first."""

    title: str
    how: str
    rows: tuple[Row, ...]
    is_published: bool


_MOST_OURS = 8


def representation(collection: Collection) -> list[Representation]:
    """Return a table for each task and protocol that has scores, the tables of the paper first."""
    of: dict[tuple[str, str], list[tuple[Trial, Score]]] = {}
    for trial in collection.trials:
        for score in trial.all_scores:
            if score.metric == "accuracy" and score.task != SWEPT_TASK and math.isfinite(score.value):
                of.setdefault(published_key(score.task, score.protocol), []).append((trial, score))
    tables = []
    for (task, protocol), entries in sorted(of.items(), key=lambda item: (item[0] not in PUBLISHED, item[0])):
        setup = SETUPS.get((task, protocol))
        published = [
            Row(
                name,
                accuracy,
                "",
                "",
                f"{units} units" if units else "",
                "",
                "paper" if name == setup.method else "published",
            )
            for name, accuracy, units in PUBLISHED.get((task, protocol), ())
            if setup is not None
        ]
        tables.append(
            Representation(
                title=f"{setup.title} ({setup.table} of the paper)" if setup else f"{task}, {protocol}",
                how=f"The paper: {setup.how}" if setup else "The paper has no such table.",
                rows=(*published, *_own_rows(entries, setup)),
                is_published=bool(published),
            )
        )
    return tables


def _own_rows(entries: Sequence[tuple[Trial, Score]], setup: Setup | None) -> list[Row]:
    newest: dict[tuple[str, str, str], tuple[Trial, Score]] = {}
    for trial, score in entries:
        # A control is the same for all runs that are scored on the same data.
        key = (trial.key if score.step is not None else "", score.method, score.protocol)
        before = newest.get(key)
        if before is None or (score.step or -1) >= (before[1].step or -1):
            newest[key] = (trial, score)
    ranked = sorted(newest.values(), key=lambda item: -item[1].value)
    runs = [item for item in ranked if item[1].step is not None]
    controls = [item for item in ranked if item[1].step is None]
    rows = [_own_row(trial, score, setup) for trial, score in (*controls[:_MOST_OURS], *runs[:_MOST_OURS])]
    if len(runs) > _MOST_OURS:
        rows.append(Row(f"{len(runs) - _MOST_OURS:,} more trials, with less", "", "", "", "", "", "control"))
    return rows


def _own_row(trial: Trial, score: Score, setup: Setup | None) -> Row:
    is_control = score.step is None
    return Row(
        method=f"control: {short(score.method, 40)}" if is_control else f"{short(trial.key, 40)}, step {score.step:,}",
        accuracy=number(score.value, 4),
        interval=f"{number(score.low, 4)} to {number(score.high, 4)}" if math.isfinite(score.low) else "",
        n=f"{score.n:,}" if score.n is not None else "",
        protocol=short(score.protocol, 60),
        remark="" if is_control else _deviations(trial, setup),
        kind="control" if is_control else "ours",
    )


def _deviations(trial: Trial, setup: Setup | None) -> str:
    """Return how a run differs from the paper's, by its own settings."""
    settings = trial.settings
    data = short(str(settings.get("data.path", "unknown data")).rstrip("/").rpartition("/")[2], 40)
    size = settings.get("model.image_size")
    remarks = [f"trained on {data}" + (f" at {size} px" if size else "")]
    if setup:
        remarks[0] += f" (paper: {setup.trained_on} at {setup.image_size} px)"
    if (epoch := trial.final.get("epoch")) is not None:
        remarks.append(f"{number(epoch)} epochs")
    widths = [f"{key} {settings[name]}" for key in ("ngf", "ndf") if (name := f"model.{key}") in settings]
    if widths:
        remarks.append(" ".join(widths))
    precision = settings.get("training.precision")
    if precision not in (None, "fp32"):
        remarks.append(short(str(precision), 12))
    return ", ".join(remarks)


# Budgets


@dataclass(frozen=True)
class Budget:
    """The cost of a sweep or a run, as texts to be shown."""

    name: str
    trials: str
    images: str
    wall: str
    cpu: str
    gpu: str
    throughput: str


def budgets(collection: Collection) -> list[Budget]:
    """Return the cost of each sweep and single run, and, if there are several, of all together."""
    groups: list[tuple[str, list[Trial]]] = [
        (short(sweep.key), [trial for trial in collection.trials if trial.sweep == sweep.key])
        for sweep in collection.sweeps
    ]
    singles = [trial for trial in collection.trials if trial.sweep is None]
    groups += [(short(trial.key), [trial]) for trial in singles] if len(singles) <= 40 else [("single runs", singles)]
    groups = [(name, trials) for name, trials in groups if any(trial.images_seen or trial.seconds for trial in trials)]
    rows = [_budget(name, trials) for name, trials in groups]
    if len(groups) > 1:
        rows.append(_budget("together", [trial for _, trials in groups for trial in trials]))
    return rows


def _budget(name: str, trials: Sequence[Trial]) -> Budget:
    hours = {"cpu": 0.0, "gpu": 0.0, "unknown": 0.0}
    for trial in trials:
        kind = "gpu" if trial.device.startswith("cuda") else "cpu" if trial.device.startswith("cpu") else "unknown"
        hours[kind] += (trial.seconds or 0.0) * (trial.world_size or 1) / 3600
    rates = [trial.throughput for trial in trials if trial.throughput]
    images = sum(trial.images_seen or 0 for trial in trials)

    def or_dash(value: float) -> str:
        return number(value, 2) if value else DASH

    wall = sum(trial.seconds or 0.0 for trial in trials) / 3600
    unknown = f"{number(hours['unknown'])} (device unknown)" if hours["unknown"] else ""
    return Budget(
        name=name,
        trials=f"{len(trials):,}",
        images=f"{images:,}" if images else DASH,
        wall=or_dash(wall),
        cpu=or_dash(hours["cpu"]),
        gpu=" + ".join(part for part in (or_dash(hours["gpu"]) if hours["gpu"] else "", unknown) if part) or DASH,
        throughput=number(median(rates)) if rates else DASH,
    )


def scaling(collection: Collection) -> list[dict[str, Any]]:
    """Return the median throughput by number of workers, for groups of runs that differ only in that number."""
    groups: dict[str, dict[int, list[float]]] = {}
    for trial in collection.trials:
        if trial.world_size and trial.throughput:
            keys = ("model.image_size", "model.ngf", "model.ndf", "training.batch_size", "training.precision")
            label = ", ".join(f"{key.rpartition('.')[2]} {short(str(trial.settings.get(key)), 12)}" for key in keys)
            label += f", {short(trial.device, 20)}" if trial.device else ""
            groups.setdefault(label, {}).setdefault(trial.world_size, []).append(trial.throughput)
    return [
        {"label": label, "points": [{"workers": size, "rate": median(rates[size])} for size in sorted(rates)]}
        for label, rates in groups.items()
        if len(rates) > 1
    ]


# Data for the scripts


def swept_parameters(collection: Collection) -> list[str]:
    """Return the settings that sweeps chose, the paper's three first.

    Without a sweep, return those of the paper's three in which runs differ.
    """
    found = Counter(key for trial in collection.trials for key in trial.parameters)
    if not found:
        for key in PAPER_KEYS:
            if len({str(trial.settings.get(key)) for trial in collection.trials}) > 1:
                found[key] = 1
    return sorted(
        found, key=lambda key: (key not in PAPER_KEYS, PAPER_KEYS.index(key) if key in PAPER_KEYS else 0, key)
    )


def parameter_labels(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted name, or the whole name if the last part is ambiguous."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: tail if last[tail := key.rpartition(".")[2]] == 1 else key for key in keys}


def core(collection: Collection, files: str | None, thumbnails: Sequence[tuple[str, int] | None]) -> dict[str, Any]:
    """Return the data that the scripts need at the start: a few values of every trial.

    Args:
        collection: the runs and sweeps to show.
        files: name of the folder next to the page with its images and details; None if they are in the page.
        thumbnails: for each trial the name and step of the thumbnail of its newest samples.
    """
    names = score_names(collection)
    parameters = swept_parameters(collection)
    main = names[0] if names else None
    best = best_trial(collection, main)
    shown = best if best and best.samples else next((trial for trial in collection.trials if trial.samples), None)
    sweep_labels = {sweep.key: sweep.key for sweep in collection.sweeps}
    trials = [
        {
            "index": index,
            "key": trial.key,
            "label": trial.key,
            "sweep": sweep_labels.get(trial.sweep or "", trial.sweep),
            "sweepKey": trial.sweep,
            "status": trial.status,
            "reason": short(trial.reason, 300),
            "verdict": verdict_of(trial),
            "parameters": {key: _plain_value(_parameter(trial, key)) for key in parameters if _has(trial, key)},
            "scores": {
                name: {"value": _rounded(score.value), "low": _rounded(score.low), "high": _rounded(score.high)}
                for name in names
                if (score := trial.scores.get(name)) is not None and math.isfinite(score.value)
            },
            "step": trial.step,
            "steps": trial.steps,
            "images": trial.images_seen,
            "seconds": _rounded(trial.seconds),
            "throughput": _rounded(trial.throughput),
            "workers": trial.world_size,
            "device": short(trial.device, 40),
            "problems": len(trial.problems),
            "z": "/".join(str(trial.settings.get(key)) for key in ("seed", "model.z_dim", "model.z_distribution")),
            "thumbnail": thumbnail[0] if thumbnail else None,
            "thumbnailStep": thumbnail[1] if thumbnail else None,
        }
        for index, (trial, thumbnail) in enumerate(zip(collection.trials, thumbnails, strict=True))
    ]
    labels = parameter_labels(parameters)
    return {
        "files": files,
        "trials": trials,
        "sweeps": [_sweep(sweep, collection, labels) for sweep in collection.sweeps],
        "scores": names,
        "scoreLabels": score_labels(names),
        "lower": [name for name in names if is_lower_better(name)],
        "diversity": [name for metric in DIVERSITY for name in names if name.rpartition(".")[2] == metric],
        "mainScore": main,
        "boardScores": [name for name in _common(names, collection) if name != STABILITY or name == main][:4],
        "stability": STABILITY if STABILITY in names and main != STABILITY else None,
        "boardParameters": parameters[:5],
        "parameterLabels": labels,
        "logarithmic": [key for key in parameters if _is_logarithmic(key, collection)],
        "best": best.key if best else None,
        "hero": shown.key if shown else None,
        "picked": _to_compare(collection, best, main),
        "scaling": scaling(collection),
        "empty": detail(Trial("", "", ""), [], [], None),
    }


def _common(names: Sequence[str], collection: Collection) -> list[str]:
    """Return the scores for the columns of the leaderboard.

    These are scores that many trials have, except those that a sweep's score of the same kind repeats.
    """
    found = Counter(name for trial in collection.trials for name in trial.scores)
    most = max(found.values(), default=0)

    def is_repeated(name: str) -> bool:
        task, _, metric = name.rpartition(".")
        swept = f"{SWEPT_TASK}.{'representation' if metric == 'accuracy' else metric}"
        return task != SWEPT_TASK and all(swept in trial.scores for trial in collection.trials if name in trial.scores)

    return [name for name in names if found[name] * 5 >= most and not is_repeated(name)]


def _is_logarithmic(key: str, collection: Collection) -> bool:
    """Return whether a setting was searched by its logarithm, or has positive values over a factor of 10 or more."""
    entries = [sweep.space[key] for sweep in collection.sweeps if isinstance(sweep.space.get(key), Mapping)]
    if any("loguniform" in entry for entry in entries):
        return True
    if any(kind in entry for entry in entries for kind in ("uniform", "randint")):
        return False
    values = [value for trial in collection.trials if _is_number(value := _parameter(trial, key))]
    return bool(values) and min(values) > 0 and max(values) >= 10 * min(values)


def _to_compare(collection: Collection, best: Trial | None, main: str | None) -> list[str]:
    """Return three trials for the first comparison: the best, a median one, and one that is not stable."""
    shown = [trial for trial in collection.trials if trial.samples and (best is None or trial.sweep == best.sweep)]
    if len(shown) < 2:
        return [trial.key for trial in collection.trials if trial.samples][:3]
    scored = [trial for trial in shown if main is not None and main in trial.scores]
    scored.sort(key=lambda trial: trial.scores[main or ""].value)
    bad = [trial for trial in shown if verdict_of(trial) not in ("stable", "undecided")]
    wanted = [best] if best in shown else []
    wanted += [scored[len(scored) // 2]] if scored else []
    wanted += [*bad[:1], *shown]
    return [trial.key for trial in dict.fromkeys(_ById(trial) for trial in wanted if trial is not None)][:3]


class _ById:
    """A trial that is compared and hashed by its key: trials themselves contain arrays and cannot be hashed."""

    def __init__(self, trial: Trial) -> None:
        self.key = trial.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _sweep(sweep: Sweep, collection: Collection, labels: Mapping[str, str]) -> dict[str, Any]:
    searched = {key for trial in collection.trials if trial.sweep == sweep.key for key in trial.parameters}
    rows = sorted(sweep.importance.items(), key=lambda item: -item[1][0])
    return {
        "key": sweep.key,
        "label": sweep.key,
        "parameters": [key for key in labels if key in searched],
        "importance": [
            {
                "label": labels.get(key, key),
                "value": _rounded(value),
                "low": _rounded(low),
                "high": _rounded(high),
            }
            for key, (value, low, high) in rows[:12]
        ],
    }


def _has(trial: Trial, key: str) -> bool:
    return key in trial.parameters or key in trial.settings


def _parameter(trial: Trial, key: str) -> Any:
    return trial.parameters.get(key, trial.settings.get(key))


def _plain_value(value: Any) -> Any:
    """Return a number or boolean unchanged, any other value as text."""
    if isinstance(value, bool) or _is_number(value):
        return value
    return short(value_text(value), 200)


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def detail(
    trial: Trial,
    grids: Sequence[Mapping[str, Any]],
    raw: Sequence[Mapping[str, Any]],
    real: Mapping[str, Any] | None,
    figures: Sequence[Mapping[str, Any]] = (),
    points: int = 300,
) -> dict[str, Any]:
    """Return the data of the page about one trial.

    Args:
        trial: the trial.
        grids: its sample grids by step: ``{"step": …, "image": name}`` or ``{"step": …, "problem": text}``.
        raw: the same for grids of the raw weights, if the other grids are of averaged weights.
        real: the same for the grid of real images.
        figures: the same for its figures; empty if they are left out.
        points: points of each curve, at most.
    """
    steps = trial.metrics.get("step")
    curves = {
        name: thin(steps, trial.metrics[name], points)
        for name in CURVES
        if steps is not None and name in trial.metrics and np.isfinite(trial.metrics[name]).any()
    }
    parent = trial.parent
    step = f" at step {parent.step:,}" if parent is not None and parent.step is not None else ""
    return {
        "directory": trial.directory,
        "reason": short(trial.reason, 1000),
        "verdictReason": short(trial.verdict.reason, 1000),
        "parent": f"It continued from {short(parent.trial)}{step} (checkpoint {short(parent.digest)})."
        if parent
        else None,
        "problems": [short(problem, 500) for problem in trial.problems[:20]],
        "command": trial.command,
        "settings": [
            [short(key, 200), value_text(value)] + ([value_text(trial.changed[key][1])] if key in trial.changed else [])
            for key, value in trial.settings.items()
        ],
        "scores": [
            {
                "task": score.task,
                "metric": score.metric,
                "value": _rounded(score.value),
                "low": _rounded(score.low),
                "high": _rounded(score.high),
                "n": score.n,
                "step": score.step,
                "method": f"{score.method}, averaged weights" if score.weights == "average" else score.method,
                "protocol": score.protocol,
                "control": score.step is None,
            }
            for score in trial.all_scores[:400]
        ],
        "curves": curves,
        "grids": list(grids),
        "raw": list(raw),
        "real": real,
        "figures": [
            {"title": short(figure.title, 200), "finding": short(figure.finding, 600), **shown}
            for (figure, _), shown in zip(trial.figures, figures, strict=False)
        ],
    }


def thin(steps: Curve, values: Curve, points: int) -> tuple[list[int], list[float | None]]:
    """Return a curve with about `points` points: the lowest and highest of each interval, so that no peak is lost.

    Args:
        steps: (rows,), increasing.
        values: (rows,); NaN for missing values.
        points: number of points to return, at most two more.
    """
    kept = np.arange(len(values))
    if len(values) > points:
        width = math.ceil(len(values) / (points // 2))
        starts = np.arange(0, len(values), width)
        padded = np.full(len(starts) * width, np.nan)
        padded[: len(values)] = values
        known = np.isfinite(padded)
        # For an interval without any value, both are its first row.
        lowest = np.where(known, padded, np.inf).reshape(-1, width).argmin(axis=1)
        highest = np.where(known, padded, -np.inf).reshape(-1, width).argmax(axis=1)
        kept = np.unique(np.concatenate((starts + lowest, starts + highest, [0, len(values) - 1])))
    return steps[kept].astype(np.int64).tolist(), [_short_float(value) for value in values[kept].tolist()]


def _short_float(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
