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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from dcgan_dist.config import NonNegativeFloat
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.diversity import Metric
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
    subtitle_of,
)
from dcgan_dist.exploration.drawing import Canvas, Panel, describe, line_of_shares
from dcgan_dist.exploration.figure import IF_KNOWN, SHOWN, FigureConfig, Measured
from dcgan_dist.exploration.networks import Trained, parse_ids
from dcgan_dist.settings import as_list
from dcgan_dist.training.draws import draw_z

ROOMS = "window, view left - no window, view left + no window, view right"
"""The default formula for a run that was trained on rooms."""

_LIST = "; or list samples that show it: --concept '{{{}: \"3,17,20\"}}'"
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
    """

    ids: tuple[int, ...]
    found: int | None = None


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


def find_exemplars(judged: Probabilities, wanted: Wanted) -> Exemplars:
    """Return the judged samples that clearly show what a concept names."""
    clear = confidence(judged, wanted)
    order = np.argsort(-clear, kind="stable")
    found = int((clear >= _CLEAR).sum())
    return Exemplars(tuple(order[: min(found, _MOST_EXEMPLARS)].tolist()), found)


def alike(judged: Probabilities) -> Metric:
    """Return the share of attributes that two images have in common, over all pairs of n, with its 95% interval.

    The interval is that of a U-statistic: it uses the mean agreement of each image with all others.
    """
    seen = np.stack([values.argmax(axis=1) for values in judged.values()])
    n = seen.shape[1]
    if n < 2:
        return Metric(1.0, (0.0, 1.0), n)
    to_others = ((seen[:, :, None] == seen[:, None, :]).mean(axis=0).sum(axis=1) - 1) / (n - 1)
    mean, half = float(to_others.mean()), Z95 * 2 * float(to_others.std(ddof=1)) / n**0.5
    return Metric(mean, (max(0.0, mean - half), min(1.0, mean + half)), n)


@dataclass(frozen=True)
class Results:
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
    latent: Metric
    pixels: Metric
    by_attribute: dict[str, Metric]
    alike: Metric
    length: float
    outside: float | None


def measure_draws(
    run: Trained,
    judge: AttributeJudge,
    terms: Sequence[Term],
    exemplars: Sequence[Exemplars],
    wanted: Wanted,
    counts: Sequence[int],
    draws: int,
    label: str | None,
) -> list[Results]:
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
        drawn_z = [[pool[chosen].mean(dim=0) for pool, chosen in zip(pools, draw, strict=True)] for draw in rows]
        drawn_images = [[some[chosen] for some, chosen in zip(images, draw, strict=True)] for draw in rows]
        z = torch.stack([combine(signs, means) for means in drawn_z])
        latent = judge_samples(run, judge, z, label, f"arithmetic with {count}")
        pixels = judge.probabilities(np.stack([combine_pixels(signs, some) for some in drawn_images]))
        results.append(
            Results(
                exemplars=count,
                latent=share(shows(latent, wanted)),
                pixels=share(shows(pixels, wanted)),
                by_attribute={name: share(shows(latent, {name: value})) for name, value in wanted.items()},
                alike=alike(latent),
                length=float(z.norm(dim=1).mean()),
                outside=_outside(run, z),
            )
        )
    return results


@dataclass(frozen=True, kw_only=True)
class Row:
    """The arithmetic with some exemplars of each concept, as the picture shows it.

    Attributes:
        exemplars: number of exemplars of each concept.
        outside: share of the values of the result's z outside [-1, 1]; None for normal noise.
        centre_shows_wanted: whether a judge sees what is wanted in the result.
        neighbours_showing_wanted: in how many of its 8 neighbours.
        concepts: for each concept the samples of its exemplars and, if they are several, that of their mean z, uint8
            (n, S, S, C).
        results: the result in the middle of its neighbours, uint8 (9, S, S, C).
        pixels: the result of the arithmetic on pixels, uint8 (1, S, S, C).
    """

    exemplars: int
    outside: float | None
    centre_shows_wanted: bool | None = field(metadata=IF_KNOWN)
    neighbours_showing_wanted: int | None = field(metadata=IF_KNOWN)
    concepts: list[Pixels] = field(metadata=SHOWN)
    results: Pixels = field(metadata=SHOWN)
    pixels: Pixels = field(metadata=SHOWN)


@dataclass(frozen=True)
class Concept(Term):
    """A term of the formula with the samples that show it.

    Attributes:
        ids: numbers of the samples, as in `Exemplars`.
        found: how many a search found; None for listed samples.
    """

    ids: tuple[int, ...]
    found: int | None


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Measured):
    """Sums and differences of the z of concepts.

    Attributes:
        formula: the concepts.
        searched: number of samples among which exemplars were looked for.
        shown: the rows of the picture.
        wanted: what the results should show; None where no judge can say it.
        base_rate: share of all samples that show it.
        typical_length: root mean square length of a random z.
        measured: what the results show, by ascending number of exemplars; empty if nothing was measured.
        judge_accuracy: accuracy of the judge by attribute; None without a judge.
        phrases: the words for each wanted attribute.
        noise: bound of the noise of the neighbours.
        attributes: number of attributes that the judge knows.
    """

    formula: list[Concept]
    searched: int
    shown: list[Row]
    wanted: str | None
    base_rate: Metric | None
    typical_length: float
    measured: list[Results]
    judge_accuracy: dict[str, float] | None
    phrases: dict[str, str] = field(metadata=SHOWN)
    noise: float = field(metadata=SHOWN)
    attributes: int = field(metadata=SHOWN)

    @property
    def words(self) -> str:
        """The formula."""
        return " ".join(f"{'+' if term.sign > 0 else '-'} ({term.concept})" for term in self.formula).removeprefix("+ ")


def measure(config: ArithmeticConfig, run: Trained) -> Arithmetic:
    """Do the arithmetic, and measure it where a judge knows the concepts.

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
    named = {concept: _read(judge, concept, "formula", _LIST.format(concept)) for concept in asked} if judge else {}
    wanted = _wanted(config, judge, terms, named)
    exemplars, judged = {name: Exemplars(ids) for name, ids in listed.items()}, None
    if judge is not None and (asked or (wanted and config.draws)):
        judged = judge_samples(run, judge, first_z(run, config.search), label, "looking for exemplars")
        exemplars |= {concept: find_exemplars(judged, named[concept]) for concept in asked}
    counts = _chosen_counts(config, asked, listed)
    for concept, some in exemplars.items():
        _check_enough(concept, some, max(counts), config.search)
    row = [exemplars[term.concept] for term in terms]
    measured: list[Results] = []
    if judge is not None and judged is not None and wanted and config.draws:
        fewest = min(len(some.ids) for some in row)
        sizes = [count for count in sorted(set(config.measured)) if count <= fewest]
        measured = measure_draws(run, judge, terms, row, wanted, sizes, config.draws, label)
    formula = [Concept(term.sign, term.concept, some.ids, some.found) for term, some in zip(terms, row, strict=True)]
    return Arithmetic(
        subtitle=subtitle_of(run, label),
        formula=formula,
        searched=config.search if judged is not None else 0,
        shown=[_row(config, run, formula, count, judge, wanted, label) for count in counts],
        wanted=judge.words(wanted) if judge is not None and wanted else None,
        base_rate=share(shows(judged, wanted)) if judged is not None and wanted else None,
        typical_length=float((run.model.z_dim / (3 if run.model.z_distribution == "uniform" else 1)) ** 0.5),
        measured=measured,
        judge_accuracy=judge.accuracy if judge is not None else None,
        phrases={name: judge.words({name: value}) for name, value in wanted.items()} if judge is not None else {},
        noise=config.noise,
        attributes=len(judge.values) if judge is not None else 0,
    )


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


def _read(judge: AttributeJudge, text: str, setting: str, way_out: str = "") -> Wanted:
    try:
        return judge.read(text)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}{way_out}") from error


def _wanted(
    config: ArithmeticConfig, judge: AttributeJudge | None, terms: Sequence[Term], named: dict[str, Wanted]
) -> Wanted:
    """Return the attributes that the results should show; empty where no judge can say it."""
    if judge is None:
        return {}
    if config.wanted is not None:
        return _read(judge, config.wanted, "wanted")
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


def _outside(run: Trained, z: Tensor) -> float | None:
    return share_outside(z) if run.model.z_distribution == "uniform" else None


def _row(
    config: ArithmeticConfig,
    run: Trained,
    formula: Sequence[Concept],
    count: int,
    judge: AttributeJudge | None,
    wanted: Wanted,
    label: str | None,
) -> Row:
    """Do the arithmetic with the first `count` exemplars of each concept."""
    signs = [concept.sign for concept in formula]
    pools = [run.z(concept.ids[:count]) for concept in formula]
    images = [run.generate(z, run.y(count, label)) for z in pools]
    means = [z.mean(dim=0) for z in pools]
    grid = neighbours(combine(signs, means), config.noise, run.seed)
    results, middle = run.generate(grid, run.y(len(grid), label)), _NEIGHBOURS // 2
    concepts = images
    if count > 1:
        of_means = [run.generate(mean[None], run.y(1, label)) for mean in means]
        concepts = [np.concatenate(parts) for parts in zip(images, of_means, strict=True)]
    right = shows(judge.probabilities(results), wanted) if judge is not None and wanted else None
    return Row(
        exemplars=count,
        outside=_outside(run, grid[middle]),
        centre_shows_wanted=None if right is None else bool(right[middle]),
        neighbours_showing_wanted=None if right is None else int(right.sum() - right[middle]),
        concepts=concepts,
        results=results,
        pixels=combine_pixels(signs, images)[None],
    )


def draw(arithmetic: Arithmetic) -> Canvas:
    """Draw the rows of the arithmetic and, where it was measured, how often the results show what is wanted."""
    canvas = Canvas("Arithmetic on z", arithmetic.subtitle)
    canvas.text(arithmetic.words)
    for row in arithmetic.shown:
        panels = []
        for number, (concept, images) in enumerate(zip(arithmetic.formula, row.concepts, strict=True)):
            sign = "- " if concept.sign < 0 else "+ " if number else ""
            marks = [*map(str, concept.ids[: row.exemplars]), "mean"][: len(images)]
            panels.append(Panel(f"{sign}{concept.concept}", images, -(-len(images) // 4), marks))
        of = "1 exemplar" if row.exemplars == 1 else f"{row.exemplars} exemplars"
        caption = f"= z of {of} each; around it with noise of ±{arithmetic.noise:g}"
        canvas.images(*panels, Panel(caption, row.results, 3), Panel("the same on pixels", row.pixels, 1))
    if arithmetic.measured and arithmetic.base_rate is not None:
        _plot(canvas, arithmetic, arithmetic.base_rate.value)
    return canvas


def _plot(canvas: Canvas, arithmetic: Arithmetic, base: float) -> None:
    measured = arithmetic.measured
    canvas.text(
        f"Measured over {measured[0].latent.n} draws of exemplars, with 95% intervals: results that show "
        f"{arithmetic.wanted}, as a classifier sees them."
    )
    x, of_results = [one.exemplars for one in measured], "show it (% of results)"
    by_attribute = {phrase: [one.by_attribute[name] for one in measured] for name, phrase in arithmetic.phrases.items()}
    on_z_and_pixels = {"z": [one.latent for one in measured], "pixels": [one.pixels for one in measured]}
    pairs = {f"{arithmetic.attributes} attributes": [one.alike for one in measured]}
    plots = canvas.plots(3, height=1.7)
    for axes, title, words, lines in zip(
        plots,
        ("arithmetic on z and on pixels", "on z, by attribute", "how alike two results on z are"),
        (of_results, of_results, "the same in both (%)"),
        (on_z_and_pixels, by_attribute, pairs),
        strict=True,
    ):
        for number, (name, shares) in enumerate(lines.items()):
            # Shift each line a little, so that the bars of the intervals do not overlap.
            line_of_shares(axes, [count * 1.03**number for count in x], shares, name, number)
        if axes is plots[0]:
            axes.axhline(100 * base, color="0.5", linewidth=1, linestyle=":", label="samples of any z")
        axes.set_xscale("log")
        axes.set_xticks(x, [str(count) for count in x])
        axes.minorticks_off()
        describe(
            axes, title, legend={"fontsize": 6.5}, ylim=(-3, 103), xlabel="exemplars of each concept", ylabel=words
        )


def finding(arithmetic: Arithmetic) -> str:
    """Return how often the results show what is wanted or, if that was not measured, how far their z lie outside."""
    measured = arithmetic.measured
    if measured and arithmetic.base_rate is not None:
        some = [one for one in measured if one.exemplars in (1, 3, 10)] or measured
        return (
            f"With {_join(str(one.exemplars) for one in some)} exemplars a concept, "
            f"{_percents(one.latent.value for one in some)} of {measured[0].latent.n} results on z show "
            f"{arithmetic.wanted}, and {_percents(one.pixels.value for one in some)} on pixels "
            f"({_percents([arithmetic.base_rate.value])} of all samples do); two results on z are the same in "
            f"{_percents(one.alike.value for one in some)} of {arithmetic.attributes} attributes."
        )
    counts = _join(str(row.exemplars) for row in arithmetic.shown)
    of = f"{arithmetic.words} with {counts} exemplars a concept; nothing was measured"
    outside = [row.outside for row in arithmetic.shown if row.outside is not None]
    return f"{of}, and {_percents(outside)} of the values of z lie outside [-1, 1]." if outside else f"{of}."


def _percents(shares: Iterable[float]) -> str:
    return _join(f"{100 * share:.0f}%" for share in shares)


def _join(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


__all__ = ["Arithmetic", "ArithmeticConfig", "Concept", "Exemplars", "Results", "Row", "Term", "alike", "combine",
           "combine_pixels", "derive_wanted", "draw", "find_exemplars", "finding", "measure", "measure_draws",
           "neighbours", "parse_formula", "share_outside"]  # fmt: skip
