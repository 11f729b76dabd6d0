"""The trained networks of a run, as the figures use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcgan_dist.config import ModelConfig, Weights, is_whole
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels
from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import ConfigError, DataError, RunDirectoryError
from dcgan_dist.evaluation.feature_files import Array, Extractor, FeatureFiles
from dcgan_dist.evaluation.labelled import open_labelled
from dcgan_dist.evaluation.tasks import Rows
from dcgan_dist.generation.samples import Samples, class_number, open_samples
from dcgan_dist.models.network import Discriminator, Generator
from dcgan_dist.parallel import LocalPool
from dcgan_dist.runs.run import Run
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import measure_statistics, to_real, to_uint8
from dcgan_dist.training.trained import load_generator, load_networks

Ids = Sequence[int]

_BATCH = 64
_MOST_IDS = 10_000  # that a setting can list


@dataclass(frozen=True)
class Trained:
    """A run's networks at one step, frozen: an image depends only on its z and label.

    If the run samples with the statistics of each batch (`model.sample_statistics: batch`), the statistics of 1,024
    samples are measured once and used for all images.

    Attributes:
        run: the run.
        step: step of the checkpoint.
        digest: digest of the checkpoint.
        images_seen: real images that the networks had seen, 0 if the checkpoint does not say.
        model: settings of the networks.
        generator: the generator in evaluation mode, on `device`.
        samples: the endless sequence of samples that `sample --seed` draws; its indices are the numbers on a sheet.
        device: where to compute.
        seed: seed of everything that the figure draws.
        cache: folder for files that can be made again.
    """

    run: Run
    step: int
    digest: str
    images_seen: int
    model: ModelConfig
    generator: Generator
    samples: Samples
    device: torch.device
    seed: int
    cache: Path

    @cached_property
    def discriminator(self) -> Discriminator:
        """The discriminator in evaluation mode, on `device`; loaded on first use, because few figures need it.

        Raises:
            RunDirectoryError: it is damaged.
            StorageError: it cannot be read.
        """
        _, discriminator, _, _ = load_networks(self.run, self.step)
        return discriminator.eval().to(self.device).requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        assert self.model.image_size is not None
        return self.model.image_size

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        assert self.model.channels is not None
        return self.model.channels

    @property
    def classes(self) -> int:
        """Number of classes; 0 for an unconditional run."""
        return self.model.classes or 0

    @property
    def location(self) -> str:
        """Folder or URL of the run."""
        return self.run.location

    @property
    def is_rooms(self) -> bool:
        """Whether the run was trained on procedural rooms."""
        return self.run.is_rooms

    @property
    def subtitle(self) -> str:
        """A line that names the run, the step, the weights and the seed."""
        name = self.run.settings.get("name") or Path(self.location).name
        seen = f", {self.images_seen:,} real images seen" if self.images_seen else ""
        averaged = ", averaged weights" if self.samples.weights == "average" else ""
        return f"run {name}, step {self.step:,}{averaged}{seen}, seed {self.seed}"

    def z(self, ids: Ids) -> Tensor:
        """Return the z of samples by their numbers, float32 (n, z_dim), the same z as in `sample --seed`."""
        return torch.cat([self.samples.z(number, number + 1)[:1] for number in ids])

    def draw_z(self, purpose: str, count: int) -> Tensor:
        """Draw z for a purpose of a figure, float32 (count, z_dim); row i depends on i, not on count."""
        return draw_z(self.seed, f"explore/{purpose}", 0, count, self.model.z_dim, self.model.z_distribution)

    def y(self, count: int, label: str | None = None, first: int = 0) -> Tensor:
        """Return one-hot labels, (count, classes): all of one class, or the classes in turn from `first` on.

        Args:
            count: number of labels.
            label: number or name of a class.
            first: number of the first sample, so that with classes in turn sample i has the same label as in `sample`.

        Raises:
            ConfigError: there is no such class, or the run is unconditional.
        """
        if label is None:
            labels = (torch.arange(count) + first) % max(self.classes, 1)
        else:
            chosen = class_number(label, self.samples.class_names, self.location, self.model.name)
            labels = torch.full((count,), chosen)
        return one_hot(labels, self.classes)

    @torch.no_grad()
    def generate(self, z: Tensor, y: Tensor) -> Pixels:
        """Return the samples of z (n, z_dim) and y (n, classes) as uint8 (n, S, S, C).

        Raises:
            RunDirectoryError: the samples are not finite.
        """
        parts = []
        for start in range(0, len(z), _BATCH):
            part = slice(start, start + _BATCH)
            images = self.generator(z[part].to(self.device), y[part].to(self.device))
            if not torch.isfinite(images).all():
                raise RunDirectoryError(
                    f"the samples of {self.location} at step {self.step} are not finite: the run has diverged, take an "
                    "earlier step"
                )
            parts.append(to_uint8(images, self.generator.image_range))
        return np.concatenate(parts)

    @torch.no_grad()
    def generator_maps(self, z: Tensor, y: Tensor) -> list[Tensor]:
        """Return the activations of all hidden layers of G, and the images last; one batch, so n has to be small."""
        return self.generator.feature_maps(z.to(self.device), y.to(self.device))

    def real(self, images: Pixels) -> Tensor:
        """Return uint8 images (n, S, S, C) in the range and layout that D takes, (n, C, S, S)."""
        return to_real(torch.from_numpy(images).to(self.device), self.generator.image_range, torch.float32)

    def no_label(self, count: int) -> Tensor:
        """Return the input of D for unknown labels, (count, classes) zeros."""
        return torch.zeros(count, self.classes, device=self.device)

    def dataset(self, path: str | None = None) -> Dataset:
        """Open images, resized to the run's image size; without a path, the images that the run was trained on.

        Raises:
            DataError: there are no images, or they have another number of channels.
        """
        about = self.run.settings.get("data", {}) if path is None else {"path": path}
        try:
            return open_labelled(
                str(about.get("path")),
                "folder",
                image_size=self.image_size,
                channels=self.channels,
                cache=self.cache,
                image_member=about.get("image_member"),
            )
        except DataError as error:
            if path is not None:
                raise
            raise DataError(f"{error}; the run was trained there: give --data PATH") from error

    def other_rooms(self) -> Dataset:
        """Open rooms that no run is trained on, in the run's image size."""
        return open_labelled(None, "rooms", image_size=self.image_size, channels=self.channels, cache=self.cache)

    def features(self, extractor: Extractor, dataset: Dataset, chosen: Rows | None = None) -> Array:
        """Return features of a data set, or of the images with the chosen ascending numbers, (n, d).

        They come from the cache, which `evaluate` shares, or are computed and kept there.

        Raises:
            DataError: an image is damaged.
        """
        with closing(ProgressLine(f"features of {dataset.path}")) as line:
            return FeatureFiles(self.cache).get(
                extractor, dataset, LocalPool(1), lambda done, count: line(done, done / count, 0), chosen
            )


def open_trained(
    run: Run, step: str, *, seed: int, device: torch.device, cache: Path, weights: Weights = "auto"
) -> Trained:
    """Load the networks of a run's checkpoint.

    Args:
        run: the run.
        step: `latest`, or a step that has a checkpoint.
        seed: seed of everything that is drawn.
        device: where to compute.
        cache: folder for files that can be made again.
        weights: whether to use the averaged or the raw weights of the generator; see `load_generator`.

    Raises:
        ConfigError: there is no such step, or there are no averaged weights.
        RunDirectoryError: there is no such run, or it has no checkpoint.
        StorageError: a file cannot be read.
    """
    samples = open_samples(run, step, seed=seed, weights=weights, device=device.type)
    generator, model, digest, _ = load_generator(run, samples.step, weights)
    generator = generator.eval().to(device)
    if model.sample_statistics == "batch":
        # Batch statistics would make an image depend on the others of its batch.
        measure_statistics(generator, model, seed)
        model = replace(model, sample_statistics="running")
    return Trained(
        run=run,
        step=samples.step,
        digest=digest,
        images_seen=run.checkpoint(samples.step).images_seen,
        model=model,
        generator=generator.requires_grad_(False),
        samples=samples,
        device=device,
        seed=seed,
        cache=cache,
    )


def blocks(dataset: Dataset, size: int, chosen: Rows | None = None) -> Iterator[Pixels]:
    """Yield all images, or those with the chosen numbers, in the order of the shards, up to `size` images at a time.

    Raises:
        DataError: an image is damaged.
    """
    wanted = np.ones(dataset.count, dtype=bool) if chosen is None else np.isin(np.arange(dataset.count), chosen)
    row = 0
    for shard, records in enumerate(dataset.sizes):
        for start in range(0, records, size):
            stop = min(start + size, records)
            here = wanted[row + start : row + stop]
            if here.any():
                yield read_records(dataset, shard, start, stop)[0][here]
        row += records


def pick_layer(
    run: Trained, network: str, use: str, sizes: Sequence[tuple[int, int]], number: int | None, default: int
) -> int:
    """Return the index of a layer that a figure looks into.

    Args:
        run: the run.
        network: `generator` or `discriminator`, for the message.
        use: what the figure does with conv layers, for the message.
        sizes: number and side of the maps of each layer; empty if the network has only dense layers.
        number: number of the layer from 1 on; None for the default.
        default: number of the layer that is taken then.

    Raises:
        ConfigError: there is no such layer; the message lists the existing ones.
    """
    if not sizes:
        raise ConfigError(
            f"the {network} of {run.location} ({run.model.name}) has only dense layers, but {use} conv layers: give a "
            "run of dcgan or cdcgan"
        )
    if number is not None and number > len(sizes):
        known = ", ".join(f"{n} ({maps} maps of {side}x{side})" for n, (maps, side) in enumerate(sizes, start=1))
        raise ConfigError(
            f"layer is {number}, which the {network} of {run.location} does not have: take one of {known}"
        )
    return (number or default) - 1


def parse_ids(name: str, words: Sequence[str], of: str = "numbers of samples as on the sheet") -> list[int]:
    """Parse a list of numbers and ranges, such as ``3``, ``17`` and ``20-25``.

    Args:
        name: name of the setting, for the message.
        words: numbers and ranges.
        of: what the numbers are, for the message.

    Raises:
        ConfigError: a word is neither a number nor a range, or there are too many numbers.
    """
    ids: list[int] = []
    text = ",".join(words)
    for word in words or ("",):
        first, dash, last = word.replace(" ", "").partition("-")
        if not is_whole(first) or (dash and not (is_whole(last) and int(last) >= int(first))):
            raise ConfigError(f"{name} is {text!r}: list {of}, such as 3,17,20-25")
        if int(last or first) >= 2**40 or int(last or first) - int(first) + len(ids) >= _MOST_IDS:
            raise ConfigError(f"{name} is {text!r}: list {_MOST_IDS:,} at most, with numbers below 2**40")
        ids += range(int(first), int(last or first) + 1)
    return ids


__all__ = ["Ids", "Trained", "blocks", "open_trained", "parse_ids", "pick_layer"]
