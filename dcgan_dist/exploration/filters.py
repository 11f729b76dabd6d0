"""`filters` (Fig. 5): what the features of D's conv layers respond to most, by guided backpropagation.

Guided backpropagation (Springenberg et al. 2014) goes from one response back to the pixels that caused it. At each
activation it passes only the positive part of the gradient, and only where the forward input was positive. The figure
shows it for the images with the highest responses of each feature, next to the patches of these images, and the same
for a discriminator with random weights as the control.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from msgspec import Meta
from torch import Tensor, nn

from dcgan_dist.config import MOST, PositiveInt
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.feature_files import fitted
from dcgan_dist.evaluation.features import random_discriminator
from dcgan_dist.evaluation.labelled import ROOM_ATTRIBUTES, Labels, room_labels
from dcgan_dist.evaluation.tasks import Z95
from dcgan_dist.exploration.drawing import COLOURS, Canvas, Panel, describe, errors
from dcgan_dist.exploration.figure import IF_KNOWN, SHOWN, FigureConfig, Measured, counted
from dcgan_dist.exploration.networks import Trained, blocks, parse_ids, pick_layer
from dcgan_dist.models.network import Discriminator
from dcgan_dist.settings import FormerNames

Values = npt.NDArray[np.float64]

_BATCH = 64
_MOST_FILTERS = 48
_IN_A_ROW = 6  # filters in a row of the picture
_NEUTRAL = 128  # grey level of no gradient, and of pixels outside the image


@dataclass(frozen=True, kw_only=True)
class FiltersConfig(FigureConfig):
    """Settings of `explore filters`."""

    layer: PositiveInt | None = None
    """Conv layer of D, 1 for that next to the image. Left out, the last one, as in the paper."""
    filters: tuple[str, ...] = ("0-5",)
    """List of the layer's features that are shown, such as 0-5,17 (the first 6 in the paper)."""
    top: Annotated[int, Meta(ge=1, le=24)] = 6
    """Images that are shown for each feature: those with the highest responses."""
    data: str | None = None
    """Images to look through: shards, a folder or an archive. Left out, those that the run was trained on."""
    count: Annotated[int, Meta(ge=2, le=MOST)] = 10000
    """How many of them at most, drawn evenly."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "count"}

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = set(parse_ids("filters", self.filters, "numbers of features"))
        if len(chosen) > _MOST_FILTERS:
            raise ConfigError(
                f"filters is {','.join(self.filters)!r}, {len(chosen)} features: take {_MOST_FILTERS} or fewer"
            )


class _GuidedRectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(values)
        return nn.functional.leaky_relu(values, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * (values > 0), None


class GuidedLeakyReLU(nn.Module):
    """A LeakyReLU with guided backpropagation: the forward pass is unchanged, the backward pass is a guided ReLU.

    Negative inputs, which the slope lets through, are no evidence for the feature, so no gradient goes back there.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, values: Tensor) -> Tensor:
        """Return the activations, in the shape of the input."""
        return cast(Tensor, _GuidedRectifier.apply(values, self.slope))  # type: ignore[no-untyped-call]


def guided(discriminator: Discriminator) -> Discriminator:
    """Return a copy in evaluation mode that uses guided backpropagation."""
    network = copy.deepcopy(discriminator).eval().requires_grad_(False)
    for module in list(network.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.LeakyReLU):
                setattr(module, name, GuidedLeakyReLU(part.negative_slope))
    return network


def guided_gradients(
    discriminator: Discriminator, images: Tensor, y: Tensor, layer: int, features: Tensor, positions: Tensor
) -> Tensor:
    """Return the gradient by guided backpropagation of one response of each image, (n, C, S, S).

    Args:
        discriminator: the network, which is not changed.
        images: (n, C, S, S) in the range that the network was trained on.
        y: labels, (n, classes).
        layer: index of the conv layer.
        features: index of the feature for each image, int64 (n,).
        positions: flat index (row by row) of the response in its map, int64 (n,).
    """
    with torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        maps = guided(discriminator).feature_maps(pixels, y)[layer].flatten(2)
        responses = maps[torch.arange(len(maps), device=maps.device), features, positions]
        (gradient,) = torch.autograd.grad(responses.sum(), pixels)
    return gradient


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a position of a layer's maps depends on: `size` pixels from `start + jump * position` on."""

    start: int
    jump: int
    size: int

    @classmethod
    def of(cls, convolutions: Sequence[nn.Conv2d]) -> ReceptiveField:
        """Return the receptive field of the last of successive convolutions."""
        start, jump, size = 0, 1, 1
        for convolution in convolutions:
            (kernel, _), (stride, _), padding = convolution.kernel_size, convolution.stride, convolution.padding[0]
            start -= int(padding) * jump
            size += (kernel - 1) * jump
            jump *= stride
        return cls(start, jump, size)

    def crop(self, image: Pixels, row: int, column: int) -> Pixels:
        """Return the patch (size, size, C) of an image (S, S, C) that a position sees; grey outside the image."""
        top, left = self.start + self.jump * row, self.start + self.jump * column
        patch = np.full((self.size, self.size, image.shape[2]), _NEUTRAL, np.uint8)
        inside = image[max(top, 0) : max(top + self.size, 0), max(left, 0) : max(left + self.size, 0)]
        y, x = max(-top, 0), max(-left, 0)
        patch[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        return patch


class TopResponses:
    """The images with the k highest responses of each feature; among equal responses, the images that came first.

    Attributes:
        values: the responses, float32 (k, features), the highest first; -inf if there were fewer than k images.
        numbers: numbers of the images, int64 (k, features); -1 if there were fewer than k images.
        positions: flat indices of the responses in their maps, int64 (k, features).
        seen: number of images so far.
        sums: sums over all images of the responses and of their squares, float64 (2, features).
    """

    def __init__(self, k: int, features: int) -> None:
        self.values = torch.full((k, features), -torch.inf)
        self.numbers = torch.full((k, features), -1, dtype=torch.int64)
        self.positions = torch.zeros((k, features), dtype=torch.int64)
        self.seen = 0
        self.sums = torch.zeros(2, features, dtype=torch.float64)

    def add(self, values: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Add the responses of n images and their positions, (n, features) both, and the images' numbers, (n,)."""
        self.seen += len(values)
        self.sums += torch.stack((values.double().sum(dim=0), values.double().square().sum(dim=0)))
        all_values = torch.cat((self.values, values))
        order = all_values.argsort(dim=0, descending=True, stable=True)[: len(self.values)]
        self.values = all_values.gather(0, order)
        self.numbers = torch.cat((self.numbers, numbers[:, None].expand_as(positions))).gather(0, order)
        self.positions = torch.cat((self.positions, positions)).gather(0, order)

    @property
    def selectivity(self) -> Tensor:
        """Mean of the highest responses less the mean over all images, in standard deviations, (features,)."""
        mean, square = self.sums / self.seen
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        highest = torch.where(self.numbers >= 0, self.values, 0.0).double().sum(dim=0) / (self.numbers >= 0).sum(dim=0)
        return torch.where(deviation > 0, (highest - mean) / deviation, 0.0)


def conv_layers(discriminator: Discriminator) -> list[nn.Conv2d]:
    """Return the convolutions of a discriminator in order; [] if its layers are dense."""
    return [part for part in discriminator.modules() if isinstance(part, nn.Conv2d)]


@torch.no_grad()
def chosen_layer(run: Trained, layer: int | None) -> tuple[int, tuple[int, int]]:
    """Return the index of a conv layer of D, and the number and the side of its maps.

    Raises:
        ConfigError: there is no such layer; the message lists the existing ones.
    """
    sizes = []
    if conv_layers(run.discriminator):
        image = torch.zeros(1, run.channels, run.image_size, run.image_size, device=run.device)
        hidden = run.discriminator.feature_maps(image, run.no_label(1))
        sizes = [(maps.shape[1], maps.shape[2]) for maps in hidden]
    index = pick_layer(run, "discriminator", "filters looks into", sizes, layer, len(sizes))
    return index, sizes[index]


@torch.no_grad()
def highest_responses(
    discriminator: Discriminator, real: Tensor, y: Tensor, layer: int, features: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the highest response of each feature in each image, and its position; on the CPU, (n, features) both.

    Args:
        discriminator: the network, in evaluation mode.
        real: images (n, C, S, S) in the range that the network was trained on.
        y: labels, (n, classes).
        layer: index of the conv layer.
        features: indices of the features; if None, all of the layer.
    """
    maps = discriminator.feature_maps(real, y)[layer]
    if features is not None:
        maps = maps[:, list(features)]
    highest = maps.flatten(2).max(dim=2)
    return highest.values.float().cpu(), highest.indices.cpu()


@dataclass(frozen=True)
class Responses:
    """The highest responses of some features of a discriminator.

    Attributes:
        responses: the highest responses of each feature, the highest first, float32 (filters, k).
        positions: row and column of each in its map, int64 (filters, k, 2).
        selectivity: of each feature, see `TopResponses`, (filters,).
        half_of_gradient: `half_area` of each guided gradient, (k, filters); NaN where it is 0.
        patches: what the responses depend on, uint8 (k, filters, size, size, C).
        gradients: guided gradients as images, in the same shape.
    """

    responses: Tensor
    positions: Tensor
    selectivity: Tensor
    half_of_gradient: Values
    patches: Pixels = field(metadata=SHOWN)
    gradients: Pixels = field(metadata=SHOWN)


@dataclass(frozen=True, kw_only=True)
class Filters(Measured):
    """What features of a conv layer of D respond to.

    Attributes:
        layer: number of the layer, 1 for that next to the image.
        maps: number of its features.
        side: side of a map in positions.
        receptive_field: side of the patch that a response depends on, in pixels.
        images: number of images that were looked through.
        data: where they are.
        filters: the features that are shown.
        trained: their highest responses.
        random: the same of a discriminator with random weights.
        attributes: for rooms, how well the best single feature of `trained` and of `random` predicts each attribute.
        most: number of images if none is damaged.
    """

    layer: int
    maps: int
    side: int
    receptive_field: int
    images: int
    data: str
    filters: list[int]
    trained: Responses
    random: Responses
    attributes: dict[str, dict[str, Auc]] | None = field(metadata=IF_KNOWN)
    most: int = field(metadata=SHOWN)


def measure(config: FiltersConfig, run: Trained) -> Filters:
    """Find the highest responses of features, and measure for rooms what single features distinguish.

    Raises:
        ConfigError: D has no conv layers, no such layer, or no such feature.
        DataError: the images cannot be read.
    """
    layer, (count, side) = chosen_layer(run, config.layer)
    filters = list(dict.fromkeys(parse_ids("filters", config.filters, "numbers of features")))
    if max(filters) >= count:
        raise ConfigError(
            f"filters is {','.join(config.filters)!r}, but layer {layer + 1} of the discriminator has {count} "
            f"features: take numbers from 0 to {count - 1}"
        )
    random = random_discriminator(run.model, run.seed).network.to(run.device).requires_grad_(False)
    networks = {"trained": run.discriminator, "random": random}
    images = _Images(run, run.dataset(config.data), config.count)
    tops = {name: TopResponses(config.top, len(filters)) for name in networks}
    with counted(images, images.most, "responses", lambda batch: len(batch[1])) as batches:
        for which, pixels in batches:
            real = run.real(pixels)
            for name, network in networks.items():
                tops[name].add(*highest_responses(network, real, run.no_label(len(real)), layer, filters), which)
    field = ReceptiveField.of(conv_layers(run.discriminator)[: layer + 1])
    return Filters(
        subtitle=run.subtitle,
        layer=layer + 1,
        maps=count,
        side=side,
        receptive_field=field.size,
        images=tops["trained"].seen,
        data=images.dataset.path,
        filters=filters,
        attributes=_attribute_aucs(networks, run, layer) if run.is_rooms else None,
        most=images.most,
        **{
            name: _responses(network, images, run, layer, filters, tops[name], field, side)
            for name, network in networks.items()
        },
    )


def draw(measured: Filters) -> Canvas:
    """Draw guided gradients and patches and, for rooms, how well single features predict attributes."""
    layer, field, filters = measured.layer, measured.receptive_field, measured.filters
    canvas = Canvas(f"What features of D's conv layer {layer} respond to", measured.subtitle)
    canvas.text(
        f"Each column: a feature of the {measured.maps} of {measured.side}x{measured.side} positions, at its "
        f"{len(measured.trained.patches)} highest responses among {measured.most:,} real images. A patch is the "
        f"{field}x{field} pixels that the response depends on; grey is outside the image, or no gradient."
    )
    for first in range(0, len(filters), _IN_A_ROW):
        part = slice(first, first + _IN_A_ROW)
        marks = [str(number) for number in filters[part]]
        for which, of in (("trained", measured.trained), ("with random weights", measured.random)):
            kinds = (("guided backpropagation", of.gradients), ("the patches", of.patches))
            canvas.images(
                *(
                    Panel(f"D {which}: {what}", rows[:, part].reshape(-1, *rows.shape[2:]), len(marks), marks)
                    for what, rows in kinds
                )
            )
    if measured.attributes is not None:
        _plot(canvas, measured.attributes, measured.maps)
    return canvas


def finding(measured: Filters) -> str:
    """Return how small the area of the gradients is and, for rooms, how well single features predict attributes."""
    trained, random = (float(np.nanmean(of.half_of_gradient)) for of in (measured.trained, measured.random))
    start = (
        f"At the highest responses of {len(measured.filters)} features of conv layer {measured.layer} of D, half of "
        f"the guided gradient's squares lie on {trained:.1%} of a patch's pixels, with random weights on "
        f"{random:.1%} ({measured.most:,} images)"
    )
    if measured.attributes is None:
        return f"{start}."
    pairs = {name: (about["trained"], about["random"]) for name, about in measured.attributes.items()}
    better = sum(ours.ci95[0] > theirs.ci95[1] for ours, theirs in pairs.values())
    worse = sum(ours.ci95[1] < theirs.ci95[0] for ours, theirs in pairs.values())
    best = max(pairs, key=lambda name: pairs[name][0].auc - pairs[name][1].auc)
    return (
        f"{start}; the best single feature predicts {best.replace('_', ' ')} with an AUC of "
        f"{pairs[best][0].auc:.2f} (random weights {pairs[best][1].auc:.2f}); of {len(pairs)} attributes it is clearly "
        f"better than with random weights for {better}, and clearly worse for {worse}."
    )


class _Images:
    """The first images of an epoch's order, in batches; each image can be read again by its number.

    Attributes:
        dataset: the data set.
        most: number of images, if none is damaged.
    """

    def __init__(self, run: Trained, dataset: Dataset, limit: int) -> None:
        self.dataset = dataset
        self._size, self._channels = run.image_size, run.channels
        self._batch = min(_BATCH, dataset.count, limit)
        self._stream = ImageStream(dataset, seed=run.seed, batch_size=self._batch)
        self._batches = min(limit // self._batch, self._stream.batches_per_epoch)
        self.most = self._batches * self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Pixels]]:
        """Yield numbers (n,) and images (n, S, S, C), batch by batch."""
        with self._stream.iterate(0, self._batches) as batches:
            for number, batch in enumerate(batches):
                images = fitted(batch.images.numpy(), self._size, self._channels)
                if len(images):
                    yield torch.arange(len(images)) + number * self._batch, images

    def read(self, number: int) -> Pixels:
        """Return the image with a number, (S, S, C)."""
        batch, row = divmod(number, self._batch)
        image = self._stream.read(batch).images[row : row + 1].numpy()
        return cast(Pixels, fitted(image, self._size, self._channels)[0])


def _responses(
    network: Discriminator,
    images: _Images,
    run: Trained,
    layer: int,
    filters: Sequence[int],
    top: TopResponses,
    field: ReceptiveField,
    side: int,
) -> Responses:
    k = len(top.values)
    shape = (k, len(filters), field.size, field.size, run.channels)
    patches, gradients = np.full((2, *shape), _NEUTRAL, np.uint8)
    areas = np.full(shape[:2], np.nan)
    for rank in range(k):
        there = [column for column in range(len(filters)) if top.numbers[rank, column] >= 0]
        if not there:
            break
        pixels = np.stack([images.read(int(top.numbers[rank, column])) for column in there])
        positions = top.positions[rank, there]
        features = torch.tensor([filters[column] for column in there], device=run.device)
        found = guided_gradients(
            network, run.real(pixels), run.no_label(len(there)), layer, features, positions.to(run.device)
        )
        shades = _shades(found)
        for index, column in enumerate(there):
            row, at = divmod(int(positions[index]), side)
            patches[rank, column] = field.crop(pixels[index], row, at)
            gradients[rank, column] = field.crop(shades[index], row, at)
            areas[rank, column] = half_area(found[index], field)
    positions = torch.stack((top.positions.T // side, top.positions.T % side), dim=-1)
    return Responses(top.values.T, positions, top.selectivity, areas, patches, gradients)


def half_area(gradient: Tensor, field: ReceptiveField) -> float:
    """Return the smallest share of a patch's pixels that holds half of the sum of squares of a gradient (C, S, S).

    It is NaN for a gradient of zeros.
    """
    energy = gradient.double().square().sum(dim=0).flatten().sort(descending=True).values.cumsum(dim=0)
    if not energy[-1] > 0:
        return float("nan")
    return int((energy < energy[-1] / 2).sum() + 1) / field.size**2


def _shades(gradients: Tensor) -> Pixels:
    """Return gradients (n, C, S, S) as images (n, S, S, C): 0 is grey, the largest of each image black or white."""
    largest = gradients.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = torch.where(largest > 0, gradients / largest, 0.0) * 127 + _NEUTRAL
    return cast(Pixels, scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def aucs(values: Values, positives: npt.NDArray[np.bool_]) -> Values:
    """Return the areas under the ROC curves of the columns of values (n, m), for each group of positives (n, groups).

    An area is the probability that a random positive has a higher value than a random negative. The result has the
    shape (groups, m).
    """
    ranks = scipy.stats.rankdata(values, axis=0)
    count = positives.sum(axis=0)[:, None]
    pairs = count * (len(values) - count)
    wins = positives.T.astype(np.float64) @ ranks - count * (count + 1) / 2
    return np.asarray(np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5))


def mean_auc(values: Values, positives: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean AUC of columns of values, each with its own positives, (n, m) both, and its standard error.

    The error is DeLong's (1988): the images are independent, the columns are not.
    """
    count = positives.sum(axis=0)
    rest = len(values) - count
    ranks = scipy.stats.rankdata(values, axis=0)
    areas = np.diagonal(aucs(values, positives))
    parts = np.zeros(values.shape)  # contribution of each image to the error of the AUC
    for column in range(values.shape[1]):
        group = positives[:, column]
        if not count[column] or not rest[column]:
            continue
        # For each positive the negatives with lower values; for each negative the positives with higher values.
        lower = ranks[group, column] - scipy.stats.rankdata(values[group, column])
        higher = count[column] - (ranks[~group, column] - scipy.stats.rankdata(values[~group, column]))
        parts[group, column] = (lower / rest[column] - areas[column]) / max(count[column] - 1, 1)
        parts[~group, column] = (higher / count[column] - areas[column]) / max(rest[column] - 1, 1)
    return float(areas.mean()), float(np.sqrt(np.square(parts.mean(axis=1)).sum()))


@dataclass(frozen=True)
class Auc:
    """How well single features predict an attribute.

    Attributes:
        auc: area under the ROC curve; of an attribute with several values, the mean of a feature for each.
        ci95: its interval.
        n: number of images that it was measured on.
        features: the features, (1,) or (values,).
    """

    auc: float
    ci95: tuple[float, float]
    n: int
    features: npt.NDArray[np.int64]


def best_single_features(values: Values, labels: dict[str, Labels], kinds: dict[str, int]) -> dict[str, Auc]:
    """Return the AUC of the best single feature for each attribute, on images that were not used to choose it.

    For each attribute, the feature and its sign are chosen on the first half of the images, and the AUC is measured on
    the second half. If an attribute has more than two values, a feature is chosen for each value against all others,
    and the mean of their AUCs is returned.

    Args:
        values: responses, (n, features); the order of the images must not depend on the labels.
        labels: index of each image's value, (n,), by attribute.
        kinds: number of values, by attribute.
    """
    half = len(values) // 2
    found = {}
    for attribute, numbers in labels.items():
        wanted = [1] if kinds[attribute] == 2 else list(range(kinds[attribute]))
        positives = numbers[:, None] == np.array(wanted)
        areas = aucs(values[:half], positives[:half])
        chosen = np.abs(areas - 0.5).argmax(axis=1)
        signs = np.where(areas[np.arange(len(chosen)), chosen] >= 0.5, 1.0, -1.0)
        area, error = mean_auc(values[half:, chosen] * signs, positives[half:])
        ends = max(0.0, area - Z95 * error), min(1.0, area + Z95 * error)
        found[attribute] = Auc(area, ends, len(values) - half, chosen)
    return found


def _attribute_aucs(networks: dict[str, Discriminator], run: Trained, layer: int) -> dict[str, dict[str, Auc]]:
    """Return `best_single_features` of each network, by attribute, on rooms that no run is trained on."""
    dataset = run.other_rooms()
    labels = room_labels(dataset)
    parts: dict[str, list[Tensor]] = {name: [] for name in networks}
    for pixels in blocks(dataset, _BATCH):
        real = run.real(pixels)
        for name, network in networks.items():
            parts[name].append(highest_responses(network, real, run.no_label(len(real)), layer)[0])
    kinds = {attribute: len(values) for attribute, values in ROOM_ATTRIBUTES.items()}
    found = {
        name: best_single_features(torch.cat(rows).double().numpy(), labels, kinds) for name, rows in parts.items()
    }
    return {attribute: {name: found[name][attribute] for name in networks} for attribute in labels}


def _plot(canvas: Canvas, attributes: dict[str, dict[str, Auc]], count: int) -> None:
    (axes,) = canvas.plots(1, 1.9)
    places = np.arange(len(attributes))
    for shift, name, colour in ((-0.2, "trained", COLOURS[0]), (0.2, "random", COLOURS[4])):
        found = [aucs_of[name] for aucs_of in attributes.values()]
        areas = [one.auc for one in found]
        label = "D trained" if name == "trained" else "D with random weights"
        axes.bar(places + shift, np.subtract(areas, 0.5), 0.38, bottom=0.5, color=colour, label=label)
        reach = errors(areas, [one.ci95 for one in found])
        axes.errorbar(places + shift, areas, reach, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axes.set_xticks(places, [name.replace("_", " ") for name in attributes])
    axes.axhline(0.5, color="0.4", linewidth=0.8)
    about = f"{found[0].n:,} held-out rooms, 95% intervals"
    title = f"How well the best single feature of {count} predicts an attribute, {about}"
    describe(axes, title, "left", {"fontsize": 7, "ncols": 2, "loc": "upper right"}, ylim=(0.45, 1.12),
             yticks=np.arange(0.5, 1.01, 0.1), ylabel="AUC (0.5: by chance)")  # fmt: skip


__all__ = ["Auc", "Filters", "FiltersConfig", "GuidedLeakyReLU", "ReceptiveField", "Responses", "TopResponses",
           "aucs", "best_single_features", "chosen_layer", "conv_layers", "draw", "finding", "guided",
           "guided_gradients", "half_area", "highest_responses", "mean_auc", "measure"]  # fmt: skip
