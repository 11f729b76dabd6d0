"""`neighbours`: samples next to their nearest training images, and whether they are closer than unseen images are.

The paper argues in section 4 and Fig. 2 that its generator does not merely memorise. This figure finds the training
images that are nearest to samples, by pixels and in the feature space `random-conv-v1`, and compares the distances with
those of held-out images, real images that were not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from scipy.stats import quantile_test
from sklearn.neighbors import NearestNeighbors

from dcgan_dist.config import MOST, is_rooms
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import DataError
from dcgan_dist.evaluation.diversity import Floats, Metric, judge_copies
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import Array, fitted
from dcgan_dist.evaluation.nearest import Bytes, NearestRows
from dcgan_dist.evaluation.tasks import Rows, permutation
from dcgan_dist.exploration.drawing import COLOURS, LINES, Canvas, Panel, describe
from dcgan_dist.exploration.figure import SHOWN, FigureConfig, Measured, counted, plain
from dcgan_dist.exploration.networks import Trained, blocks
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
    done = 0
    with counted(blocks(dataset, _READ, chosen), count, f"pixels of {dataset.path}") as parts:
        for block in parts:
            search.add(block.reshape(len(block), -1), done)
            done += len(block)
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
        about, data = "rooms of another seed", run.other_rooms()
    else:
        about, data = config.test_data, run.dataset(config.test_data)
    of_rooms = is_rooms(data.path) and is_rooms(training.path)  # both begin with room 0, so they overlap
    if of_rooms or data.digest == training.digest:
        raise DataError(f"test_data {data.path!r} holds images of data {training.path!r}: take others, or leave it out")
    rows = permutation(data.count, config.seed, "explore/held-out")[: config.compared]
    if len(rows) < _FEWEST:
        raise DataError(f"test_data {data.path!r} has {data.count} images: a comparison needs {_FEWEST} or more")
    return HeldOut(read_images(data, rows), np.full(len(rows), -1), about)


def compare(samples: Floats, held_out: Floats, seed: int) -> dict[str, Metric]:
    """Compare the distances of samples to the nearest training image with those of held-out images.

    Args:
        samples: distances, (n,).
        held_out: distances, (m,).
        seed: seed of the bootstrap.

    Returns:
        The medians of both, with intervals by order statistics, and what `diversity.judge_copies` gives.
    """
    medians = {"median": _median(samples), "held_out_median": _median(held_out)}
    return medians | judge_copies(samples, held_out, seed)


def _median(values: Floats) -> Metric:
    middle = float(np.median(values))
    interval = quantile_test(values, q=middle, p=0.5).confidence_interval(0.95)
    return Metric(middle, (float(interval.low), float(interval.high)), len(values))


@dataclass(frozen=True)
class Space:
    """The training images that are nearest by pixels or by features.

    Attributes:
        compared: what `compare` gives.
        rows: numbers of the nearest training images of each sample that is shown, (n, k).
        distances: their distances, (n, k).
        samples: distance of each compared sample to its nearest training image, (compared,).
        held_out: the same of the held-out images, (m,).
        images: the nearest training images, uint8 (n * k, S, S, C).
    """

    compared: dict[str, Metric]
    rows: Rows
    distances: Floats
    samples: Floats
    held_out: Floats
    images: Pixels


@dataclass(frozen=True, kw_only=True)
class Neighbours(Measured):
    """Samples and the training images that are nearest to them.

    Attributes:
        data: where the training images are.
        training_images: how many were searched.
        training_images_in_all: how many there are.
        held_out: what the samples are compared with.
        held_out_images: how many images that are.
        label: class of the samples, if one was asked for.
        spaces: what was found, by the names of `_UNITS`.
        samples: the samples that are shown, uint8 (n, S, S, C).
    """

    data: str
    training_images: int
    training_images_in_all: int
    held_out: str
    held_out_images: int
    label: str | None
    spaces: dict[str, Space] = field(metadata=SHOWN)
    samples: Pixels = field(metadata=SHOWN)

    @property
    def numbers(self) -> dict[str, Any]:
        """See `Measured`."""
        lists = {
            name: [
                [{"image": row, "distance": distance} for row, distance in zip(*of_sample, strict=True)]
                for of_sample in zip(space.rows.tolist(), space.distances.tolist(), strict=True)
            ]
            for name, space in self.spaces.items()
        }
        distances = {name: {"samples": it.samples, "held_out": it.held_out} for name, it in self.spaces.items()}
        return {
            **super().numbers,
            **{name: plain(space.compared) for name, space in self.spaces.items()},
            "units": _UNITS,
            "shown": [
                {"sample": number, **{name: of_samples[number] for name, of_samples in lists.items()}}
                for number in range(len(self.samples))
            ],
            "distances": plain(distances),
        }

    @property
    def searched(self) -> str:
        """How many training images were searched."""
        of_all = f" of {self.training_images_in_all:,}" if self.training_images < self.training_images_in_all else ""
        return f"{self.training_images:,}{of_all}"

    @property
    def compared_with(self) -> str:
        """What the samples are compared with, in words."""
        if self.held_out == AMONG_THEMSELVES:
            return f"nothing; {self.held_out_images} training images are used instead, each against all the others"
        return f"{self.held_out_images} of {self.held_out}"


def measure(config: NeighboursConfig, run: Trained) -> Neighbours:
    """Find the training images nearest to samples, and compare their distances with those of held-out images.

    Raises:
        ConfigError: there is no such class.
        DataError: there are no images, or too few, or the held-out images are training images.
        RunDirectoryError: the samples are not finite.
    """
    ids, k = range(max(config.count, config.compared)), config.nearest + 1
    y = run.y(len(ids), config.label)
    training = run.dataset(config.data)
    chosen = None
    if config.data_count is not None and config.data_count < training.count:
        chosen = np.sort(permutation(training.count, config.seed, "explore/neighbours")[: config.data_count])
    count = training.count if chosen is None else len(chosen)
    if count < max(_FEWEST, k):
        raise DataError(f"{training.path!r} has {count} images: neighbours needs {max(_FEWEST, k)} or more")
    samples = run.generate(run.z(ids), y)
    held_out = _held_out(config, run, training, chosen)
    images = np.concatenate((samples, held_out.images))
    itself = np.concatenate((np.full(len(samples), -1), held_out.itself))
    by_pixels = nearest_by_pixels(images, training, k, run.device, chosen)
    if config.test_data is not None and np.median(by_pixels.distances[len(samples) :, 0]) == 0:
        raise DataError(
            f"test_data {config.test_data!r} holds images of data {training.path!r}, pixel for pixel: take others, or "
            "leave it out"
        )
    extractor = RandomConv(str(run.device))
    values = extractor(fitted(images, extractor.image_size, extractor.channels))
    by_features = nearest_by_features(values, run.features(extractor, training, chosen), k)

    def space(found: Nearest) -> Space:
        rows, distances = found.rows[: config.count], found.distances[: config.count]
        rows = rows if chosen is None else chosen[rows]
        of_samples, of_held_out = found.distances[: config.compared, 0], found.distances[len(samples) :, 0]
        compared = compare(of_samples, of_held_out, config.seed)
        return Space(compared, rows, distances, of_samples, of_held_out, read_images(training, rows.ravel()))

    return Neighbours(
        subtitle=run.subtitle,
        data=training.path,
        training_images=count,
        training_images_in_all=training.count,
        held_out=held_out.about,
        held_out_images=len(held_out.images),
        label=config.label,
        spaces={"pixel": space(by_pixels.without(itself)), "feature": space(by_features.without(itself))},
        samples=samples[: config.count],
    )


def draw(neighbours: Neighbours) -> Canvas:
    """Draw samples next to their nearest training images, and their distances next to those of held-out images."""
    canvas = Canvas("Samples and the training images nearest to them", neighbours.subtitle)
    panels = [Panel("sample", neighbours.samples, 1, [str(number) for number in range(len(neighbours.samples))])]
    for space, name in zip(neighbours.spaces.values(), ("pixels", "features (random-conv-v1)"), strict=True):
        typical = space.compared["held_out_median"].value or 1.0
        marks = [f"{distance / typical:.2f}" for distance in space.distances.ravel()]
        panels.append(Panel(f"nearest training images by {name}", space.images, space.rows.shape[1], marks))
    canvas.images(*panels)
    canvas.text(
        f"Searched: {neighbours.searched} training images. Numbers on neighbours: distance, as a share of the median "
        f"distance from a held-out image to its nearest training image. Held out: {neighbours.compared_with}. Below: "
        "share of images whose nearest training image is at most that far away (thin lines: medians)."
    )
    for axes, (name, space) in zip(canvas.plots(2), neighbours.spaces.items(), strict=True):
        for number, (what, values) in enumerate((("samples", space.samples), ("held-out images", space.held_out))):
            axes.ecdf(values, label=f"{what} (n = {len(values)})", color=COLOURS[number], linestyle=LINES[number])
            axes.axvline(float(np.median(values)), color=COLOURS[number], linewidth=0.5)
        describe(axes, f"Distance to the nearest training image, by {name}s", xlabel=_UNITS[name],
                 ylabel="share of images", legend={"fontsize": 6.5, "loc": "upper left"})  # fmt: skip
    return canvas


def finding(neighbours: Neighbours) -> str:
    """Return how often a sample is nearer to its nearest training image than a held-out image is to its own."""

    def of(name: str) -> str:
        auc = neighbours.spaces[name].compared["auc"]
        low, high = (round(100 * end) for end in auc.ci95)
        return f"in {auc.value:.0%} [{low}, {high}] of pairs by {name}s"

    near = max(space.compared["near_copies"].value for space in neighbours.spaces.values())
    return (
        f"A sample is nearer to its nearest of {neighbours.searched} training images than a held-out image is to its "
        f"{of('feature')} and {of('pixel')} (nothing memorised: 50%), and at most {near:.1%} of samples are nearer "
        f"than all but 1% of held-out images; held out: {neighbours.compared_with}."
    )


__all__ = ["Nearest", "NearestFew", "Neighbours", "NeighboursConfig", "Space", "compare", "draw", "finding",
           "measure", "nearest_by_features", "nearest_by_pixels", "read_images"]  # fmt: skip
