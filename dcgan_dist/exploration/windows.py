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
from dataclasses import dataclass
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
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.errors import ConfigError, NeedsChoice
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import fitted
from dcgan_dist.exploration.attributes import share
from dcgan_dist.exploration.boxes import Boxes, RegionName, read_boxes, samples_of
from dcgan_dist.exploration.drawing import COLOURS, Canvas, Panel
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained
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
    if not layers:
        raise ConfigError(
            f"the generator of {run.location} ({run.model.name}) has only dense layers, but windows drops maps of "
            "conv layers: give a run of dcgan or cdcgan"
        )
    if number is None:
        return layers[-2] if len(layers) > 1 else layers[0]
    if number > len(layers):
        known = ", ".join(f"{layer.number} ({layer.maps} maps of {layer.side}x{layer.side})" for layer in layers)
        raise ConfigError(
            f"layer is {number}, which the generator of {run.location} does not have: take one of {known}"
        )
    return layers[number - 1]


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


def draw_windows(config: WindowsConfig, run: Trained) -> Drawn:
    """Draw samples before and after the maps are dropped, and measure what changes.

    Raises:
        NeedsChoice: the boxes are missing, and only a person can draw them.
        ConfigError: there is no such layer or class, the boxes belong to other samples, or no sample has a window.
        DataError: the boxes cannot be read.
    """
    layer = chosen_layer(run, config.layer)
    region, label = config.region_name, config.label
    judge = room_judge(run.cache, run.device) if run.is_rooms and run.channels == 3 and region == "window" else None
    if config.boxes is not None:
        boxes, origin = read_boxes(config.boxes, run, label), "drawn by hand"
    elif judge is not None:
        boxes, origin = judged_boxes(samples_of(run, range(config.search), label), judge), "found by a judge of rooms"
        if not boxes:
            raise ConfigError(f"search is {config.search}, and none of them has a window: take more, or a later step")
    else:
        raise NeedsChoice(
            f"boxes is missing: make a page with `explore boxes {shlex.quote(run.location)}`, draw a box around "
            f"each {region}, and give the file that it saves as --boxes FILE"
        )
    found = _fit(run, layer, boxes, label)
    maps = found.maps(config.strongest)
    if not maps:
        raise ConfigError(f"no map of {layer.name} speaks for a {region}: take another --layer, or draw more boxes")
    random = np.random.default_rng(run.seed)
    others = [sorted(random.choice(layer.maps, len(maps), replace=False).tolist()) for _ in range(config.random_draws)]

    ids = list(boxes)
    before = samples_of(run, ids, label)
    without = _without(layer, maps, lambda: samples_of(run, ids, label))
    at_random = [_without(layer, other, lambda: samples_of(run, ids, label)) for other in others]
    changes: dict[str, Any] = {
        "dropped": pixel_changes(before, without, list(boxes.values())),
        "random": [pixel_changes(before, images, list(boxes.values())) for images in at_random],
    }
    numbers: dict[str, Any] = {
        "region_name": region,
        "layer": layer.number,
        "layer_maps": layer.maps,
        "layer_side": layer.side,
        "boxes_from": origin,
        "boxes": [{"id": number, "box": list(box)} for number, found in boxes.items() for box in found],
        "positions": found.positions,
        "held_out_accuracy": found.accuracy,
        "weights": found.weights.tolist(),
        "dropped_maps": maps,
        "random_maps": others,
        "pixel_changes": changes,
    }
    title = f"A generator that forgets to draw a {region}"
    canvas = Canvas(title, run.subtitle)
    boxed = sum(map(len, boxes.values()))
    canvas.text(
        f"A logistic regression separates the inside of {boxed} boxes {origin} on {len(boxes)} samples from the rest "
        f"by {layer.name}; {_percent(found.accuracy)} of held-out positions right (half of them are inside). The "
        f"{len(maps)} maps with {'the largest' if config.strongest else 'a'} positive weight are dropped."
    )
    shown = slice(_COLUMNS)
    for caption, images in (
        (
            f"samples, with the boxes of each {region}",
            with_boxes(_enlarged(before[shown]), [boxes[i] for i in ids[shown]]),
        ),
        (f"the same z without the {len(maps)} maps", _enlarged(without[shown])),
        (f"the same z without {len(maps)} random maps", _enlarged(at_random[0][shown])),
    ):
        marks = [str(number) for number in ids[shown]] if caption.startswith("samples") else None
        canvas.images(Panel(caption, images, _COLUMNS, marks, gap=2 * _ENLARGED))
    drawn_in, drawn_out = changes["dropped"]
    random_in, random_out = (float(np.mean(part)) for part in zip(*changes["random"], strict=True))
    speak = "speak most" if config.strongest else "speak"
    finding = (
        f"Dropping the {len(maps)} of {layer.maps} maps that {speak} for a {region} changes pixels inside the boxes by "
        f"{drawn_in:.0f} of 255 and outside by {drawn_out:.0f}; as many random maps by {random_in:.0f} and "
        f"{random_out:.0f}"
    )
    if judge is None:
        _plot_changes(canvas, changes, region)
    else:
        counted = _count(config, run, layer, maps, others, judge)
        numbers["judged"] = counted
        _plot_judged(canvas, counted)
        kept, chance = counted["dropped"]["has_window"], counted["random_mean"]
        elsewhere = counted["dropped"]["elsewhere"]["relative"]
        finding = (
            f"Dropping the {len(maps)} of {layer.maps} maps that {speak} for a window takes the share of samples with "
            f"one from {_share(counted['before'])} to {_share(kept)} of {config.count:,}; as many random maps to "
            f"{chance['has_window']:.0%} (mean of {config.random_draws} draws). Outside the window the samples change "
            f"by {elsewhere:.2f} of the distance between two samples, with random maps by {chance['elsewhere']:.2f}"
        )
    return Drawn(title=title, finding=f"{finding}.", canvas=canvas, numbers=numbers)


def judged_boxes(images: Pixels, judge: Judge) -> Boxes:
    """Return the boxes of the windows that a judge finds in images, by index of the image."""
    found = judge(images).window_boxes(images.shape[1])
    return {number: [box] for number, box in enumerate(found) if box is not None}


def _without(layer: MapLayer, maps: Sequence[int], make: Callable[[], Pixels]) -> Pixels:
    with dropped(layer, maps):
        return make()


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


def _enlarged(images: Pixels) -> Pixels:
    return np.repeat(np.repeat(images, _ENLARGED, axis=1), _ENLARGED, axis=2)


@dataclass(frozen=True)
class Before:
    """Samples before maps are dropped, and the judge's predictions for them; `compared` takes them as the reference.

    Attributes:
        images: uint8 (n, S, S, C).
        judged: predictions of the judge.
        boxes: box of the window of each image, None if it has none.
        features: features of the images with their windows painted over, (n, d).
        apart: mean distance between the features of two of the images.
    """

    images: Pixels
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
    return Before(images, judged, boxes, features, apart)


def _features(images: Pixels, extractor: RandomConv) -> Values:
    rows = [
        extractor(fitted(images[start : start + 256], extractor.image_size, extractor.channels))
        for start in range(0, len(images), 256)
    ]
    return np.concatenate(rows).astype(np.float64)


def compared(before: Before, after: Pixels, judge: Judge, extractor: RandomConv) -> dict[str, Any]:
    """Compare samples after maps were dropped with the same samples before.

    Returns:
        `has_window` (a share with n and ci95); `lost` and `gained` (shares of the samples that had a window, and that
        had none); `elsewhere` (`distance`: mean distance of the features, with the former windows painted over in both,
        `relative`: the same divided by the distance between two samples); and `flipped` (for each other attribute the
        share of samples in which it changed).
    """
    judged = judge(after)
    had, has = before.judged.has_window, judged.has_window
    distances = np.linalg.norm(before.features - _features(painted(after, before.boxes), extractor), axis=1)
    distance = float(distances.mean())
    error = 1.96 * float(distances.std(ddof=1)) / math.sqrt(len(distances))
    return {
        "has_window": share(has),
        "lost": share(~has[had]),
        "gained": share(has[~had]),
        "elsewhere": {
            "distance": distance,
            "ci95": [distance - error, distance + error],
            "relative": distance / before.apart if before.apart else math.nan,
            "n": len(distances),
        },
        "flipped": {
            name: share(values != before.judged.attributes[name])
            for name, values in judged.attributes.items()
            if name != "window"
        },
    }


def _count(
    config: WindowsConfig, run: Trained, layer: MapLayer, maps: list[int], others: list[list[int]], judge: Judge
) -> dict[str, Any]:
    """Return `compared` for fresh samples without the maps, and without each of the random choices of maps."""
    extractor = RandomConv(str(run.device))
    z, y = run.draw_z("windows", config.count), run.y(config.count, config.label)
    line = ProgressLine("samples")
    ways = 2 + len(others)
    before = judge_before(run.generate(z, y), judge, extractor)
    found = []
    for number, chosen in enumerate((maps, *others), start=1):
        line(number * config.count, number / ways, 0)
        with dropped(layer, chosen):
            after = run.generate(z, y)
        found.append(compared(before, after, judge, extractor))
    line.close()
    one, *random = found
    return {
        "before": share(before.judged.has_window),
        "dropped": one,
        "random": random,
        "random_mean": {
            "has_window": float(np.mean([draw["has_window"]["value"] for draw in random])),
            "elsewhere": float(np.mean([draw["elsewhere"]["relative"] for draw in random])),
            "flipped": {
                name: float(np.mean([draw["flipped"][name]["value"] for draw in random])) for name in one["flipped"]
            },
        },
    }


def _percent(value: float) -> str:
    return "an unknown share" if math.isnan(value) else f"{value:.0%}"


def _share(about: dict[str, Any]) -> str:
    low, high = about["ci95"]
    return f"{about['value']:.0%} [{low:.0%}, {high:.0%}]"


def _plot_judged(canvas: Canvas, counted: dict[str, Any]) -> None:
    shares, elsewhere, flips = canvas.plots(3, 1.7)
    one, random, mean = counted["dropped"], counted["random"], counted["random_mean"]
    ticks = ["all maps", "without\nwindow maps", "without\nrandom maps"]
    bars = [counted["before"], one["has_window"]]
    for place, (about, colour) in enumerate(zip(bars, (COLOURS[6], COLOURS[0]), strict=True)):
        low, high = about["ci95"]
        value = about["value"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        shares.bar(place, value, 0.6, color=colour)
        shares.errorbar(place, value, error, fmt="none", ecolor="0.5", elinewidth=1, capsize=3)
    shares.bar(2, mean["has_window"], 0.6, color=COLOURS[4])
    shares.plot([2] * len(random), [draw["has_window"]["value"] for draw in random], "k.", markersize=3)
    shares.set_xticks(range(3), ticks, fontsize=5.5)
    shares.set_ylabel("share of samples")
    shares.set_ylim(0, 1)
    shares.set_title(f"with a window, {counted['before']['n']:,} fresh z", fontsize=8, loc="left")

    elsewhere.bar(0, one["elsewhere"]["relative"], 0.6, color=COLOURS[0])
    elsewhere.bar(1, mean["elsewhere"], 0.6, color=COLOURS[4])
    elsewhere.plot([1] * len(random), [draw["elsewhere"]["relative"] for draw in random], "k.", markersize=3)
    elsewhere.set_xticks(range(2), ticks[1:], fontsize=6)
    elsewhere.set_ylabel("of the distance of two samples")
    elsewhere.set_title("change outside the window", fontsize=8, loc="left")

    names = list(one["flipped"])
    places = np.arange(len(names))
    values = [one["flipped"][name]["value"] for name in names]
    flips.barh(places - 0.2, values, 0.38, color=COLOURS[0], label="window maps")
    flips.barh(places + 0.2, [mean["flipped"][name] for name in names], 0.38, color=COLOURS[4], label="random maps")
    flips.set_yticks(places, [name.replace("_", " ") for name in names], fontsize=6)
    flips.invert_yaxis()
    flips.set_xlim(0, 1)
    flips.set_xlabel("share of samples")
    flips.set_title("whose attribute changed", fontsize=8, loc="left")
    flips.legend(fontsize=6, frameon=False)


def _plot_changes(canvas: Canvas, changes: dict[str, Any], region: str) -> None:
    (axes,) = canvas.plots(1, 1.7)
    places = np.arange(2)
    axes.bar(places - 0.2, changes["dropped"], 0.38, color=COLOURS[0], label=f"{region} maps dropped")
    axes.bar(places + 0.2, np.mean(changes["random"], axis=0), 0.38, color=COLOURS[4], label="random maps dropped")
    for draw in changes["random"]:
        axes.plot(places + 0.2, draw, "k.", markersize=3)
    axes.set_xticks(places, ["inside the boxes", "outside"])
    axes.set_ylabel("mean change of a pixel, of 255")
    axes.set_title("How far the samples with boxes change (dots: draws of random maps)", fontsize=8, loc="left")
    axes.legend(fontsize=7, frameon=False)


__all__ = [
    "Before",
    "Fitted",
    "MapLayer",
    "WindowsConfig",
    "activations",
    "balanced_positions",
    "chosen_layer",
    "compared",
    "draw_windows",
    "dropped",
    "fit_region",
    "inside",
    "judge_before",
    "judged_boxes",
    "map_layers",
    "painted",
    "pixel_changes",
    "with_boxes",
]
