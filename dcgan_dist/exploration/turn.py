"""`turn` (Fig. 8): samples turned from left to right by a vector in the space of z.

The turn vector is the mean z of a few samples that look right, minus the mean z of as many that look left. Parts of it,
from -1 to 1, are added to new z. For rooms, whose view the judge classifies, it is measured how many samples then look
right, and how many of their other attributes change. Random vectors of the same length are the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from dcgan_dist.config import PositiveInt
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.diversity import Metric
from dcgan_dist.exploration.arithmetic import share_outside
from dcgan_dist.exploration.attributes import (
    AttributeJudge,
    Mean,
    Probabilities,
    confidence,
    default_label,
    first_z,
    judge_samples,
    mean_of,
    room_attributes,
    share,
    shows,
    subtitle_of,
)
from dcgan_dist.exploration.drawing import Canvas, Panel, describe, line_of_shares, line_with_intervals
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured
from dcgan_dist.exploration.networks import Trained, parse_ids
from dcgan_dist.settings import require
from dcgan_dist.training.draws import draw_z

_RIGHT = "view right"
_LEFT = "view left"


@dataclass(frozen=True, kw_only=True)
class TurnConfig(FigureConfig):
    """Settings of `explore turn`."""

    left: tuple[str, ...] = ()
    """List of samples that look left (see `explore sheet`), such as `3,17,20,41` (4 in the paper). For rooms, those
    that the judge is surest of when left out."""
    right: tuple[str, ...] = ()
    """List of samples that look right."""
    exemplars: PositiveInt = 4
    """How many samples of each side are taken for rooms, where none are listed."""
    search: Annotated[int, Meta(ge=1, le=10**6)] = 500
    """Samples, from number 0 on, among which they are looked for."""
    rows: Annotated[int, Meta(ge=1, le=50)] = 5
    """New samples that are turned in the picture."""
    columns: Annotated[int, Meta(ge=3, le=25)] = 7
    """Parts of the vector that are added, from -1 to 1: an odd number, so that nothing is added in the middle."""
    measured: Annotated[int, Meta(ge=0, le=10**5)] = 200
    """New samples that the measurement is over; 0 for none."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only. Left out, the first class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for side, other in (("left", "right"), ("right", "left")):
            words = getattr(self, side)
            if words:
                parse_ids(side, words)
                if not getattr(self, other):
                    raise ConfigError(
                        f"{side} is {','.join(words)!r} and {other} is missing: list samples of both sides"
                    )
        require(self, self.exemplars <= self.search, "exemplars", f"take no more than search, {self.search}")
        require(self, self.columns % 2 == 1, "columns", "take an odd number from 3 to 25")


def turn_vector(left: Tensor, right: Tensor) -> Tensor:
    """Return the vector from the mean of z that look left (n, z_dim) to the mean of z that look right (m, z_dim)."""
    return right.mean(dim=0) - left.mean(dim=0)


def random_vectors(count: int, like: Tensor, seed: int) -> Tensor:
    """Return vectors of random directions, each as long as `like` (z_dim,), as (count, z_dim)."""
    drawn = draw_z(seed, "explore/random-vectors", 0, count, len(like), "normal")
    vectors: Tensor = drawn / drawn.norm(dim=1, keepdim=True) * like.norm()
    return vectors


def find_sides(judge: AttributeJudge, judged: Probabilities, exemplars: int) -> tuple[list[int], list[int]]:
    """Return the samples that most certainly look left, and those that most certainly look right.

    Raises:
        ConfigError: too few samples look to one side.
    """
    sides = []
    for phrase in (_LEFT, _RIGHT):
        wanted = judge.read(phrase)
        sure = np.where(shows(judged, wanted), confidence(judged, wanted), 0.0)
        found, searched = int((sure > 0).sum()), len(sure)
        if found < exemplars:
            raise ConfigError(
                f"{found} of {searched:,} samples searched show {phrase!r}, and exemplars asks for {exemplars}: give "
                "fewer --exemplars, or a larger --search"
            )
        sides.append(np.argsort(-sure, kind="stable")[:exemplars].tolist())
    return sides[0], sides[1]


@dataclass(frozen=True)
class Effect:
    """What samples show after parts of a vector were added to their z; the lists have one entry for each part.

    Attributes:
        right: share that looks right.
        changed: mean number of other attributes that differ from those of the unchanged z.
        turned: share of the samples that look left before and right at the last part; None if none looks left.
        outside: share of the values of z outside [-1, 1]; None for normal noise.
    """

    right: list[Metric]
    changed: list[Mean]
    turned: Metric | None
    outside: list[float] | None


def measure_vector(
    run: Trained, judge: AttributeJudge, z: Tensor, vectors: Tensor, parts: Sequence[float], label: str | None
) -> Effect:
    """Add parts of a vector to z, and classify the samples.

    Args:
        run: the run.
        judge: classifier of the samples, which knows their view.
        z: the unchanged z, (n, z_dim).
        vectors: the vector to add, (z_dim,), or one for each z, (n, z_dim).
        parts: factors of the vector, ascending; 0 must be one of them.
        label: class of all samples.
    """
    judged = [judge_samples(run, judge, z + part * vectors, label, f"adding {part:+.2f} of a vector") for part in parts]
    before = judged[list(parts).index(0.0)]
    wanted = judge.read(_RIGHT)
    right = [shows(at, wanted) for at in judged]
    others = [name for name in judge.values if name not in wanted]
    start = {name: before[name].argmax(axis=1) for name in others}
    changed = [np.sum([at[name].argmax(axis=1) != start[name] for name in others], axis=0) for at in judged]
    looked_left = shows(before, judge.read(_LEFT))
    return Effect(
        right=[share(mask) for mask in right],
        changed=[mean_of(count) for count in changed],
        turned=share(right[-1][looked_left]) if looked_left.any() else None,
        outside=[share_outside(z + part * vectors) for part in parts]
        if run.model.z_distribution == "uniform"
        else None,
    )


@dataclass(frozen=True, kw_only=True)
class Turn(Measured):
    """A vector that turns samples, and what it does.

    Attributes:
        left: numbers of the exemplars that look left.
        right: numbers of those that look right.
        length: length of the turn vector.
        parts: parts of a vector that are added to z, from -1 to 1.
        turn: what the turn vector does; None if nothing was measured.
        random: what random vectors of the same length do.
        other_attributes: number of attributes besides the view; None without a judge.
        judge_accuracy: accuracy of the judge by attribute; None without a judge.
        exemplars: samples of `left` and of `right`, each followed by the sample of their mean z, uint8 (n, S, S, C).
        moved: new samples with each part of the turn vector, uint8 (rows * parts, S, S, C), and with those of random
            vectors.
    """

    left: list[int]
    right: list[int]
    length: float
    parts: list[float]
    turn: Effect | None
    random: Effect | None
    other_attributes: int | None
    judge_accuracy: dict[str, float] | None
    exemplars: tuple[Pixels, Pixels] = field(metadata=SHOWN)
    moved: tuple[Pixels, Pixels] = field(metadata=SHOWN)


def measure(config: TurnConfig, run: Trained) -> Turn:
    """Find the turn vector, turn new samples, and measure for rooms what changes.

    Raises:
        ConfigError: too few samples look to one side.
        NeedsChoice: exemplars have to be picked by a person.
    """
    label = default_label(run, config.label)
    run.y(1, label)  # refuses an unknown class before the search, which takes long
    picked = bool(config.left and config.right)
    judge = room_attributes(run) if run.is_rooms and (config.measured or not picked) else None
    if picked:
        left, right = parse_ids("left", config.left), parse_ids("right", config.right)
    elif judge is None:
        raise NeedsChoice(
            "left and right are missing: pick numbers of samples from `explore sheet` (--left 3,17,20,41)"
        )
    else:
        judged = judge_samples(run, judge, first_z(run, config.search), label, "looking for exemplars")
        left, right = find_sides(judge, judged, config.exemplars)
    vector = turn_vector(run.z(left), run.z(right))
    middle = config.columns // 2
    parts = [(number - middle) / middle for number in range(config.columns)]
    z = run.draw_z("turn", max(config.rows, config.measured))
    random = random_vectors(len(z), vector, run.seed)
    turn = by_chance = None
    if judge is not None and config.measured:
        turn = measure_vector(run, judge, z[: config.measured], vector, parts, label)
        by_chance = measure_vector(run, judge, z[: config.measured], random[: config.measured], parts, label)

    def with_mean(ids: Sequence[int]) -> Pixels:
        own = run.z(ids)
        return run.generate(torch.cat([own, own.mean(dim=0, keepdim=True)]), run.y(len(ids) + 1, label))

    def moved(vectors: Tensor) -> Pixels:
        added = z[: config.rows, None] + torch.tensor(parts)[None, :, None] * vectors[:, None]
        return run.generate(added.flatten(0, 1), run.y(config.rows * config.columns, label))

    return Turn(
        subtitle=subtitle_of(run, label),
        left=left,
        right=right,
        length=float(vector.norm()),
        parts=parts,
        turn=turn,
        random=by_chance,
        other_attributes=None if judge is None else len(judge.values) - 1,
        judge_accuracy=None if judge is None else judge.accuracy,
        exemplars=(with_mean(left), with_mean(right)),
        moved=(moved(vector.expand(config.rows, -1)), moved(random[: config.rows])),
    )


def draw(turn: Turn) -> Canvas:
    """Draw the exemplars, the turned samples and, where it was measured, what changes."""
    canvas = Canvas("A vector that turns samples from left to right", turn.subtitle)
    sides = zip(("they look left", "they look right"), (turn.left, turn.right), turn.exemplars, strict=True)
    canvas.images(*(Panel(name, images, min(len(images), 8), [*map(str, ids), "mean"]) for name, ids, images in sides))
    marks = [f"{part:+.2f}".replace("+0.00", "0") for part in turn.parts]
    captions = (
        f"New samples: z plus parts of the turn vector (length {turn.length:.1f})",
        "The same samples: z plus parts of random vectors of that length",
    )
    for caption, images in zip(captions, turn.moved, strict=True):
        canvas.images(Panel(caption, images, len(turn.parts), marks))
    if turn.turn is None or turn.random is None:
        return canvas
    n = turn.turn.right[0].n
    canvas.text(f"Measured over {n} new samples, with 95% intervals, as the judge of rooms sees them.")
    view, rest = canvas.plots(2)
    for number, (name, one) in enumerate((("turn vector", turn.turn), ("random vectors", turn.random))):
        line_of_shares(view, turn.parts, one.right, name, number)
        means, ends = [at.mean for at in one.changed], [at.ci95 for at in one.changed]
        line_with_intervals(rest, turn.parts, means, ends, name, number)
    others = turn.other_attributes
    for axes, what, words, top in (
        (view, "which way they look", "look right (% of samples)", (-3, 103)),
        (rest, "what else changes", f"other attributes changed (of {others})", (0, others)),
    ):
        describe(axes, what, legend={"fontsize": 6.5}, ylabel=words, ylim=top, xticks=[-1, -0.5, 0, 0.5, 1],
                 xlabel="part of the vector that is added to z")  # fmt: skip
    return canvas


def finding(turn: Turn) -> str:
    """Return which way samples look with and without the vector."""
    if turn.turn is None or turn.random is None:
        return (
            f"The turn vector of {len(turn.left)} samples that look left and {len(turn.right)} that look right is "
            f"{turn.length:.1f} long; nothing was measured."
        )

    def shares(one: Effect) -> str:
        low, middle, high = (f"{one.right[at].value:.0%}" for at in (0, len(one.right) // 2, -1))
        return f"{low}, {middle} and {high}"

    return (
        f"Of {turn.turn.right[0].n} new samples {shares(turn.turn)} look right with -1, 0 and +1 times the turn vector "
        f"added, and {turn.turn.changed[-1].mean:.1f} of their other attributes change at +1; with random vectors of "
        f"that length {shares(turn.random)}, and {turn.random.changed[-1].mean:.1f} change."
    )


__all__ = ["Effect", "Turn", "TurnConfig", "draw", "find_sides", "finding", "measure", "measure_vector",
           "random_vectors", "turn_vector"]  # fmt: skip
