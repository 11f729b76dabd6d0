"""The features of a discriminator (section 5): the activations of its conv layers, max-pooled and concatenated.

Activations of dense hidden layers are taken without pooling.

The statistics of batch norm are frozen: either the running averages of training or, as in the released code, statistics
measured over the unlabelled training set. A conditional discriminator gets no label (a vector of zeros), because its
features are to predict the label.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.config import ModelConfig
from dcgan_dist.data.dataset import Dataset
from dcgan_dist.data.images import Pixels, fit
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.winograd import WinogradConv2d, is_suitable
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.models.network import Discriminator
from dcgan_dist.runs.run import Run
from dcgan_dist.settings import as_record
from dcgan_dist.storage.files import write_atomically, writing
from dcgan_dist.training.checkpoint import copy_tensors
from dcgan_dist.training.sampling import to_real
from dcgan_dist.training.trained import load_networks

Pooling = Literal["paper", "released"]
Precision = Literal["fp32", "bf16"]

GRID = 4  # side of the pooled maps (section 5.1)
RELEASED_WINDOWS = (4, 2, 1)  # pooling windows of the released SVHN code, for its three layers
STATISTICS_BATCH = 128
_BATCH = 32  # on a CPU: its caches can hold the maps of so many
_BATCH_ON_GPU = 256
_WEIGHTS_SECONDS = 7 * 24 * 3600  # time after which weights are removed from the cache


@dataclass(frozen=True)
class TrainedDiscriminator:
    """A discriminator to be evaluated.

    Attributes:
        network: the network in float32 on the CPU.
        model: its settings, with image size, channels and classes.
        image_range: range of the pixels that it was trained on.
        step: step of its checkpoint; None if it was not trained.
        digest: digest of its checkpoint; if it was not trained, of the settings and the seed of its weights.
        statistics: origin of its batch-norm statistics: `running`, or `measured` with the data's digest and the number
            of batches.
    """

    network: Discriminator
    model: ModelConfig
    image_range: tuple[float, float]
    step: int | None
    digest: str
    statistics: str = "running"

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that it takes."""
        assert self.model.image_size is not None
        return self.model.image_size

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        assert self.model.channels is not None
        return self.model.channels


def load_discriminator(run: Run, step: int) -> TrainedDiscriminator:
    """Load the discriminator of a run's checkpoint, and verify the digest of its file.

    Raises:
        RunDirectoryError: there is no such checkpoint, it is damaged, or it has another architecture.
        StorageError: it cannot be read.
    """
    generator, network, model, digest = load_networks(run, step)
    return TrainedDiscriminator(network.eval(), model, generator.image_range, step, digest)


def random_discriminator(model: ModelConfig, seed: int) -> TrainedDiscriminator:
    """Return the control: a discriminator of the same architecture with random initial weights.

    Raises:
        ConfigError: the settings have no image size.
    """
    generator, network = build_networks(model)
    initialise(network, model, seed)
    digest = xxhash.xxh3_128_hexdigest(repr((sorted(as_record(model).items()), seed)).encode())
    return TrainedDiscriminator(network.eval(), model, generator.image_range, None, f"random-{digest}")


@torch.no_grad()
def measure_statistics(
    trained: TrainedDiscriminator, dataset: Dataset, device: torch.device, batches: int | None = None
) -> TrainedDiscriminator:
    """Return the discriminator with batch-norm statistics that are measured over unlabelled images and then frozen.

    As in the released code, the images are processed in batches of 128, each normalised by its own mean and (biased)
    variance; the frozen statistics are the means of both over the batches.

    Args:
        trained: the discriminator.
        dataset: the images that it was trained on; an incomplete last batch is left out.
        device: where to compute.
        batches: number of batches; if None, all of the data set.

    Raises:
        DataError: the data set cannot be read.
        RunDirectoryError: the statistics are not finite.
    """
    network = copy.deepcopy(trained.network).to(device).train()
    layers = [layer for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    sums: dict[nn.Module, list[Tensor]] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
        before = sums.get(layer, [torch.zeros_like(mean, dtype=torch.float64), torch.zeros_like(mean).double()])
        sums[layer] = [before[0] + mean, before[1] + variance]

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    stream = ImageStream(dataset, seed=0, batch_size=min(STATISTICS_BATCH, dataset.count), on_damage="fail")
    count = stream.batches_per_epoch if batches is None else min(batches, stream.batches_per_epoch)
    with stream.iterate(0, count) as loaded:
        for batch in loaded:
            images = _fitted(batch.images.numpy(), trained.image_size, trained.channels)
            real = to_real(torch.from_numpy(images).to(device), trained.image_range, torch.float32)
            network.feature_maps(real, _no_label(len(images), trained.model, real))
    for hook in hooks:
        hook.remove()
    for number, layer in enumerate(layers):
        mean, variance = (total / count for total in sums[layer])
        if not torch.isfinite(mean + variance).all():
            raise RunDirectoryError(
                f"the statistics of batch norm {number + 1} of {len(layers)} of the discriminator at step "
                f"{trained.step} are not finite: the run has diverged, score an earlier step"
            )
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    statistics = f"measured-{dataset.digest}-{count}"
    return TrainedDiscriminator(
        network.cpu().eval(), trained.model, trained.image_range, trained.step, trained.digest, statistics
    )


def _fitted(images: Pixels, size: int, channels: int) -> Pixels:
    if images.shape[1] == size and images.shape[3] == channels:
        return images
    return np.stack([fit(image, size, channels) for image in images])


def _no_label(count: int, model: ModelConfig, like: Tensor) -> Tensor:
    return like.new_zeros(count, model.classes or 0)


def pool_maps(maps: list[Tensor], pooling: Pooling) -> list[Tensor]:
    """Max-pool the activations of each conv layer, (n, c, h, w), and flatten them to (n, values).

    Activations of dense layers, (n, units), are returned unchanged.

    `paper` pools every layer to a 4x4 grid; `released` uses windows of 4, 2 and 1 pixels for networks of three layers
    (for maps of 16, 8 and 4 pixels the values are the same).

    Raises:
        ConfigError: the pooling is `released`, and the network does not have three conv layers.
    """
    if all(layer.dim() == 2 for layer in maps):
        return maps
    if pooling == "paper":
        return [_to_grid(layer).flatten(1) for layer in maps]
    if len(maps) != len(RELEASED_WINDOWS):
        raise ConfigError(
            f"pooling is 'released', which is for discriminators of {len(RELEASED_WINDOWS)} conv layers, but this one "
            f"has {len(maps)}: take paper"
        )
    return [
        nn.functional.max_pool2d(layer, window).flatten(1) for layer, window in zip(maps, RELEASED_WINDOWS, strict=True)
    ]


def _to_grid(maps: Tensor) -> Tensor:
    side = maps.shape[2]
    if side % GRID:
        return nn.functional.adaptive_max_pool2d(maps, GRID)
    return nn.functional.max_pool2d(maps, side // GRID) if side > GRID else maps


@dataclass(frozen=True)
class DiscriminatorFeatures:
    """The extractor of a discriminator's features (see `feature_files.Extractor`), made by `prepare_extractor`."""

    weights: str
    key: str
    model: ModelConfig
    image_size: int
    channels: int
    image_range: tuple[float, float]
    step: int | None
    pooling: Pooling
    precision: Precision
    dtype: str
    device: str
    dimension: int

    def __call__(self, images: Pixels) -> Array:
        """See `Extractor`.

        Raises:
            RunDirectoryError: the features are not finite; the message names the layer.
        """
        network = _frozen(self)
        rows = np.empty((len(images), self.dimension), dtype=self.dtype)
        size = _BATCH if self.device == "cpu" else _BATCH_ON_GPU
        for start in range(0, len(images), size):
            rows[start : start + size] = self.features(network, images[start : start + size]).cpu().numpy()
        return rows

    @torch.inference_mode()
    def features(self, network: Discriminator, images: Pixels) -> Tensor:
        """Return the features (n, dimension) of uint8 images, on the device of a network that `freeze` made."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        real = to_real(torch.from_numpy(images).to(self.device), self.image_range, torch.float32).to(dtype)
        parts = pool_maps(network.feature_maps(real, _no_label(len(images), self.model, real)), self.pooling)
        joined = torch.cat(parts, dim=1).to(getattr(torch, self.dtype))
        if not torch.isfinite(joined).all():
            raise _not_finite(parts, self.step, self.dtype)
        return joined


def _not_finite(parts: list[Tensor], step: int | None, dtype: str) -> RunDirectoryError:
    of = "the discriminator with random weights" if step is None else f"the discriminator at step {step}"
    for number, part in enumerate(parts, start=1):
        if not torch.isfinite(part).all():
            kind = "NaN" if part.isnan().any() else "infinite"
            return RunDirectoryError(
                f"the features of {of} are {kind} from layer {number} of {len(parts)} on: the run has diverged, "
                "score an earlier step"
            )
    return RunDirectoryError(f"the features of {of} are too large for {dtype}: take --store float32")


def freeze(network: Discriminator, precision: Precision, device: torch.device | str) -> Discriminator:
    """Return a copy for extraction: batch norm folded into the convolutions, memory format channels last.

    In float32 on a CPU, 3x3 convolutions of stride 1 use fewer multiplications (see `winograd`).
    """
    with_winograd = precision == "fp32" and torch.device(device).type == "cpu"
    frozen = copy.deepcopy(network).eval()
    for module in frozen.modules():
        if not isinstance(module, nn.Sequential):
            continue
        parts = dict(module.named_children())
        conv, norm = parts.get("conv"), parts.get("norm")
        if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
            module.conv = fuse_conv_bn_eval(conv, norm)
            module.norm = nn.Identity()
        if with_winograd and isinstance(conv, nn.Conv2d) and is_suitable(conv):
            assert isinstance(module.conv, nn.Conv2d)
            module.conv = WinogradConv2d(module.conv)
    frozen = frozen.to(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return frozen.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload,no-any-return]


@lru_cache(maxsize=2)
def _frozen(extractor: DiscriminatorFeatures) -> Discriminator:
    """Load the weights that `prepare_extractor` wrote, once in each process."""
    network = build_networks(extractor.model)[1]
    copy_tensors(
        safetensors.torch.load_file(extractor.weights), dict(network.state_dict()), "discriminator", extractor.weights
    )
    return freeze(network, extractor.precision, extractor.device)


def prepare_extractor(
    trained: TrainedDiscriminator,
    cache: Path,
    *,
    pooling: Pooling = "paper",
    precision: Precision = "fp32",
    dtype: Literal["float16", "float32"] = "float16",
    device: torch.device | str = "cpu",
) -> DiscriminatorFeatures:
    """Return the extractor of a discriminator, and write its weights into the cache, from which workers read them.

    Raises:
        ConfigError: the pooling does not fit the network.
        StorageError: the disk of the cache is full.
    """
    sides = torch.zeros(1, trained.channels, trained.image_size, trained.image_size)
    with torch.inference_mode():
        maps = trained.network.feature_maps(sides, _no_label(1, trained.model, sides))
        dimension = sum(part.shape[1] for part in pool_maps(maps, pooling))
    content = (trained.digest, trained.statistics, sorted(as_record(trained.model).items()), trained.image_range)
    name = xxhash.xxh3_128_hexdigest(repr(content).encode())
    path = cache / "networks" / f"{name}.safetensors"
    tensors = {key: value.contiguous() for key, value in trained.network.state_dict().items()}
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        for other in path.parent.glob("*.safetensors"):
            if time.time() - other.stat().st_mtime > _WEIGHTS_SECONDS:
                other.unlink(missing_ok=True)
        # Written again even if it exists, so that its age starts at 0.
        write_atomically(path, safetensors.torch.save(tensors))
    return DiscriminatorFeatures(
        weights=str(path),
        key=f"discriminator-{name}-{pooling}-{precision}",
        model=trained.model,
        image_size=trained.image_size,
        channels=trained.channels,
        image_range=trained.image_range,
        step=trained.step,
        pooling=pooling,
        precision=precision,
        dtype=dtype,
        device=str(device),
        dimension=dimension,
    )
