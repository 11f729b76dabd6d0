"""`turn` (Fig. 8): samples turned from left to right by a vector in the space of z.

The turn vector is the mean z of a few samples that look right, minus the mean z of as many that look left. Parts of it,
from -1 to 1, are added to new z. For rooms, whose view the judge classifies, it is measured how many samples then look
right, and how many of their other attributes change. Random vectors of the same length are the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from dcgan_dist.config import PositiveInt
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.tasks import Z95
from dcgan_dist.exploration.arithmetic import share_outside
from dcgan_dist.exploration.attributes import (
    AttributeJudge,
    Floats,
    Probabilities,
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
class Measured:
    """What samples show after parts of a vector were added to their z; the lists have one entry for each part.

    Attributes:
        right: share that looks right.
        changed: mean number of other attributes that differ from those of the unchanged z, with `ci95`.
        turned: share of the samples that look left before and right at the last part; None if none looks left.
        outside: share of the values of z outside [-1, 1]; None for normal noise.
    """

    right: list[dict[str, Any]]
    changed: list[dict[str, Any]]
    turned: dict[str, Any] | None
    outside: list[float] | None


def measure(
    run: Trained, judge: AttributeJudge, z: Tensor, vectors: Tensor, parts: Sequence[float], label: str | None
) -> Measured:
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
    return Measured(
        right=[share(mask) for mask in right],
        changed=[_mean(count) for count in changed],
        turned=share(right[-1][looked_left]) if looked_left.any() else None,
        outside=[share_outside(z + part * vectors) for part in parts]
        if run.model.z_distribution == "uniform"
        else None,
    )


def _mean(values: Floats) -> dict[str, Any]:
    """Return the mean with n and its 95% interval."""
    mean, n = float(np.mean(values)), len(values)
    half = Z95 * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else float("nan")
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": n}


def draw_turn(config: TurnConfig, run: Trained) -> Drawn:
    """Draw the turn, and measure it for rooms.

    Raises:
        ConfigError: too few samples look to one side.
        NeedsChoice: exemplars have to be picked by a person.
    """
    label = default_label(run, config.label)
    run.y(1, label)
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
    by_turn = by_random = None
    if judge is not None and config.measured:
        counted = z[: config.measured]
        by_turn = measure(run, judge, counted, vector, parts, label)
        by_random = measure(run, judge, counted, random[: config.measured], parts, label)
    title = "A vector that turns samples from left to right"
    canvas = Canvas(title, run.subtitle + (f", class {label}" if label is not None else ""))
    canvas.images(
        *(_exemplars(run, name, ids, label) for name, ids in (("they look left", left), ("they look right", right)))
    )
    length = float(vector.norm())
    rows = torch.tensor(parts)[None, :, None]
    marks = [f"{part:+.2f}".replace("+0.00", "0") for part in parts]
    for vectors, caption in (
        (vector.expand(config.rows, -1), f"New samples: z plus parts of the turn vector (length {length:.1f})"),
        (random[: config.rows], "The same samples: z plus parts of random vectors of that length"),
    ):
        added = z[: config.rows, None] + rows * vectors[:, None]
        images = run.generate(added.flatten(0, 1), run.y(config.rows * config.columns, label))
        canvas.images(Panel(caption, images, config.columns, marks))
    if by_turn is not None and by_random is not None and judge is not None:
        _plot(canvas, parts, by_turn, by_random, len(judge.values) - 1)
    return Drawn(
        title=title,
        finding=_finding(by_turn, by_random, len(left), len(right), length),
        canvas=canvas,
        numbers={
            "left": left,
            "right": right,
            "length": length,
            "parts": parts,
            "turn": None if by_turn is None else vars(by_turn),
            "random": None if by_random is None else vars(by_random),
            "other_attributes": None if judge is None else len(judge.values) - 1,
            "judge_accuracy": None if judge is None else judge.accuracy,
        },
    )


def _exemplars(run: Trained, caption: str, ids: Sequence[int], label: str | None) -> Panel:
    """Return the exemplars of a side, followed by the sample of their mean z."""
    z = run.z(ids)
    images = run.generate(torch.cat([z, z.mean(dim=0, keepdim=True)]), run.y(len(ids) + 1, label))
    return Panel(caption, images, min(len(images), 8), [*map(str, ids), "mean"])


def _plot(canvas: Canvas, parts: Sequence[float], by_turn: Measured, by_random: Measured, others: int) -> None:
    n = by_turn.right[0]["n"]
    canvas.text(f"Measured over {n} new samples, with 95% intervals, as the judge of rooms sees them.")
    view, rest = canvas.plots(2)
    for number, (name, one) in enumerate((("turn vector", by_turn), ("random vectors", by_random))):
        shares, ends = [100 * at["value"] for at in one.right], [[100 * end for end in at["ci95"]] for at in one.right]
        line_with_intervals(view, parts, shares, ends, name, number)
        means = [at["mean"] for at in one.changed]
        line_with_intervals(rest, parts, means, [at["ci95"] for at in one.changed], name, number)
    view.set_title("which way they look", fontsize=8)
    view.set_ylabel("look right (% of samples)")
    view.set_ylim(-3, 103)
    rest.set_title("what else changes", fontsize=8)
    rest.set_ylabel(f"other attributes changed (of {others})")
    rest.set_ylim(0, others)
    for axes in (view, rest):
        axes.set_xticks([-1, -0.5, 0, 0.5, 1])
        axes.set_xlabel("part of the vector that is added to z")
        axes.legend(fontsize=6.5, frameon=False)


def _finding(by_turn: Measured | None, by_random: Measured | None, left: int, right: int, length: float) -> str:
    if by_turn is None or by_random is None:
        return (
            f"The turn vector of {left} samples that look left and {right} that look right is {length:.1f} long; "
            "nothing was measured."
        )

    def shares(one: Measured) -> str:
        low, middle, high = (f"{one.right[at]['value']:.0%}" for at in (0, len(one.right) // 2, -1))
        return f"{low}, {middle} and {high}"

    return (
        f"Of {by_turn.right[0]['n']} new samples {shares(by_turn)} look right with -1, 0 and +1 times the turn vector "
        f"added, and {by_turn.changed[-1]['mean']:.1f} of their other attributes change at +1; with random vectors of "
        f"that length {shares(by_random)}, and {by_random.changed[-1]['mean']:.1f} change."
    )


__all__ = ["Measured", "TurnConfig", "draw_turn", "find_sides", "measure", "random_vectors", "turn_vector"]
