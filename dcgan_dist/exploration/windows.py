"""`windows` (Fig. 6): a generator that is made to forget to draw windows, or whatever else boxes were drawn around.

A logistic regression separates positions inside the boxes from positions outside, by the maps of one of G's layers. All
maps with a positive weight are dropped (set to zero everywhere), and the same z are drawn again.

The paper takes "the second highest convolution layer features" and drops 200 maps. The highest hidden layer of its
64x64 generator has only 128 maps, the layer below has 256 of 16x16, so the paper must mean the latter. Therefore the
default here is the layer below the highest hidden one. Positions outside the boxes are drawn at random, as many from
each sample as it has inside its boxes.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dcgan_dist.config import PositiveInt
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.diversity import Metric
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import fitted
from dcgan_dist.exploration.attributes import mean_of, share
from dcgan_dist.exploration.boxes import Boxes, RegionName, listed, read_boxes, samples_of
from dcgan_dist.exploration.drawing import COLOURS, Canvas, Panel, describe, enlarged, errors
from dcgan_dist.exploration.figure import IF_KNOWN, SHOWN, FigureConfig, Measured, counted
from dcgan_dist.exploration.networks import Trained, pick_layer
from dcgan_dist.exploration.room_judge import Box, Judged, room_judge
from dcgan_dist.models.network import Generator
from dcgan_dist.settings import FormerNames

Values = npt.NDArray[np.float64]
Judge = Callable[[Pixels], Judged]

_COLUMNS = 10
_FOLDS = 5
_ENLARGED = 4  # factor by which samples are enlarged in the picture, so that the line of a box is thin
_NEUTRAL = 128  # grey level of a window that is painted over
_BOX_COLOUR = (255, 59, 48)


@dataclass(frozen=True, kw_only=True)
class WindowsConfig(FigureConfig):
    """Settings of `explore windows`."""

    boxes: str | None = None
    """JSON file of boxes over samples, which the page of `explore boxes` saves. Left out, of a run on procedural rooms
    the windows that a judge of rooms finds."""
    region_name: RegionName = "window"
    """What the boxes are drawn around; the texts use it."""
    search: Annotated[int, Meta(ge=2, le=20000)] = 150
    """Samples, from number 0 on, that windows are looked for in, where no boxes are given (150 in the paper)."""
    layer: PositiveInt | None = None
    """Layer of G whose maps are dropped, 1 for that next to z. Left out, the one below the highest hidden one."""
    strongest: PositiveInt | None = None
    """Drop only so many of the maps with a positive weight, those with the largest. Left out, all, as in the paper."""
    label: str | None = None
    """Number or name of the class that all samples have; conditional runs only."""
    count: Annotated[int, Meta(ge=2, le=20000)] = 500
    """Fresh samples, of other z than those with boxes, in which windows are counted before and after."""
    random_draws: Annotated[int, Meta(ge=1, le=100)] = 5
    """How often as many random maps are dropped, to compare with."""

    FORMER_NAMES: ClassVar[FormerNames] = {"samples": "search"}


@dataclass(frozen=True)
class MapLayer:
    """A hidden layer of G whose output is maps.

    Attributes:
        number: number of the layer; 1 is the one next to z.
        stage: the module whose output is the maps.
        maps: number of maps.
        side: side of a map in positions.
    """

    number: int
    stage: nn.Module
    maps: int
    side: int

    @property
    def name(self) -> str:
        """Name of the layer in texts."""
        return f"layer {self.number} of G ({self.maps} maps of {self.side}x{self.side})"


def map_layers(generator: Generator) -> list[MapLayer]:
    """Return the hidden layers of G whose output is maps, in order from z; [] if its layers are dense."""
    if not hasattr(generator, "projection"):
        return []
    stages = [generator.projection, *list(generator.layers)[:-1]]  # type: ignore[arg-type]
    found: dict[nn.Module, torch.Size] = {}

    def note(stage: nn.Module, _: Any, maps: Tensor) -> None:
        found[stage] = maps.shape

    hooks = [stage.register_forward_hook(note) for stage in stages]
    parameter = next(generator.parameters())
    with torch.no_grad():
        generator(parameter.new_zeros(2, generator.z_dim), parameter.new_zeros(2, generator.classes))
    for hook in hooks:
        hook.remove()
    return [MapLayer(n, stage, found[stage][1], found[stage][2]) for n, stage in enumerate(stages, start=1)]


def chosen_layer(run: Trained, number: int | None) -> MapLayer:
    """Return a hidden layer of G by its number; if None, the layer below the highest.

    Raises:
        ConfigError: there is no such layer; the message lists the existing ones.
    """
    layers = map_layers(run.generator)
    sizes = [(layer.maps, layer.side) for layer in layers]
    return layers[pick_layer(run, "generator", "windows drops maps of", sizes, number, max(1, len(layers) - 1))]


@contextmanager
def dropped(layer: MapLayer, maps: Sequence[int]) -> Iterator[None]:
    """Set some of a layer's maps to zero at all positions while the context is open."""

    def drop(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        kept = out.new_ones(out.shape[1])
        kept[list(maps)] = 0
        return out * kept[:, None, None]

    hook = layer.stage.register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def activations(run: Trained, layer: MapLayer, z: Tensor, y: Tensor) -> Tensor:
    """Return a layer's maps for z (n, z_dim) and y (n, classes), float32 (n, maps, side, side), on the CPU."""
    kept: list[Tensor] = []
    hook = layer.stage.register_forward_hook(lambda _, __, out: kept.append(out.float().cpu()))
    try:
        run.generator(z.to(run.device), y.to(run.device))
    finally:
        hook.remove()
    return kept[0]


def inside(boxes: Sequence[Box], side: int, image_size: int) -> npt.NDArray[np.bool_]:
    """Return which positions of a map lie in boxes, (side, side): those whose centre is inside a box.

    A box that is too small to contain the centre of a position has the position in which its own centre lies.
    """
    middles = (np.arange(side) + 0.5) * image_size / side
    mask = np.zeros((side, side), bool)
    for left, top, right, bottom in boxes:
        rows, columns = (middles >= top) & (middles < bottom), (middles >= left) & (middles < right)
        if not rows.any():
            rows[int((top + bottom) / 2 * side / image_size)] = True
        if not columns.any():
            columns[int((left + right) / 2 * side / image_size)] = True
        mask |= rows[:, None] & columns
    return mask


def balanced_positions(
    mask: npt.NDArray[np.bool_], random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return flat indices of positions inside and of as many random ones outside; the smaller group sets the number."""
    positive, negative = np.flatnonzero(mask), np.flatnonzero(~mask)
    count = min(len(positive), len(negative))
    chosen = (random.choice(one, count, replace=False) if len(one) > count else one for one in (positive, negative))
    first, second = chosen
    return first, random.permutation(second)[:count]


@dataclass(frozen=True)
class Fitted:
    """A logistic regression that separates positions inside the boxes from positions outside.

    Attributes:
        weights: weight of each map, for activations in units of the map's standard deviation, (maps,).
        accuracy: share of the positions of held-out samples that are classified correctly; half of them are inside.
        positions: number of positions that it was fitted to.
    """

    weights: Values
    accuracy: float
    positions: int

    def maps(self, strongest: int | None = None) -> list[int]:
        """Return the maps with a weight above 0: all, or the `strongest` ones."""
        order = np.argsort(-self.weights, kind="stable")
        return sorted(int(number) for number in order[self.weights[order] > 0][:strongest])


def fit_region(values: Values, is_inside: npt.NDArray[np.bool_], samples: npt.NDArray[np.int64]) -> Fitted:
    """Fit a logistic regression to the activations at n positions.

    The accuracy is cross-validated by samples: positions of a sample are never in both parts of a fold.

    Args:
        values: activations, (n, maps).
        is_inside: whether a position is inside a box, (n,).
        samples: number of the sample that a position belongs to, (n,).
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    groups = len(np.unique(samples))
    accuracy = math.nan
    if groups > 1:
        folds = GroupKFold(min(_FOLDS, groups))
        accuracy = float(cross_val_score(model, values, is_inside, cv=folds, groups=samples).mean())
    model.fit(values, is_inside)
    weights = np.asarray(model[-1].coef_[0], dtype=np.float64)
    return Fitted(weights, accuracy, len(values))


def _fit(run: Trained, layer: MapLayer, boxes: Boxes, label: str | None) -> Fitted:
    random = np.random.default_rng(run.seed)
    values, labels, samples = [], [], []
    for number, found in boxes.items():
        maps = activations(run, layer, run.z([number]), run.y(1, label, first=number))[0].flatten(1).T.double().numpy()
        positive, negative = balanced_positions(inside(found, layer.side, run.image_size), random)
        values += [maps[positive], maps[negative]]
        labels += [np.ones(len(positive), bool), np.zeros(len(negative), bool)]
        samples.append(np.full(2 * len(positive), number))
    if not sum(map(len, values)):
        raise ConfigError("boxes cover their samples completely: leave something outside, to compare with")
    return fit_region(np.concatenate(values), np.concatenate(labels), np.concatenate(samples))


@dataclass(frozen=True)
class PixelChanges:
    """Mean absolute change of pixels inside and outside the boxes, in grey levels.

    Attributes:
        dropped: without the maps that were chosen.
        random: without as many random maps, for each draw.
    """

    dropped: tuple[float, float]
    random: list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Windows(Measured):
    """What samples show after maps of G are dropped.

    Attributes:
        region_name: what the boxes are around.
        layer: number of the layer.
        layer_maps: number of its maps.
        layer_side: side of a map in positions.
        boxes_from: who found the boxes.
        positions: number of positions that the regression was fitted to.
        held_out_accuracy: share of held-out positions that it classifies correctly.
        weights: weight of each map, (layer_maps,).
        dropped_maps: the maps that are dropped.
        random_maps: the random ones, for each draw.
        pixel_changes: how far the samples with boxes change.
        judged: what a judge sees in other samples; None without a judge.
        boxes: the boxes of n samples.
        layer_name: name of the layer in texts.
        strongest: whether only the maps with the largest weights are dropped.
        images: the first samples with boxes, uint8 (n, S, S, C); without the maps; and without random maps.
    """

    region_name: str
    layer: int
    layer_maps: int
    layer_side: int
    boxes_from: str
    positions: int
    held_out_accuracy: float
    weights: Values
    dropped_maps: list[int]
    random_maps: list[list[int]]
    pixel_changes: PixelChanges
    judged: Counted | None = field(metadata=IF_KNOWN)
    boxes: Boxes = field(metadata=SHOWN)
    layer_name: str = field(metadata=SHOWN)
    strongest: bool = field(metadata=SHOWN)
    images: tuple[Pixels, Pixels, Pixels] = field(metadata=SHOWN)

    @property
    def numbers(self) -> dict[str, Any]:
        """See `Measured`."""
        return super().numbers | {"boxes": listed(self.boxes)}


def measure(config: WindowsConfig, run: Trained) -> Windows:
    """Drop the maps that stand for the boxes, and measure what changes.

    Raises:
        NeedsChoice: the boxes are missing, and only a person can draw them.
        ConfigError: there is no such layer or class, the boxes belong to other samples, or no sample has a window.
        DataError: the boxes cannot be read.
    """
    layer = chosen_layer(run, config.layer)
    region, label = config.region_name, config.label
    judge = room_judge(run.cache, run.device) if run.is_rooms and run.channels == 3 and region == "window" else None
    boxes, origin = _boxes(config, run, judge)
    fit = _fit(run, layer, boxes, label)
    maps = fit.maps(config.strongest)
    if not maps:
        raise ConfigError(f"no map of {layer.name} speaks for a {region}: take another --layer, or draw more boxes")
    random = np.random.default_rng(run.seed)
    others = [sorted(random.choice(layer.maps, len(maps), replace=False).tolist()) for _ in range(config.random_draws)]

    def samples(dropping: Sequence[int] = ()) -> Pixels:
        with dropped(layer, dropping):
            return samples_of(run, list(boxes), label)

    before, without, *at_random = map(samples, ((), maps, *others))
    changes = [pixel_changes(before, after, list(boxes.values())) for after in (without, *at_random)]
    return Windows(
        subtitle=run.subtitle,
        region_name=region,
        layer=layer.number,
        layer_maps=layer.maps,
        layer_side=layer.side,
        boxes_from=origin,
        positions=fit.positions,
        held_out_accuracy=fit.accuracy,
        weights=fit.weights,
        dropped_maps=maps,
        random_maps=others,
        pixel_changes=PixelChanges(changes[0], changes[1:]),
        judged=None if judge is None else _count(config, run, layer, maps, others, judge),
        boxes=boxes,
        layer_name=layer.name,
        strongest=config.strongest is not None,
        images=(before[:_COLUMNS], without[:_COLUMNS], at_random[0][:_COLUMNS]),
    )


def _boxes(config: WindowsConfig, run: Trained, judge: Judge | None) -> tuple[Boxes, str]:
    """Return the boxes, and who found them."""
    if config.boxes is not None:
        return read_boxes(config.boxes, run, config.label), "drawn by hand"
    if judge is None:
        raise NeedsChoice(
            f"boxes is missing: make a page with `explore boxes {shlex.quote(run.location)}`, draw a box around "
            f"each {config.region_name}, and give the file that it saves as --boxes FILE"
        )
    boxes = judged_boxes(samples_of(run, range(config.search), config.label), judge)
    if not boxes:
        raise ConfigError(f"search is {config.search}, and none of them has a window: take more, or a later step")
    return boxes, "found by a judge of rooms"


def draw(windows: Windows) -> Canvas:
    """Draw samples before and after the maps are dropped, and what changes."""
    canvas = Canvas(f"A generator that forgets to draw a {windows.region_name}", windows.subtitle)
    count, accuracy, n = sum(map(len, windows.boxes.values())), windows.held_out_accuracy, len(windows.dropped_maps)
    canvas.text(
        f"A logistic regression separates the inside of {count} boxes {windows.boxes_from} on {len(windows.boxes)} "
        f"samples from the rest by {windows.layer_name}; "
        f"{'an unknown share' if math.isnan(accuracy) else f'{accuracy:.0%}'} of held-out positions right (half of "
        f"them are inside). The {n} maps with {'the largest' if windows.strongest else 'a'} positive weight are "
        "dropped."
    )
    ids = list(windows.boxes)[:_COLUMNS]
    before, without, at_random = (np.stack(list(enlarged(images, _ENLARGED))) for images in windows.images)
    boxed = with_boxes(before, [windows.boxes[number] for number in ids])
    for caption, shown, marks in (
        (f"samples, with the boxes of each {windows.region_name}", boxed, [str(number) for number in ids]),
        (f"the same z without the {n} maps", without, None),
        (f"the same z without {n} random maps", at_random, None),
    ):
        canvas.images(Panel(caption, shown, _COLUMNS, marks, gap=2 * _ENLARGED))
    if windows.judged is None:
        _plot_changes(canvas, windows.pixel_changes, windows.region_name)
    else:
        _plot_judged(canvas, windows.judged)
    return canvas


def finding(windows: Windows) -> str:
    """Return how many windows are forgotten or, without a judge, how far pixels change."""
    maps = f"{len(windows.dropped_maps)} of {windows.layer_maps} maps that speak{' most' * windows.strongest}"
    if windows.judged is None:
        changes = windows.pixel_changes
        (drawn_in, drawn_out), (random_in, random_out) = changes.dropped, np.mean(changes.random, axis=0)
        return (
            f"Dropping the {maps} for a {windows.region_name} changes pixels inside the boxes by {drawn_in:.0f} of 255 "
            f"and outside by {drawn_out:.0f}; as many random maps by {random_in:.0f} and {random_out:.0f}."
        )
    one, chance, before = windows.judged.dropped, windows.judged.random_mean, windows.judged.before
    return (
        f"Dropping the {maps} for a window takes the share of samples with one from {_share(before)} to "
        f"{_share(one.has_window)} of {before.n:,}; as many random maps to {chance.has_window:.0%} (mean of "
        f"{len(windows.random_maps)} draws). Outside the window the samples change by {one.elsewhere.relative:.2f} of "
        f"the distance between two samples, with random maps by {chance.elsewhere:.2f}."
    )


def _share(share: Metric) -> str:
    low, high = share.ci95
    return f"{share.value:.0%} [{low:.0%}, {high:.0%}]"


def judged_boxes(images: Pixels, judge: Judge) -> Boxes:
    """Return the boxes of the windows that a judge finds in images, by index of the image."""
    found = judge(images).window_boxes(images.shape[1])
    return {number: [box] for number, box in enumerate(found) if box is not None}


def pixel_changes(before: Pixels, after: Pixels, boxes: Sequence[Sequence[Box]]) -> tuple[float, float]:
    """Return the mean absolute difference of pixels inside and outside the boxes, in grey levels (of 255)."""
    differences = np.abs(before.astype(np.int16) - after.astype(np.int16)).mean(axis=3)
    masks = np.stack([inside(found, before.shape[1], before.shape[1]) for found in boxes])
    return float(differences[masks].mean()), float(differences[~masks].mean()) if not masks.all() else math.nan


def painted(images: Pixels, boxes: Sequence[Box | None]) -> Pixels:
    """Return images (n, S, S, C) with the box of each filled with grey."""
    covered = images.copy()
    for image, box in zip(covered, boxes, strict=True):
        if box is not None:
            left, top, right, bottom = box
            image[top:bottom, left:right] = _NEUTRAL
    return covered


def with_boxes(images: Pixels, boxes: Sequence[Sequence[Box]]) -> Pixels:
    """Draw boxes, in pixels of the samples, on images that were enlarged by `_ENLARGED`; the result has 3 channels."""
    drawn = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images.copy()
    for image, found in zip(drawn, boxes, strict=True):
        for box in found:
            left, top, right, bottom = (edge * _ENLARGED for edge in box)
            part = image[top:bottom, left:right]
            part[:2], part[-2:], part[:, :2], part[:, -2:] = (_BOX_COLOUR,) * 4
    return drawn


@dataclass(frozen=True)
class Before:
    """Samples before maps are dropped, and the judge's predictions for them; `compared` takes them as the reference.

    Attributes:
        judged: predictions of the judge.
        boxes: box of the window of each image, None if it has none.
        features: features of the images with their windows painted over, (n, d).
        apart: mean distance between the features of two of the images.
    """

    judged: Judged
    boxes: list[Box | None]
    features: Values
    apart: float


def judge_before(images: Pixels, judge: Judge, extractor: RandomConv) -> Before:
    """Classify samples before maps are dropped, and measure their features."""
    judged = judge(images)
    boxes = judged.window_boxes(images.shape[1])
    features = _features(painted(images, boxes), extractor)
    # Each image with the next one: n pairs that are close enough to independent.
    apart = float(np.linalg.norm(features - np.roll(features, 1, axis=0), axis=1).mean())
    return Before(judged, boxes, features, apart)


def _features(images: Pixels, extractor: RandomConv) -> Values:
    return extractor(fitted(images, extractor.image_size, extractor.channels)).astype(np.float64)


@dataclass(frozen=True)
class Elsewhere:
    """How far samples change outside their windows.

    Attributes:
        distance: mean distance of the features, with the former windows painted over in both.
        ci95: its interval.
        relative: the same, divided by the distance between two samples.
        n: number of samples.
    """

    distance: float
    ci95: tuple[float, float]
    relative: float
    n: int


@dataclass(frozen=True)
class Compared:
    """Samples after maps were dropped, compared with the same samples before.

    Attributes:
        has_window: share that has a window.
        lost: share of the samples that had one and have none.
        gained: share of the samples that had none and have one.
        elsewhere: change outside the window.
        flipped: for each other attribute the share of samples in which it changed.
    """

    has_window: Metric
    lost: Metric
    gained: Metric
    elsewhere: Elsewhere
    flipped: dict[str, Metric]


def compared(before: Before, after: Pixels, judge: Judge, extractor: RandomConv) -> Compared:
    """Compare samples after maps were dropped with the same samples before."""
    judged = judge(after)
    had, has = before.judged.has_window, judged.has_window
    distances = np.linalg.norm(before.features - _features(painted(after, before.boxes), extractor), axis=1)
    distance = mean_of(distances)
    relative = distance.mean / before.apart if before.apart else math.nan
    return Compared(
        has_window=share(has),
        lost=share(~has[had]),
        gained=share(has[~had]),
        elsewhere=Elsewhere(distance.mean, distance.ci95, relative, distance.n),
        flipped={
            name: share(values != before.judged.attributes[name])
            for name, values in judged.attributes.items()
            if name != "window"
        },
    )


@dataclass(frozen=True)
class RandomMean:
    """Means over the draws of random maps of the values of `Compared`."""

    has_window: float
    elsewhere: float
    flipped: dict[str, float]


@dataclass(frozen=True)
class Counted:
    """What a judge sees in fresh samples.

    Attributes:
        before: share with a window before maps are dropped.
        dropped: without the maps that were chosen.
        random: without random maps, for each draw.
        random_mean: the means of these.
    """

    before: Metric
    dropped: Compared
    random: list[Compared]
    random_mean: RandomMean


def _count(
    config: WindowsConfig, run: Trained, layer: MapLayer, maps: list[int], others: list[list[int]], judge: Judge
) -> Counted:
    """Compare fresh samples with those without the maps, and without each of the random choices of maps."""
    extractor = RandomConv(str(run.device))
    z, y = run.draw_z("windows", config.count), run.y(config.count, config.label)
    before = judge_before(run.generate(z, y), judge, extractor)
    found, ways = [], [maps, *others]
    with counted(ways, config.count * len(ways), "samples", lambda _: config.count) as choices:
        for chosen in choices:
            with dropped(layer, chosen):
                after = run.generate(z, y)
            found.append(compared(before, after, judge, extractor))
    one, *random = found
    means = RandomMean(
        has_window=float(np.mean([draw.has_window.value for draw in random])),
        elsewhere=float(np.mean([draw.elsewhere.relative for draw in random])),
        flipped={name: float(np.mean([draw.flipped[name].value for draw in random])) for name in one.flipped},
    )
    return Counted(share(before.judged.has_window), one, random, means)


def _plot_judged(canvas: Canvas, judged: Counted) -> None:
    shares, elsewhere, flips = canvas.plots(3, 1.7)
    one, random, mean = judged.dropped, judged.random, judged.random_mean
    ticks = ["all maps", "without\nwindow maps", "without\nrandom maps"]
    for place, (about, colour) in enumerate(((judged.before, COLOURS[6]), (one.has_window, COLOURS[0]))):
        shares.bar(place, about.value, 0.6, color=colour)
        shares.errorbar(
            place, about.value, errors([about.value], [about.ci95]), fmt="none", ecolor="0.5", elinewidth=1, capsize=3
        )
    shares.bar(2, mean.has_window, 0.6, color=COLOURS[4])
    shares.plot([2] * len(random), [draw.has_window.value for draw in random], "k.", markersize=3)
    shares.set_xticks(range(3), ticks, fontsize=5.5)
    title = f"with a window, {judged.before.n:,} fresh z"
    describe(shares, title, "left", ylabel="share of samples", ylim=(0, 1))

    elsewhere.bar(0, one.elsewhere.relative, 0.6, color=COLOURS[0])
    elsewhere.bar(1, mean.elsewhere, 0.6, color=COLOURS[4])
    elsewhere.plot([1] * len(random), [draw.elsewhere.relative for draw in random], "k.", markersize=3)
    elsewhere.set_xticks(range(2), ticks[1:], fontsize=6)
    describe(elsewhere, "change outside the window", "left", ylabel="of the distance of two samples")

    places = np.arange(len(one.flipped))
    flipped = [share.value for share in one.flipped.values()]
    flips.barh(places - 0.2, flipped, 0.38, color=COLOURS[0], label="window maps")
    flips.barh(places + 0.2, list(mean.flipped.values()), 0.38, color=COLOURS[4], label="random maps")
    flips.set_yticks(places, [name.replace("_", " ") for name in one.flipped], fontsize=6)
    flips.invert_yaxis()
    describe(flips, "whose attribute changed", "left", {"fontsize": 6}, xlim=(0, 1), xlabel="share of samples")


def _plot_changes(canvas: Canvas, changes: PixelChanges, region: str) -> None:
    (axes,) = canvas.plots(1, 1.7)
    places = np.arange(2)
    axes.bar(places - 0.2, changes.dropped, 0.38, color=COLOURS[0], label=f"{region} maps dropped")
    axes.bar(places + 0.2, np.mean(changes.random, axis=0), 0.38, color=COLOURS[4], label="random maps dropped")
    for draw in changes.random:
        axes.plot(places + 0.2, draw, "k.", markersize=3)
    axes.set_xticks(places, ["inside the boxes", "outside"])
    title = "How far the samples with boxes change (dots: draws of random maps)"
    describe(axes, title, "left", {"fontsize": 7}, ylabel="mean change of a pixel, of 255")


__all__ = ["Before", "Compared", "Counted", "Elsewhere", "Fitted", "MapLayer", "PixelChanges", "RandomMean",
           "Windows", "WindowsConfig", "activations", "balanced_positions", "chosen_layer", "compared", "draw",
           "dropped", "finding", "fit_region", "inside", "judge_before", "judged_boxes", "map_layers", "measure",
           "painted", "pixel_changes", "with_boxes"]  # fmt: skip
