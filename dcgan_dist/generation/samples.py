"""The samples of a trained generator as an endless sequence: sample i is a function of (seed, i).

Samples are computed in whole blocks, each by any process: always the same images together, on one core, so that
rounding, and the statistics of batch norm if it uses those of the batch, are the same every time.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig, Weights, is_whole
from dcgan_dist.data.images import Pixels
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.models.family import family_of
from dcgan_dist.models.network import Generator
from dcgan_dist.runs.run import Run
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.sampling import sample_feature_maps, to_uint8
from dcgan_dist.training.trained import load_generator

Labels = npt.NDArray[np.int64]

BLOCK = 64  # samples that are computed together
_ROWS_CHECKED = 1 << 16  # rows of a file of z that are checked at once
PURPOSE = "sample"  # of the draws of z, so that they differ from those of training and scores


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The description of samples, small enough to be sent to a worker process.

    Attributes:
        run: the run.
        step: of the checkpoint.
        digest: of the checkpoint, so that another one of the same step is refused.
        weights: which of its weights.
        model: settings of its networks.
        class_names: of a conditional run, in the order of its labels; else empty.
        seed: of z.
        label: the class of all samples; None for the classes in turn, or those of `z_file`.
        z_file: a file of z to use instead of random ones (see `read_z`).
        truncation: bound of the values of random z (see `truncated`).
        device: to compute on.
        block: number of samples that are computed together.
    """

    run: Run
    step: int
    digest: str
    model: ModelConfig
    weights: Literal["average", "raw"] = "raw"
    class_names: tuple[str, ...] = ()
    seed: int = 0
    label: int | None = None
    z_file: str | None = None
    truncation: float | None = None
    device: str = "cpu"
    block: int = BLOCK

    @property
    def is_conditional(self) -> bool:
        """Whether the samples have labels."""
        return bool(self.model.classes)

    def labels(self, start: int, stop: int) -> Labels:
        """Return the labels of samples [start, stop); -1 for an unconditional run."""
        numbers = np.arange(start, stop, dtype=np.int64)
        if not self.model.classes:
            return np.full_like(numbers, -1)
        if self.label is not None:
            return np.full_like(numbers, self.label)
        given = None if self.z_file is None else read_z(self.z_file, self.model)[1]
        return numbers % self.model.classes if given is None else given[start:stop]

    def z(self, start: int, stop: int) -> torch.Tensor:
        """Return the noise of samples [start, stop), which must be in one block; float32 (n, z_dim)."""
        if self.z_file is not None:
            return torch.from_numpy(np.array(read_z(self.z_file, self.model)[0][start:stop], dtype=np.float32))
        first, model = start // self.block * self.block, self.model
        z = draw_z(self.seed, PURPOSE, start // self.block, stop - first, model.z_dim, model.z_distribution)
        return truncated(z[start - first :], self.truncation, model.z_distribution)

    def images(self, start: int, stop: int) -> Iterator[tuple[Pixels, Labels]]:
        """Yield samples [start, stop) as uint8 (n, S, S, C) with their labels (n,), block by block.

        Raises:
            ConfigError: the last batch has only one row of `z_file`, of which batch norm has no statistics.
            RunDirectoryError: the checkpoint is missing or was replaced, or its samples are not finite.
            StorageError: it cannot be read.
        """
        for first in range(start // self.block * self.block, stop, self.block):
            images, labels = self._block(first)
            wanted = slice(max(start - first, 0), stop - first)
            yield images[wanted], labels[wanted]

    def _block(self, first: int) -> tuple[Pixels, Labels]:
        """Return a whole block of samples with their labels; with a file of z, the last block may be smaller."""
        generator = _loaded(replace(self, seed=0, label=None, z_file=None, truncation=None))
        z, last = self.z(first, first + self.block).to(self.device), first + self.block
        labels = self.labels(first, min(last, first + len(z)))
        y = one_hot(torch.from_numpy(labels), self.model.classes or 0).to(self.device)
        takes_batches = self.model.sample_statistics == "batch"
        if len(z) == 1 and takes_batches and any(isinstance(part, nn.BatchNorm1d) for part in generator.modules()):
            raise ConfigError(
                f"z {self.z_file!r} leaves one row for the last batch of {self.block}, which has no statistics of its "
                "own: give --statistics running, or another number of rows"
            )
        with _one_thread(self.device):
            images, _ = sample_feature_maps(generator, z, y, self.model)
            if not torch.isfinite(images).all():
                raise RunDirectoryError(
                    f"the samples of {self.run.location} at step {self.step} are not finite: the run has diverged, "
                    "take an earlier step"
                )
            return to_uint8(images, generator.image_range), labels


def open_samples(
    run: Run,
    step: str = "latest",
    *,
    seed: int = 0,
    label: str | None = None,
    z_file: str | None = None,
    truncation: float | None = None,
    statistics: Literal["running", "batch"] | None = None,
    weights: Weights = "auto",
    device: str = "cpu",
) -> Samples:
    """Return the samples of a run, after checking all settings.

    Args:
        run: the run.
        step: `latest`, or a step that has a checkpoint.
        seed: of z.
        label: number or name of a class, for samples of only that class.
        z_file: file of z to use (see `read_z`).
        truncation: see `truncated`.
        statistics: of batch norm: averages of training or those of each block; None for the setting of the run.
        weights: averaged or raw ones; see `trained.load_generator`.
        device: to compute on.

    Raises:
        ConfigError: no averaged weights, no such label, z of another shape, or a truncation out of range.
        RunDirectoryError: no such run or checkpoint.
        StorageError: it cannot be read.
    """
    if step == "all":
        raise ConfigError("step is 'all': take one step, or latest")
    (number,) = run.chosen_steps(step)
    loaded = load_generator(run, number, weights)
    model = loaded.model
    if statistics is not None:
        model = replace(model, sample_statistics=statistics)
    names: tuple[str, ...] = ()
    if family_of(model).is_conditional:
        recorded = run.settings.get("environment", {}).get("classes", ())
        names = tuple(map(str, recorded)) or tuple(map(str, range(model.classes or 0)))
    if z_file is not None:
        if truncation is not None:
            raise ConfigError(f"truncation is {truncation} and z is {z_file!r}: give one of them, z is used as it is")
        _check_finite(z_file, read_z(z_file, model)[0])
    truncated(torch.zeros(1), truncation, model.z_distribution)
    return Samples(
        run=run,
        step=number,
        digest=loaded.digest,
        model=model,
        weights=loaded.weights,
        class_names=names,
        seed=seed,
        label=None if label is None else class_number(label, names, run.location, model.name),
        z_file=z_file,
        truncation=truncation,
        device=device,
    )


def class_number(label: str, names: tuple[str, ...], location: str, family: str) -> int:
    """Return the number of a class given by its name or number.

    Raises:
        ConfigError: the run is unconditional, or has no such class.
    """
    if not names:
        raise ConfigError(
            f"label is {label!r}, but {location} is an unconditional run ({family}): leave it out, or give a "
            "conditional run"
        )
    if label in names:
        return names.index(label)
    if is_whole(label) and int(label) < len(names):
        return int(label)
    numbers = ", ".join(f"{number}" if name == str(number) else f"{number} {name}" for number, name in enumerate(names))
    choices = numbers if len(names) <= 20 else f"0 to {len(names) - 1}, or a name such as {names[0]!r}"
    raise ConfigError(f"label is {label!r}, but {location} has {len(names)} classes: take one of {choices}")


def truncated(z: torch.Tensor, bound: float | None, distribution: Literal["uniform", "normal"]) -> torch.Tensor:
    """Return noise restricted to [-bound, bound], for samples with less variety, closer to the mean of those of G.

    Every value is mapped to the same quantile of the restricted distribution: N(0, 1) without its tails, or
    U(-bound, bound). So each sample stays recognisable while the bound shrinks, and a bound of infinity (normal) or 1
    (uniform) changes nothing.

    Raises:
        ConfigError: the bound is not positive, or above 1 for uniform noise.
    """
    if bound is None:
        return z
    if not bound > 0 or (distribution == "uniform" and bound > 1):
        way_out = "a positive number" if distribution == "normal" else "one in (0, 1], since z is uniform in [-1, 1]"
        raise ConfigError(f"truncation is {bound}: take {way_out}")
    if distribution == "uniform":
        return z * bound
    below = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64))
    quantiles = below + torch.special.ndtr(z.double()) * (1 - 2 * below)
    moved: torch.Tensor = torch.special.ndtri(quantiles).clamp(-bound, bound).to(z.dtype)
    return moved


@lru_cache(maxsize=2)
def read_z(path: str, model: ModelConfig) -> tuple[npt.NDArray[np.floating], Labels | None]:
    """Read noise vectors from a file, and their labels if it has any.

    Args:
        path: a .npy with an array (n, z_dim), which is mapped into memory, or a .npz with `z` (and `labels`, (n,)).
        model: whose z_dim and classes they must match.

    Raises:
        ConfigError: the file cannot be read, or has other content.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        is_archive = not isinstance(loaded, np.ndarray)
        z = loaded["z"] if is_archive else loaded
        labels = loaded["labels"] if is_archive and "labels" in loaded else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, or holds no such array"
        raise ConfigError(
            f"z is {path!r}, which cannot be read ({reason}): give a .npy with an array (n, {model.z_dim}), or a .npz "
            "with `z`"
        ) from error
    if z.ndim != 2 or z.shape[1] != model.z_dim or not len(z):
        raise ConfigError(f"z is {path!r}, an array of shape {z.shape}: the run takes (n, {model.z_dim})")
    if not np.issubdtype(z.dtype, np.floating):
        raise ConfigError(f"z is {path!r}, an array of {z.dtype}: the run takes floating-point numbers")
    if labels is not None and model.classes:
        fits = labels.shape == (len(z),) and np.issubdtype(labels.dtype, np.integer)
        if not fits or labels.min() < 0 or labels.max() >= model.classes:
            raise ConfigError(
                f"the labels of z {path!r} do not fit: they should be {len(z)} whole numbers from 0 to "
                f"{model.classes - 1}"
            )
        return z, labels.astype(np.int64)
    return z, None


def _check_finite(path: str, z: npt.NDArray[np.floating]) -> None:
    for start in range(0, len(z), _ROWS_CHECKED):
        if not np.isfinite(z[start : start + _ROWS_CHECKED]).all():
            raise ConfigError(f"z is {path!r}, which holds values that are not finite: correct or leave out their rows")


@lru_cache(maxsize=1)
def _loaded(samples: Samples) -> Generator:
    """Return the generator on its device, loaded once in each process."""
    loaded = load_generator(samples.run, samples.step, samples.weights)
    if loaded.digest != samples.digest:
        raise RunDirectoryError(
            f"the checkpoint of step {samples.step} of {samples.run.location} was just replaced: sample again"
        )
    return loaded.network.to(samples.device)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """Compute on one core within the block: with several, sums may be rounded differently."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


__all__ = ["BLOCK", "Labels", "Samples", "class_number", "open_samples", "read_z", "truncated"]
