"""`neighbours`: samples next to their nearest training images, and whether they are closer than unseen images are.

The paper argues in section 4 and Fig. 2 that its generator does not merely memorise. This figure finds the training
images that are nearest to samples, by pixels and in the feature space `random-conv-v1`, and compares the distances with
those of held-out images, real images that were not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from msgspec import Meta
from scipy.stats import quantile_test
from sklearn.neighbors import NearestNeighbors

from dcgan_dist.config import MOST, is_rooms
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation.diversity import Floats, Metric, judge_copies
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import Array, FeatureFiles, fitted
from dcgan_dist.evaluation.labelled import open_labelled
from dcgan_dist.evaluation.nearest import Bytes, NearestRows
from dcgan_dist.evaluation.tasks import Rows, permutation
from dcgan_dist.exploration.drawing import COLOURS, LINES, Canvas, Panel
from dcgan_dist.exploration.figure import Drawn, FigureConfig
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.parallel import LocalPool
from dcgan_dist.settings import FormerNames

AMONG_THEMSELVES = "training images against the others"
"""`HeldOut.about` if there are no held-out images, and training images take their part."""

_READ = 256  # images in memory at once
_FEWEST = 20  # samples, and held-out images, that a comparison of distances needs
_UNITS = {"pixel": "root mean square difference, grey levels", "feature": "distance of random-conv-v1 features"}


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(FigureConfig):
    """Settings of `explore neighbours`."""

    count: Annotated[int, Meta(ge=1, le=200)] = 10
    """Samples that are shown, the first ones of the sheet."""
    nearest: Annotated[int, Meta(ge=1, le=20)] = 3
    """Nearest training images that are shown of each, by pixels and by features."""
    compared: Annotated[int, Meta(ge=_FEWEST, le=10**5)] = 200
    """Samples, and held-out images, whose distances to the nearest training image are compared."""
    data: str | None = None
    """The training images. Left out, what the run says that it was trained on."""
    test_data: str | None = None
    """Images that the run was not trained on. Left out, other rooms for a run on rooms, and for others training images,
    each compared with all but itself."""
    data_count: Annotated[int, Meta(ge=_FEWEST, le=MOST)] | None = None
    """How many training images are looked through, drawn by the seed. Left out, all."""
    label: str | None = None
    """Number or name of the class of the samples; conditional runs only. Left out, the classes in turn."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "data_count"}


@dataclass(frozen=True)
class Nearest:
    """The k nearest training images of each of m images, the nearest first.

    Attributes:
        distances: float64 (m, k).
        rows: indices among the training images that were searched, int64 (m, k).
    """

    distances: Floats
    rows: Rows

    def without(self, itself: Rows) -> Nearest:
        """Return the k - 1 nearest images other than the image itself; `itself` is its row, -1 if it has none."""
        others = self.rows != itself[:, None]
        # Rows without the image itself lose the farthest one, so that all keep k - 1.
        others[others.all(axis=1), -1] = False
        shape = len(self.rows), self.rows.shape[1] - 1
        return Nearest(self.distances[others].reshape(shape), self.rows[others].reshape(shape))


class NearestFew(NearestRows):
    """`NearestRows` for the k nearest rows of each image, also exact: `found` has arrays (m, k).

    Args:
        images: uint8 (m, d).
        k: number of rows to keep for each image.
        device: where to compute.
    """

    def __init__(self, images: Bytes, k: int, device: torch.device | str = "cpu") -> None:
        self._k = k
        super().__init__(images, device)

    def reset(self) -> None:
        """See `NearestRows`."""
        super().reset()
        self._distances = self._distances[:, None].repeat(1, self._k)
        self._rows = self._rows[:, None].repeat(1, self._k)

    def _add(self, rows: Bytes, first: int) -> None:
        x = self._centred(rows)
        rest = torch.from_numpy(rows[:, self._same]).to(self.device, torch.int32) - self._value_of_same
        own = self._squares(x) + rest.square().sum(dim=1)
        squared = own + self._norms[:, None] - 2 * self._products(x, self._images).T.long()
        asked = torch.nonzero(squared.amin(dim=1) < self._distances[:, -1]).squeeze(1)
        if not len(asked):
            return
        numbers = torch.arange(first, first + len(x), device=self.device).expand(len(asked), -1)
        # A stable sort, so that among equally near rows the earlier one comes first.
        joined, order = torch.cat((self._distances[asked], squared[asked]), dim=1).sort(dim=1, stable=True)
        sorted_rows = torch.cat((self._rows[asked], numbers), dim=1).gather(1, order)
        self._distances[asked], self._rows[asked] = joined[:, : self._k], sorted_rows[:, : self._k]


def read_images(dataset: Dataset, rows: Rows) -> Pixels:
    """Return images by their numbers, which count through the shards in order, uint8 (n, S, S, C).

    Raises:
        DataError: an image is damaged.
    """
    ends = np.cumsum(dataset.sizes)
    shards = np.searchsorted(ends, rows, side="right")
    records = rows - np.concatenate(([0], ends[:-1]))[shards]
    where = zip(shards.tolist(), records.tolist(), strict=True)
    return np.concatenate([read_records(dataset, shard, at, at + 1)[0] for shard, at in where])


def _blocks(dataset: Dataset, chosen: Rows | None) -> Iterator[Pixels]:
    """Yield all images, or those with the chosen numbers, block by block in the order of the shards."""
    wanted = np.ones(dataset.count, dtype=bool) if chosen is None else np.isin(np.arange(dataset.count), chosen)
    row = 0
    for shard, size in enumerate(dataset.sizes):
        for start in range(0, size, _READ):
            stop = min(start + _READ, size)
            here = wanted[row + start : row + stop]
            if here.any():
                yield read_records(dataset, shard, start, stop)[0][here]
        row += size


def nearest_by_pixels(
    images: Pixels, dataset: Dataset, k: int, device: torch.device, chosen: Rows | None = None
) -> Nearest:
    """Find the training images with the smallest root mean square difference of pixels, exactly, block by block.

    Args:
        images: uint8 (m, S, S, C).
        dataset: the training images.
        k: neighbours of each image.
        device: where to compute.
        chosen: ascending numbers of the training images to search; if None, all.

    Raises:
        DataError: a training image is damaged.
    """
    search = NearestFew(images.reshape(len(images), -1), k, device)
    count = dataset.count if chosen is None else len(chosen)
    line, done = ProgressLine(f"pixels of {dataset.path}"), 0
    try:
        for block in _blocks(dataset, chosen):
            search.add(block.reshape(len(block), -1), done)
            done += len(block)
            line(done, done / count, 0)
    finally:
        line.close()
    found = search.found
    return Nearest(np.sqrt(found.distances / images[0].size), found.rows)


def nearest_by_features(values: Array, training: Array, k: int) -> Nearest:
    """Find the rows of features with the smallest Euclidean distance, in float64, block by block.

    Args:
        values: features of the images, (m, d).
        training: features of the training images, (n, d); may be memory-mapped.
        k: neighbours of each image.
    """
    distances, rows = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(training).kneighbors(values)
    return Nearest(distances.astype(np.float64), rows.astype(np.int64))


@dataclass(frozen=True)
class HeldOut:
    """Real images that samples are compared with.

    Attributes:
        images: uint8 (n, S, S, C).
        itself: index of each among the training images that are searched, -1 if it is not one of them.
        about: description of the images.
    """

    images: Pixels
    itself: Rows
    about: str


def _held_out(config: NeighboursConfig, run: Trained, training: Dataset, chosen: Rows | None) -> HeldOut:
    if config.test_data is None and not is_rooms(training.path):
        count = training.count if chosen is None else len(chosen)
        itself = permutation(count, config.seed, "explore/held-out")[: config.compared]
        images = read_images(training, itself if chosen is None else chosen[itself])
        return HeldOut(images, itself, AMONG_THEMSELVES)
    if config.test_data is None:
        about = "rooms of another seed"
        data = open_labelled(None, "rooms", image_size=run.image_size, channels=run.channels, cache=run.cache)
    else:
        about, data = config.test_data, run.dataset(config.test_data)
    of_rooms = is_rooms(data.path) and is_rooms(training.path)  # both begin with room 0, so they overlap
    if of_rooms or data.digest == training.digest:
        raise DataError(f"test_data {data.path!r} holds images of data {training.path!r}: take others, or leave it out")
    rows = permutation(data.count, config.seed, "explore/held-out")[: config.compared]
    if len(rows) < _FEWEST:
        raise DataError(f"test_data {data.path!r} has {data.count} images: a comparison needs {_FEWEST} or more")
    return HeldOut(read_images(data, rows), np.full(len(rows), -1), about)


def compare(samples: Floats, held_out: Floats, seed: int) -> dict[str, dict[str, Any]]:
    """Compare the distances of samples to the nearest training image with those of held-out images.

    Args:
        samples: distances, (n,).
        held_out: distances, (m,).
        seed: seed of the bootstrap.

    Returns:
        The medians of both, with intervals by order statistics, and what `diversity.judge_copies` gives.
    """
    found = {
        "median": _median(samples),
        "held_out_median": _median(held_out),
        **judge_copies(samples, held_out, seed),
    }
    return {name: asdict(metric) | {"ci95": list(metric.ci95)} for name, metric in found.items()}


def _median(values: Floats) -> Metric:
    middle = float(np.median(values))
    interval = quantile_test(values, q=middle, p=0.5).confidence_interval(0.95)
    return Metric(middle, (float(interval.low), float(interval.high)), len(values))


def draw_neighbours(config: NeighboursConfig, run: Trained) -> Drawn:
    """Draw samples next to their nearest training images, and their distances next to those of held-out images.

    Raises:
        ConfigError: there is no such class.
        DataError: there are no images, or too few, or the held-out images are training images.
        RunDirectoryError: the samples are not finite.
    """
    ids = range(max(config.count, config.compared))
    y = run.y(len(ids), config.label)
    training = run.dataset(config.data)
    chosen = None
    if config.data_count is not None and config.data_count < training.count:
        chosen = np.sort(permutation(training.count, config.seed, "explore/neighbours")[: config.data_count])
    count = training.count if chosen is None else len(chosen)
    if count < max(_FEWEST, config.nearest + 1):
        raise DataError(
            f"{training.path!r} has {count} images: neighbours needs {max(_FEWEST, config.nearest + 1)} or more"
        )
    samples = run.generate(run.z(ids), y)
    held_out = _held_out(config, run, training, chosen)

    images = np.concatenate((samples, held_out.images))
    itself = np.concatenate((np.full(len(samples), -1), held_out.itself))
    by_pixels = nearest_by_pixels(images, training, config.nearest + 1, run.device, chosen)
    if config.test_data is not None and np.median(by_pixels.distances[len(samples) :, 0]) == 0:
        raise DataError(
            f"test_data {config.test_data!r} holds images of data {training.path!r}, pixel for pixel: take others, or "
            "leave it out"
        )
    extractor = RandomConv(str(run.device))
    values = extractor(fitted(images, extractor.image_size, extractor.channels))
    by_features = nearest_by_features(values, _features(extractor, run, training, chosen), config.nearest + 1)
    found = {"pixel": by_pixels.without(itself), "feature": by_features.without(itself)}

    distances = {
        space: (nearest.distances[: config.compared, 0], nearest.distances[len(samples) :, 0])
        for space, nearest in found.items()
    }
    measured = {space: compare(*both, config.seed) for space, both in distances.items()}
    rows = {space: nearest.rows if chosen is None else chosen[nearest.rows] for space, nearest in found.items()}
    canvas = Canvas("Samples and the training images nearest to them", run.subtitle)
    _show(canvas, config, samples, training, rows, found, measured)
    looked = f"{count:,} of {training.count:,}" if chosen is not None else f"{count:,}"
    canvas.text(
        f"Searched: {looked} training images. Numbers on neighbours: distance, as a share of the median distance "
        f"from a held-out image to its nearest training image. Held out: {_in_words(held_out)}. Below: share of images "
        "whose nearest training image is at most that far away (thin lines: medians)."
    )
    for axes, (space, both) in zip(canvas.plots(2), distances.items(), strict=True):
        _plot(axes, space, *both)
    return Drawn(
        title="Samples and the training images nearest to them",
        finding=_finding(measured, looked, held_out),
        canvas=canvas,
        numbers={
            "data": training.path,
            "training_images": count,
            "training_images_in_all": training.count,
            "held_out": held_out.about,
            "held_out_images": len(held_out.images),
            "label": config.label,
            "units": _UNITS,
            **measured,
            "shown": [
                {
                    "sample": number,
                    **{
                        space: [
                            {"image": row, "distance": distance}
                            for row, distance in zip(
                                rows[space][number].tolist(), nearest.distances[number].tolist(), strict=True
                            )
                        ]
                        for space, nearest in found.items()
                    },
                }
                for number in range(config.count)
            ],
            "distances": {
                space: {"samples": ours.tolist(), "held_out": theirs.tolist()}
                for space, (ours, theirs) in distances.items()
            },
        },
    )


def _features(extractor: RandomConv, run: Trained, training: Dataset, chosen: Rows | None) -> Array:
    """Return the features of the training images from the cache, which `evaluate` shares."""
    line = ProgressLine(f"features of {training.path}")
    try:
        return FeatureFiles(run.cache).get(
            extractor, training, LocalPool(1), lambda done, count: line(done, done / count, 0), chosen
        )
    finally:
        line.close()


def _in_words(held_out: HeldOut) -> str:
    if held_out.about == AMONG_THEMSELVES:
        return f"nothing; {len(held_out.images)} training images are used instead, each against all the others"
    return f"{len(held_out.images)} of {held_out.about}"


def _show(
    canvas: Canvas,
    config: NeighboursConfig,
    samples: Pixels,
    training: Dataset,
    rows: dict[str, Rows],
    found: dict[str, Nearest],
    measured: dict[str, dict[str, Any]],
) -> None:
    panels = [Panel("sample", samples[: config.count], 1, [str(number) for number in range(config.count)])]
    for space, caption in (
        ("pixel", "nearest training images by pixels"),
        ("feature", "nearest training images by features (random-conv-v1)"),
    ):
        typical = measured[space]["held_out_median"]["value"] or 1.0
        marks = [f"{distance / typical:.2f}" for distance in found[space].distances[: config.count].ravel()]
        images = read_images(training, rows[space][: config.count].ravel())
        panels.append(Panel(caption, images, config.nearest, marks))
    canvas.images(*panels)


def _plot(axes: Axes, space: str, samples: Floats, held_out: Floats) -> None:
    for number, (name, values) in enumerate((("samples", samples), ("held-out images", held_out))):
        axes.ecdf(values, label=f"{name} (n = {len(values)})", color=COLOURS[number], linestyle=LINES[number])
        axes.axvline(float(np.median(values)), color=COLOURS[number], linewidth=0.5)
    axes.set_title(f"Distance to the nearest training image, by {space}s", fontsize=8)
    axes.set_xlabel(_UNITS[space])
    axes.set_ylabel("share of images")
    axes.legend(fontsize=6.5, frameon=False, loc="upper left")


def _finding(measured: dict[str, dict[str, Any]], looked: str, held_out: HeldOut) -> str:
    def of(space: str) -> str:
        auc = measured[space]["auc"]
        low, high = (round(100 * end) for end in auc["ci95"])
        return f"in {auc['value']:.0%} [{low}, {high}] of pairs by {space}s"

    near = max(measured[space]["near_copies"]["value"] for space in _UNITS)
    return (
        f"A sample is nearer to its nearest of {looked} training images than a held-out image is to its "
        f"{of('feature')} and {of('pixel')} (nothing memorised: 50%), and at most {near:.1%} of samples are nearer "
        f"than all but 1% of held-out images; held out: {_in_words(held_out)}."
    )


__all__ = ["Nearest", "NearestFew", "NeighboursConfig", "compare", "draw_neighbours", "nearest_by_features",
           "nearest_by_pixels", "read_images"]  # fmt: skip
