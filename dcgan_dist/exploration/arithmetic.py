"""`arithmetic` (Fig. 7): sums and differences of the z of concepts (smiling woman - neutral woman + neutral man).

A concept is the mean z of its exemplars: a few samples that show it, which a person picked by number from a sheet, or
which a classifier found. The paper claims that arithmetic on single exemplars is unstable and on means of three is
stable. With a classifier this claim is measured: exemplars are drawn many times, and the results that show the wanted
attributes are counted. The wanted attributes come from the same arithmetic, done on the attributes that the concepts
name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from msgspec import Meta
from torch import Tensor

from dcgan_dist.config import NonNegativeFloat
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.tasks import Z95
from dcgan_dist.exploration.attributes import (
    AttributeJudge,
    Probabilities,
    Wanted,
    class_attributes,
    confidence,
    default_label,
    first_z,
    judge_samples,
    room_attributes,
    share,
    shows,
)
from dcgan_dist.exploration.drawing import Canvas, Panel, line_with_intervals
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained, parse_ids
from dcgan_dist.settings import as_list
from dcgan_dist.training.draws import draw_z

ROOMS = "window, view left - no window, view left + no window, view right"
"""The default formula for a run that was trained on rooms."""

_CLEAR = 0.5  # a sample is an exemplar of a concept if it shows all of it with at least this probability
_MOST_EXEMPLARS = 200  # of a concept; the clearest ones, because their images are held in memory
Number = Annotated[int, Meta(ge=1, le=_MOST_EXEMPLARS)]
_NEIGHBOURS = 8


@dataclass(frozen=True, kw_only=True)
class ArithmeticConfig(FigureConfig):
    """Settings of `explore arithmetic`."""

    formula: str | None = None
    """Concepts with + and - between them: `"smiling woman - neutral woman + neutral man"`. A concept that `concept`
    does not list is looked for among samples: for a run on rooms by attributes (`"window, bed red, view left"`; also
    `no window`, `lamp`, `wall 30`, `night`, `rug`, `picture`), for others by the name of a class of `data`. Left out,
    for rooms: a window is taken from a view from the left to one from the right."""
    concept: dict[str, Any] = field(default_factory=dict)
    """Numbers of the samples (see `explore sheet`) that show each concept: `'{smiling woman: "3,17,20"}'`."""
    data: str | None = None
    """Labelled images, whose classes concepts are named after: shards, or a folder with a sub-folder for each class."""
    wanted: str | None = None
    """What the results should show, as a concept that is looked for. Left out, the formula done on the attributes that
    its concepts name; for classes, which say nothing of each other, nothing is measured then."""
    exemplars: tuple[Number, ...] = ()
    """List of how many exemplars make a concept in the picture, of found ones the clearest. Left out, 1 and 3
    (as in the paper), or 1 and all of the shortest list in `concept` where that lists all concepts."""
    noise: NonNegativeFloat = 0.25
    """Bound of the uniform noise that the 8 neighbours of a result have (paper: 0.25)."""
    search: Annotated[int, Meta(ge=1, le=10**6)] = 2000
    """Samples, from number 0 on, among which exemplars are looked for, and the base rate is counted."""
    draws: Annotated[int, Meta(ge=0, le=10**4)] = 100
    """How often exemplars are drawn for the measurement; 0 for none."""
    measured: Annotated[tuple[Number, ...], Meta(min_length=1)] = (1, 2, 3, 5, 10, 20)
    """List of the numbers of exemplars of a concept that are measured, as far as so many were found."""
    label: str | None = None
    """Number or name of the class that all images have; conditional runs only. Left out, the first class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.formula is not None:
            parse_formula(self.formula)
        unused = set(_listed(self.concept)) - {term.concept for term in parse_formula(self.formula or ROOMS)}
        if unused:
            raise ConfigError(f"concept lists {sorted(unused)[0]!r}, which the formula does not have: name it there")


@dataclass(frozen=True)
class Term:
    """A concept of a formula, and its sign: 1 (added) or -1 (subtracted)."""

    sign: int
    concept: str


@dataclass(frozen=True)
class Exemplars:
    """Samples that show a concept.

    Attributes:
        ids: numbers of the samples, the clearest first, or in the order in which they were listed.
        found: how many were found by a search, which can be more than `ids` has; None for listed samples.
        wanted: attributes that the concept's name asks for; empty where it names none.
    """

    ids: tuple[int, ...]
    found: int | None = None
    wanted: Wanted = field(default_factory=dict)


def parse_formula(text: str) -> list[Term]:
    """Parse concepts joined by + and -; each sign needs a space on both sides.

    Raises:
        ConfigError: a concept is empty.
    """
    parts = re.split(r"\s+([-+])\s+", f" + {text.strip()} ")
    terms = [
        Term(1 if sign == "+" else -1, " ".join(concept.split()))
        for sign, concept in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if any(re.match(r"([-+] |[-+]?$)", term.concept) for term in terms):
        raise ConfigError(f"formula is {text!r}: write concepts with + and - between them, such as a - b + c")
    return terms


def _listed(concepts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    listed = {}
    for name, value in concepts.items():
        if value is None or isinstance(value, dict | bool | float):
            raise ConfigError(f"concept {name!r} is {value!r}: list numbers in quotes, such as {{{name}: '3,17,20'}}")
        words = [str(item) for item in as_list(value)]
        listed[" ".join(str(name).split())] = tuple(parse_ids(f"concept {name!r}", words))
    return listed


def derive_wanted(terms: Sequence[Term], named: Sequence[Wanted]) -> Wanted:
    """Apply a formula to attributes: add 1 to the count of a value for each + term, subtract 1 for each - term.

    The value of each attribute with the highest count above 0 is wanted; among equal counts, the one that is named
    first. So for A - B + C the value of A is wanted where A and B differ, and the value of C elsewhere.
    """
    counts: dict[str, Counter[int]] = {}
    for term, values in zip(terms, named, strict=True):
        for name, value in values.items():
            counts.setdefault(name, Counter())[value] += term.sign
    best = {name: max(values, key=lambda value: values[value]) for name, values in counts.items()}
    return {name: value for name, value in best.items() if counts[name][value] > 0}


def combine(signs: Sequence[int], means: Sequence[Tensor]) -> Tensor:
    """Return the signed sum of the means, each (z_dim,)."""
    return torch.stack([sign * mean for sign, mean in zip(signs, means, strict=True)]).sum(dim=0)


def combine_pixels(signs: Sequence[int], images: Sequence[Pixels]) -> Pixels:
    """Return the signed sum of the mean images of uint8 (n, S, S, C), as uint8 (S, S, C), clipped to [0, 255]."""
    total = sum(sign * some.astype(np.float64).mean(axis=0) for sign, some in zip(signs, images, strict=True))
    return np.asarray(total).round().clip(0, 255).astype(np.uint8)


def neighbours(centre: Tensor, noise: float, seed: int) -> Tensor:
    """Return 9 z, (9, z_dim): the given z in the middle, and 8 copies with noise of U(-noise, noise) added."""
    drawn = draw_z(seed, "explore/neighbours", 0, _NEIGHBOURS, len(centre), "uniform") * noise
    middle = _NEIGHBOURS // 2
    return torch.cat([centre + drawn[:middle], centre[None], centre + drawn[middle:]])


def share_outside(z: Tensor) -> float:
    """Return the share of values outside [-1, 1], which uniform noise never has."""
    return float((z.abs() > 1).float().mean())


def find_exemplars(judge: AttributeJudge, judged: Probabilities, concept: str) -> Exemplars:
    """Return the judged samples that clearly show what a concept names.

    Raises:
        ConfigError: the judge does not know the attribute that the concept names.
    """
    wanted = judge.read(concept)
    clear = confidence(judged, wanted)
    order = np.argsort(-clear, kind="stable")
    found = int((clear >= _CLEAR).sum())
    return Exemplars(tuple(order[: min(found, _MOST_EXEMPLARS)].tolist()), found, wanted)


def alike(judged: Probabilities) -> dict[str, Any]:
    """Return the share of attributes that two images have in common, over all pairs of n, with its 95% interval.

    The interval is that of a U-statistic: it uses the mean agreement of each image with all others.
    """
    seen = np.stack([values.argmax(axis=1) for values in judged.values()])
    n = seen.shape[1]
    if n < 2:
        return {"value": 1.0, "ci95": [0.0, 1.0], "n": n}
    to_others = ((seen[:, :, None] == seen[:, None, :]).mean(axis=0).sum(axis=1) - 1) / (n - 1)
    mean, half = float(to_others.mean()), Z95 * 2 * float(to_others.std(ddof=1)) / n**0.5
    return {"value": mean, "ci95": [max(0.0, mean - half), min(1.0, mean + half)], "n": n}


@dataclass(frozen=True)
class Measured:
    """What the results of the arithmetic show, for one number of exemplars.

    Attributes:
        exemplars: exemplars of each concept.
        latent: share of the results of arithmetic on z that show all wanted attributes.
        pixels: the same for arithmetic on the pixels of the exemplars' images.
        by_attribute: share of the results on z that show each wanted attribute.
        alike: share of the judge's attributes that two results on z have in common (see `alike`).
        length: mean length of the z of the results.
        outside: share of the values of z outside [-1, 1]; None for normal noise.
    """

    exemplars: int
    latent: dict[str, Any]
    pixels: dict[str, Any]
    by_attribute: dict[str, dict[str, Any]]
    alike: dict[str, Any]
    length: float
    outside: float | None


def measure(
    run: Trained,
    judge: AttributeJudge,
    terms: Sequence[Term],
    exemplars: Sequence[Exemplars],
    wanted: Wanted,
    counts: Sequence[int],
    draws: int,
    label: str | None,
) -> list[Measured]:
    """Draw exemplars many times, do the arithmetic with them, and count the results that show what is wanted.

    Args:
        run: the run.
        judge: classifies the images.
        terms: the formula.
        exemplars: exemplars of each term, from which each draw takes some without replacement.
        wanted: attributes that the results should show.
        counts: numbers of exemplars of a concept to measure.
        draws: draws for each of `counts`.
        label: class of all images.
    """
    signs = [term.sign for term in terms]
    pools = [run.z(some.ids) for some in exemplars]
    images = [run.generate(pool, run.y(len(pool), label)) for pool in pools]
    results = []
    for count in counts:
        random = np.random.default_rng([run.seed, count])
        rows = [[random.permutation(len(pool))[:count] for pool in pools] for _ in range(draws)]
        z = torch.stack(
            [
                combine(signs, [pool[chosen].mean(dim=0) for pool, chosen in zip(pools, draw, strict=True)])
                for draw in rows
            ]
        )
        latent = judge_samples(run, judge, z, label, f"arithmetic with {count}")
        pixels = judge.probabilities(
            np.stack(
                [
                    combine_pixels(signs, [some[chosen] for some, chosen in zip(images, draw, strict=True)])
                    for draw in rows
                ]
            )
        )
        results.append(
            Measured(
                exemplars=count,
                latent=share(shows(latent, wanted)),
                pixels=share(shows(pixels, wanted)),
                by_attribute={name: share(shows(latent, {name: value})) for name, value in wanted.items()},
                alike=alike(latent),
                length=float(z.norm(dim=1).mean()),
                outside=share_outside(z) if run.model.z_distribution == "uniform" else None,
            )
        )
    return results


def draw_arithmetic(config: ArithmeticConfig, run: Trained) -> Drawn:
    """Draw the arithmetic, and measure it where a judge knows the concepts.

    Raises:
        ConfigError: a concept is unknown, or too few samples show it.
        DataError: there are no labelled images.
        NeedsChoice: exemplars have to be picked by a person.
    """
    if config.formula is None and not run.is_rooms:
        raise NeedsChoice(
            "formula is missing: pick numbers of samples from `explore sheet`, and give --formula 'a - b + c' "
            "--concept '{a: \"3,17,20\", b: …, c: …}'"
        )
    terms, listed = parse_formula(config.formula or ROOMS), _listed(config.concept)
    label = default_label(run, config.label)
    run.y(1, label)  # refuses an unknown class before the search, which takes long
    asked = [term.concept for term in terms if term.concept not in listed]
    judge = _judge(config, run, [*asked, *([config.wanted] if config.wanted else [])])
    named = {concept: _read(judge, concept) for concept in asked} if judge else {}
    wanted = _wanted(config, judge, terms, named)
    judged = None
    if judge is not None and (asked or (wanted and config.draws)):
        judged = judge_samples(run, judge, first_z(run, config.search), label, "looking for exemplars")
    exemplars = {name: Exemplars(ids) for name, ids in listed.items()}
    for concept in asked:
        assert judge is not None
        assert judged is not None
        exemplars[concept] = find_exemplars(judge, judged, concept)
    counts = _chosen_counts(config, asked, listed)
    for concept, some in exemplars.items():
        _check_enough(concept, some, max(counts), config.search)
    measured: list[Measured] = []
    row = [exemplars[term.concept] for term in terms]
    if judge is not None and judged is not None and wanted and config.draws:
        fewest = min(len(some.ids) for some in row)
        sizes = [count for count in sorted(set(config.measured)) if count <= fewest]
        measured = measure(run, judge, terms, row, wanted, sizes, config.draws, label)
    return _drawn(config, run, terms, row, counts, judge, wanted, judged, measured, label)


def _judge(config: ArithmeticConfig, run: Trained, texts: Sequence[str]) -> AttributeJudge | None:
    """Return a judge that knows the attributes in `texts`; None if `texts` is empty."""
    if not texts:
        return None
    if config.data is not None:
        return class_attributes(run, config.data)
    if run.is_rooms:
        return room_attributes(run)
    raise NeedsChoice(
        f"{texts[0]!r} cannot be looked for: pick numbers of samples from `explore sheet` and list them in --concept, "
        "or give --data PATH, labelled images with a class of that name"
    )


def _read(judge: AttributeJudge, concept: str) -> Wanted:
    try:
        return judge.read(concept)
    except ConfigError as error:
        raise ConfigError(
            f"formula: {error}; or list samples that show it: --concept '{{{concept}: \"3,17,20\"}}'"
        ) from error


def _wanted(
    config: ArithmeticConfig, judge: AttributeJudge | None, terms: Sequence[Term], named: dict[str, Wanted]
) -> Wanted:
    """Return the attributes that the results should show; empty where no judge can say it."""
    if judge is None:
        return {}
    if config.wanted is not None:
        try:
            return judge.read(config.wanted)
        except ConfigError as error:
            raise ConfigError(f"wanted: {error}") from error
    if "class" in judge.values or not all(term.concept in named for term in terms):
        return {}
    return derive_wanted(terms, [named[term.concept] for term in terms])


def _chosen_counts(config: ArithmeticConfig, asked: Sequence[str], listed: dict[str, tuple[int, ...]]) -> list[int]:
    if config.exemplars:
        return sorted(set(config.exemplars))
    return [1, 3] if asked else sorted({1, min(map(len, listed.values()))})


def _check_enough(concept: str, some: Exemplars, count: int, search: int) -> None:
    if len(some.ids) >= count:
        return
    if some.found is None:
        raise ConfigError(
            f"concept {concept!r} lists {len(some.ids)} samples, and exemplars asks for {count}: list more, or give "
            f"--exemplars {len(some.ids)}"
        )
    way_out = f"give --exemplars {some.found}, or a larger --search" if some.found else "give a larger --search"
    raise ConfigError(
        f"{some.found} of {search:,} samples searched clearly show {concept!r}, but exemplars asks for {count}: "
        f"{way_out}"
    )


def _drawn(
    config: ArithmeticConfig,
    run: Trained,
    terms: Sequence[Term],
    exemplars: Sequence[Exemplars],
    counts: Sequence[int],
    judge: AttributeJudge | None,
    wanted: Wanted,
    judged: Probabilities | None,
    measured: Sequence[Measured],
    label: str | None,
) -> Drawn:
    formula = " ".join(f"{'+' if term.sign > 0 else '-'} ({term.concept})" for term in terms).removeprefix("+ ")
    title = "Arithmetic on z"
    canvas = Canvas(title, run.subtitle + (f", class {label}" if label is not None else ""))
    canvas.text(formula)
    signs = [term.sign for term in terms]
    results = []
    for count in counts:
        z = [run.z(some.ids[:count]) for some in exemplars]
        images = [run.generate(part, run.y(count, label)) for part in z]
        grid = neighbours(combine(signs, [part.mean(dim=0) for part in z]), config.noise, run.seed)
        panels = [
            _concept_panel(run, term, some.ids[:count], part, pixels, label, number == 0)
            for number, (term, some, part, pixels) in enumerate(zip(terms, exemplars, z, images, strict=True))
        ]
        made = run.generate(grid, run.y(len(grid), label))
        of = "1 exemplar" if count == 1 else f"{count} exemplars"
        caption = f"= z of {of} each; around it with noise of ±{config.noise:g}"
        canvas.images(
            *panels,
            Panel(caption, made, 3),
            Panel("the same on pixels", combine_pixels(signs, images)[None], 1),
        )
        outside = share_outside(grid[_NEIGHBOURS // 2]) if run.model.z_distribution == "uniform" else None
        results.append({"exemplars": count, "outside": outside} | _seen(judge, wanted, made))
    base = share(shows(judged, wanted)) if judged is not None and wanted else None
    if measured and judge is not None and base is not None:
        _plot(canvas, measured, base, judge, wanted)
    return Drawn(
        title=title,
        finding=_finding(formula, results, judge, wanted, base, measured),
        canvas=canvas,
        numbers={
            "formula": [
                {"sign": term.sign, "concept": term.concept, "ids": list(some.ids), "found": some.found}
                for term, some in zip(terms, exemplars, strict=True)
            ],
            "searched": config.search if judged is not None else 0,
            "shown": results,
            "wanted": judge.words(wanted) if judge is not None and wanted else None,
            "base_rate": base,
            "typical_length": _typical_length(run),
            "measured": [vars(one) for one in measured],
            "judge_accuracy": judge.accuracy if judge is not None else None,
        },
    )


def _typical_length(run: Trained) -> float:
    """Return the root mean square length of a random z."""
    return float((run.model.z_dim / (3 if run.model.z_distribution == "uniform" else 1)) ** 0.5)


def _concept_panel(
    run: Trained, term: Term, ids: Sequence[int], z: Tensor, images: Pixels, label: str | None, is_first: bool
) -> Panel:
    """Return the exemplars of a concept, followed by the sample of their mean z."""
    sign = "" if is_first and term.sign > 0 else "+ " if term.sign > 0 else "- "
    marks = list(map(str, ids))
    if len(ids) > 1:
        mean = run.generate(z.mean(dim=0, keepdim=True), run.y(1, label))
        images, marks = np.concatenate([images, mean]), [*marks, "mean"]
    return Panel(f"{sign}{term.concept}", images, -(-len(images) // 4), marks)


def _seen(judge: AttributeJudge | None, wanted: Wanted, made: Pixels) -> dict[str, Any]:
    """Return what the judge sees in the drawn results: the one in the middle and its neighbours."""
    if judge is None or not wanted:
        return {}
    right: npt.NDArray[np.bool_] = shows(judge.probabilities(made), wanted)
    middle = _NEIGHBOURS // 2
    return {"centre_shows_wanted": bool(right[middle]), "neighbours_showing_wanted": int(right.sum() - right[middle])}


def _plot(
    canvas: Canvas, measured: Sequence[Measured], base: dict[str, Any], judge: AttributeJudge, wanted: Wanted
) -> None:
    draws = measured[0].latent["n"]
    canvas.text(
        f"Measured over {draws} draws of exemplars, with 95% intervals: results that show {judge.words(wanted)}, as a "
        "classifier sees them."
    )
    both, parts, pairs = plots = canvas.plots(3, height=1.7)
    x = [one.exemplars for one in measured]
    both.set_title("arithmetic on z and on pixels", fontsize=8)
    both.set_ylabel("show it (% of results)")
    _line(both, x, [one.latent for one in measured], "z", 0)
    _line(both, x, [one.pixels for one in measured], "pixels", 1)
    both.axhline(100 * base["value"], color="0.5", linewidth=1, linestyle=":", label="samples of any z")
    parts.set_title("on z, by attribute", fontsize=8)
    parts.set_ylabel("show it (% of results)")
    for number, (name, value) in enumerate(wanted.items()):
        phrase = judge.words({name: value})
        _line(parts, x, [one.by_attribute[name] for one in measured], phrase, number)
    pairs.set_title("how alike two results on z are", fontsize=8)
    pairs.set_ylabel("the same in both (%)")
    _line(pairs, x, [one.alike for one in measured], f"{len(judge.values)} attributes", 0)
    for axes in plots:
        axes.set_xscale("log")
        axes.set_xticks(x, [str(count) for count in x])
        axes.minorticks_off()
        axes.set_ylim(-3, 103)
        axes.set_xlabel("exemplars of each concept")
        axes.legend(fontsize=6.5, frameon=False)


def _line(axes: Axes, x: Sequence[int], shares: Sequence[dict[str, Any]], name: str, number: int) -> None:
    # Shift each line a little, so that the bars of the intervals do not overlap.
    shifted = [count * 1.03**number for count in x]
    percents = [100 * one["value"] for one in shares]
    line_with_intervals(axes, shifted, percents, [[100 * end for end in one["ci95"]] for one in shares], name, number)


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _finding(
    formula: str,
    results: Sequence[dict[str, Any]],
    judge: AttributeJudge | None,
    wanted: Wanted,
    base: dict[str, Any] | None,
    measured: Sequence[Measured],
) -> str:
    if measured and judge is not None and base is not None:
        some = [one for one in measured if one.exemplars in (1, 3, 10)] or list(measured)
        return (
            f"With {_join(str(one.exemplars) for one in some)} exemplars a concept, "
            f"{_join(_percent(one.latent['value']) for one in some)} of {measured[0].latent['n']} results on z show "
            f"{judge.words(wanted)}, and {_join(_percent(one.pixels['value']) for one in some)} on pixels "
            f"({_percent(base['value'])} of all samples do); two results on z are the same in "
            f"{_join(_percent(one.alike['value']) for one in some)} of {len(judge.values)} attributes."
        )
    of = f"{formula} with {_join(str(one['exemplars']) for one in results)} exemplars a concept; nothing was measured"
    outside = [one["outside"] for one in results]
    if None in outside:
        return f"{of}."
    return f"{of}, and {_join(map(_percent, outside))} of the values of z lie outside [-1, 1]."


def _join(words: Any) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else str(last)


__all__ = [
    "ArithmeticConfig",
    "Exemplars",
    "Measured",
    "Term",
    "alike",
    "combine",
    "combine_pixels",
    "derive_wanted",
    "draw_arithmetic",
    "find_exemplars",
    "measure",
    "neighbours",
    "parse_formula",
    "share_outside",
]
