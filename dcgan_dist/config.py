"""Every setting of the product: one tree of frozen dataclasses with defaults, meaning and checks.

Precedence is defaults < YAML file < command line (``--optim.lr 1e-4``). The docstring under each field is what
``--help`` prints. Where the paper (Radford, Metz, Chintala 2015) and its released code disagree, the setting takes the
values ``paper`` and ``released``, or the field says which value belongs to which.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, SupportsIndex, TypeVar

from dcgan_dist.errors import ConfigError

IMAGE_SIZES = (16, 28, 32, 64, 128, 256)
Weights = Literal["auto", "average", "raw"]
BASELINES = ("random", "pixels", "knn", "kmeans", "cnn")

# A list that a run or a sweep records as text, values separated by commas, so that all versions read it alike. It is
# given as that text or as a YAML list.
ListText = str

# Names and values that settings had in earlier versions, declared in the class of the settings. They are still read:
# command lines and YAML files with a line that says what to write now, records of runs and sweeps in silence.
# A new name is dotted, or a function of all settings given that returns one.
FormerNames = Mapping[str, str | Callable[[Mapping[str, Any]], str]]
FormerValues = Mapping[str, Mapping[str, Any]]

# Of two settings that exclude each other, the one given later (on the command line over YAML) replaces the other.
ALTERNATIVES = (("training.epochs", "training.steps"),)

Settings = TypeVar("Settings")


def _require(condition: bool, key: str, value: object, way_out: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}: {way_out}")


# The largest values of settings that decide how much memory, how many processes or how many files there are; all others
# are at most MOST. Widths of networks count by their squares: at 1,024, G and D with their gradients and Adam's moments
# take about 25 GB.
MOST = 10**9
LARGEST: dict[str, float] = {
    "model.z_dim": 1 << 14,
    "model.ngf": 1 << 10,
    "model.ndf": 1 << 10,
    "model.classes": 1 << 16,
    "model.maxout": 1 << 6,
    "optim.lr": 1e30,  # with such a rate people see a run diverge
    "training.batch_size": 1 << 17,
    "training.sample_count": 10_000,
    "training.steps": 10**12,
    "data.workers": 1 << 9,
    "data.prefetch": 1 << 9,
    "cluster.workers": 1 << 12,
    "cluster.cpus_per_worker": 1 << 12,
    "deduplication.batch_size": 1 << 17,
    "seed": math.inf,  # has a range of its own
    "first": math.inf,
    "workers": 1 << 12,
    "cpus_per_trial": 1 << 12,
    "gpus_per_trial": 1 << 12,
    "concurrent": 1 << 12,
    "trials": 10**6,
    "milestones": 10**4,
    "draws": 10**6,
    "choosing_draws": 10**6,
    "centroids": 1 << 16,
    "epochs": 10**6,
    "score.draws": 10**6,
}
_LARGEST_LAYER = 1 << 14
# Of a picture with two pixels between its images.
GRID_PIXELS = 100_000_000


def check_numbers(settings: object, group: str = "") -> None:
    """Check that every number among the fields of ``settings`` is finite and not absurdly large.

    Raises:
        ConfigError: one is not.
    """
    for entry in dataclasses.fields(settings):  # type: ignore[arg-type]
        value, key = getattr(settings, entry.name), group + entry.name
        if isinstance(value, int | float) and not isinstance(value, bool):
            most = LARGEST.get(key, MOST)
            _require(math.isfinite(value), key, value, "take a finite number")
            _require(value <= most, key, value, f"take at most {most:,}")


def _check_member(extension: str | None, key: str) -> None:
    plain = extension is None or (extension == extension.lower().strip("./ ") != "" and "/" not in extension)
    _require(plain, key, extension, "take an extension in small letters, without its dot, such as png or image.jpg")


def is_whole(text: str) -> bool:
    """Whether a text is a whole number of at least 0 and at most 18 digits."""
    return text.isdecimal() and len(text) <= 18


def check_whole(name: str, value: object, least: int = 0) -> None:
    """Check that a value that a caller in Python gives is a whole number.

    Raises:
        ConfigError: it is none, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ConfigError(f"{name} is {value!r}: take a whole number")
    if not least <= value.__index__() < 2**63:
        raise ConfigError(f"{name} is {value!r}: take {least} or more, below 2**63")


def is_rooms(path: str) -> bool:
    """Whether a path of data names procedural rooms, as in ``rooms:20000``."""
    return path.startswith("rooms:")


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of at least 1 that a text lists, separated by commas; none where there is anything else."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(map(int, parts)) if all(is_whole(part) and int(part) for part in parts) else ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two networks."""

    name: str = "dcgan"
    """Family of networks: `dcgan`; `cdcgan`, the released class-conditional DCGAN, for images of any size; `gan`, the
    first GAN, of dense layers alone; `cgan`, the same given labels. A setting that a family does not have is refused
    unless it is left as it is."""
    image_size: int | None = None
    """Side of the square images in pixels: 16, 28, 32, 64, 128 or 256. Left out, the size of the data."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour images. Left out, what the data has."""
    classes: int | None = None
    """Number of classes that a conditional model is given. Left out, what the data has; 0 for other models."""
    z_dim: int = 100
    """Length of the noise vector z. Paper: 100; released ImageNet model: 256."""
    z_distribution: Literal["uniform", "normal"] = "uniform"
    """Prior of z: U(-1, 1) (paper and released code) or N(0, 1) (released SVHN model, PyTorch example)."""
    ngf: int = 128
    """Channels of the generator's last hidden layer; each earlier scale has twice as many."""
    ndf: int = 128
    """Channels of the discriminator's first layer; each later scale has twice as many."""
    kernel_size: Literal[3, 4, 5] = 5
    """Side of every convolution kernel: 5 (LSUN, faces, SVHN), 3 (ImageNet), 4 (PyTorch example)."""
    convs_per_scale: Literal[1, 2] = 1
    """Convolutions per halving or doubling of the image: 1, or 2 (stride 1 and stride 2, released ImageNet model)."""
    slope: float = 0.2
    """Slope of LeakyReLU for negative inputs, in every layer of the discriminator (section 4); gan, cgan: of both."""
    conv_bias: bool = False
    """Whether convolutions and dense layers have a bias. Released code and PyTorch example: none has."""
    batch_norm: Literal["paper", "all", "none"] = "paper"
    """Where batch norm stands: `paper` everywhere but G's output and D's first layer, `all`, or `none` (section 3)."""
    norm_gain_init: Literal["paper", "released"] = "paper"
    """Initial gains of batch norm: `paper` 1 (the text names weights alone), `released` N(1, 0.02)."""
    projection_norm: Literal["paper", "released"] = "paper"
    """Batch norm after G's projection of z: `paper` one per channel, `released` one per unit (channels * 4 * 4)."""
    norm_eps: float = 1e-5
    """Number added to the variance in batch norm. Released code: 1e-8; PyTorch: 1e-5."""
    norm_momentum: float = 0.1
    """Weight of a new batch in the running statistics of batch norm."""
    sample_statistics: Literal["running", "batch"] = "running"
    """Batch-norm statistics of G when sampling: `running` averages of training (paper), or those of each sampled
    `batch` (released code)."""
    head: Literal["flatten", "average_pool"] = "flatten"
    """How D reduces its last feature maps to one logit: flattened into a dense layer, or global average pooling."""
    generator_units: ListText = "256"
    """gan, cgan: list of the units of the generator's hidden layers (`1200,1200`: Goodfellow et al. 2014)."""
    discriminator_units: ListText = "128"
    """gan, cgan: list of the units of the discriminator's hidden layers (`240,240`: the same)."""
    maxout: int = 0
    """gan, cgan: linear pieces of each maxout unit of the discriminator (5: the same); 0 for LeakyReLU."""
    dropout: float = 0.0
    """gan, cgan: share of the units of each hidden layer of the discriminator that dropout silences in training."""

    FORMER_VALUES: ClassVar[FormerValues] = {"sample_statistics": {"paper": "running", "released": "batch"}}

    def __post_init__(self) -> None:
        check_numbers(self, "model.")
        _require(
            self.image_size is None or self.image_size in IMAGE_SIZES,
            "model.image_size",
            self.image_size,
            f"take one of {', '.join(map(str, IMAGE_SIZES))}",
        )
        for key in ("z_dim", "ngf", "ndf"):
            value = getattr(self, key)
            _require(value >= 1, f"model.{key}", value, "take a whole number of at least 1")
        _require(self.classes is None or self.classes >= 0, "model.classes", self.classes, "take 0 or more")
        _require(math.isfinite(self.slope), "model.slope", self.slope, "take a finite number")
        _require(0 < self.norm_eps < math.inf, "model.norm_eps", self.norm_eps, "take a positive number")
        _require(0 < self.norm_momentum <= 1, "model.norm_momentum", self.norm_momentum, "take one in (0, 1]")
        _require(
            self.convs_per_scale == 1 or self.kernel_size % 2 == 1,
            "model.kernel_size",
            self.kernel_size,
            "two convolutions per scale need an odd kernel, since only that keeps the side of its maps: take 3 or 5",
        )
        for key in ("generator_units", "discriminator_units"):
            text = getattr(self, key)
            numbers = _whole_numbers(text)
            _require(bool(numbers), f"model.{key}", text, "take whole numbers such as 256 or 1200,1200")
            _require(max(numbers) <= _LARGEST_LAYER, f"model.{key}", text, f"take numbers to {_LARGEST_LAYER:,}")
        # An earlier version took `paper` and `released`, which would pass for `running` here.
        known, statistics = ("running", "batch"), self.sample_statistics
        _require(statistics in known, "model.sample_statistics", statistics, f"take one of {', '.join(known)}")
        _require(self.maxout == 0 or self.maxout >= 2, "model.maxout", self.maxout, "take 0, or 2 or more")
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "take a share, in [0, 1)")

    @property
    def generator_layers(self) -> tuple[int, ...]:
        """The numbers in `generator_units`."""
        return _whole_numbers(self.generator_units)

    @property
    def discriminator_layers(self) -> tuple[int, ...]:
        """The numbers in `discriminator_units`."""
        return _whole_numbers(self.discriminator_units)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam, the same for both networks."""

    lr: float = 2e-4
    """Learning rate (paper: 2e-4; released SVHN model: 5e-4)."""
    beta1: float = 0.5
    """Decay of Adam's first moment (paper: 0.5, since 0.9 oscillates)."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Number added to the root of Adam's second moment."""
    l2: float = 0.0
    """L2 penalty on every parameter, added to its gradient before Adam. Paper: none; released code: 1e-5."""
    discriminator_loss: Literal["sum", "mean"] = "sum"
    """How D's losses on real and on generated images are joined before its gradient: their sum (the paper's algorithm)
    or their mean. The loss that is logged is the sum either way."""
    decay: float = 0.0
    """Share of the run, at its end, over which the learning rate falls linearly to 0 (released MNIST model: 0.5)."""

    def __post_init__(self) -> None:
        check_numbers(self, "optim.")
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "take a positive number")
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "take one in [0, 1)")
        _require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "take one in [0, 1)")
        _require(0 < self.eps < math.inf, "optim.eps", self.eps, "take a positive number")
        _require(0 <= self.l2 < math.inf, "optim.l2", self.l2, "take 0 or a positive number")
        _require(0 <= self.decay <= 1, "optim.decay", self.decay, "take a share of the run, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are read."""

    path: str = "rooms:20000"
    """Folder or URL (http, https, s3, any fsspec scheme) of shards, one .tar, or `rooms:N`, N procedural rooms."""
    workers: int = 0
    """Processes per rank that decode images; 0 decodes in a background thread."""
    prefetch: int = 4
    """Batches kept ready per rank (and per decoding process)."""
    image_member: str | None = None
    """Which members of tars that someone else made are the images, by their extension, such as `png` or `image.jpg`.
    Left out, those of an image's extension: of KEY.png and KEY.mask.png the plain one."""
    on_damage: Literal["skip", "fail"] = "skip"
    """What a damaged record does: leave its place in the batch empty and count it, or end the run."""
    max_damage: float = 0.01
    """Share of an epoch's images that may be damaged where `on_damage` is `skip`: more of them end the run."""
    cache: str | None = None
    """Folder for generated and downloaded shards. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""
    cache_gib: float | None = None
    """Most GiB of downloaded shards that the cache keeps; those unused for longest go first. Left out, as many as
    leave a tenth of its disk free."""

    def __post_init__(self) -> None:
        check_numbers(self, "data.")
        _require(bool(self.path), "data.path", self.path, "name a folder or URL of shards, or rooms:N")
        _require(self.workers >= 0, "data.workers", self.workers, "take 0 or more")
        _check_member(self.image_member, "data.image_member")
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "take 1 or more")
        _require(0 <= self.max_damage <= 1, "data.max_damage", self.max_damage, "take a share, in [0, 1]")
        limit = self.cache_gib
        _require(limit is None or 0 < limit < math.inf, "data.cache_gib", limit, "take a positive number")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop."""

    epochs: float | None = None
    """Length of the run in passes over the data; give this or steps. With neither, 5 (as the paper's Fig. 3)."""
    steps: int | None = None
    """Length of the run in steps; a step ends with one update of the generator."""
    batch_size: int = 128
    """Images in one mini-batch over all workers together (paper: 128)."""
    updates: Literal["paper", "released"] = "paper"
    """Per mini-batch, `paper` updates both networks; `released` one of them in turn, so a step takes two: G's, D's."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Arithmetic: float32, bfloat16 autocast, or float64 (to compare implementations)."""
    channels_last: bool = True
    """Whether images and weights lie channels last in memory: the same results, faster convolutions."""
    compile: bool = False
    """Whether torch.compile fuses the networks: minutes at the start, faster steps on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes the GPU when there is one."""
    average: float = 0.0
    """Decay for each image of an exponential moving average of the generator's weights, which samples and scores then
    take: 0.9998 reaches back over about 5,000 images; 0 for none. Early on it reaches back over a ninth of the images
    so far at most."""
    sync_batch_norm: bool = False
    """Whether batch norm takes its statistics over all workers' images, or over each worker's own."""
    check_replicas: bool = False
    """Whether to check at every log line that all workers hold identical parameters."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    sample_every: int = 500
    """Steps between two grids of samples of the same fixed z."""
    sample_count: int = 64
    """Images in a grid of samples."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    checkpoint_minutes: float = 0.0
    """Minutes after which a checkpoint is made even between two of those; 0 for never."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept."""
    keep_every: int = 0
    """Every how many of the checkpoints made by steps one is kept forever; 0 for none."""
    on_damaged_run: Literal["refuse", "set-aside"] = "refuse"
    """What a run does whose newest checkpoint or config.yaml is damaged: refuse to go on, or move what is in the way
    (the damaged files, and a copy of what follows the newest whole checkpoint) to `set_aside/` and go on from there."""

    def __post_init__(self) -> None:
        check_numbers(self, "training.")
        if self.epochs is not None and self.steps is not None:
            both = f"training.epochs is {self.epochs} and training.steps is {self.steps}"
            raise ConfigError(f"{both}: give one of them, the other as null")
        _require(
            self.epochs is None or 0 < self.epochs < math.inf,
            "training.epochs",
            self.epochs,
            "take a positive number",
        )
        _require(self.steps is None or self.steps > 0, "training.steps", self.steps, "take 1 or more")
        _require(0 <= self.average < 1, "training.average", self.average, "take a decay in [0, 1), such as 0.9998")
        for key in ("batch_size", "log_every", "sample_every", "sample_count", "checkpoint_every", "keep_last"):
            value = getattr(self, key)
            _require(value >= 1, f"training.{key}", value, "take a whole number of at least 1")
        _require(self.checkpoint_minutes >= 0, "training.checkpoint_minutes", self.checkpoint_minutes, "take 0 or more")
        _require(self.keep_every >= 0, "training.keep_every", self.keep_every, "take 0 or more")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The processes that train together, and where their results go."""

    workers: int = 1
    """Processes of a Ray cluster that train a run together, a GPU each where there are GPUs; 1 trains without Ray, in
    this process."""
    max_failures: int = 0
    """How often the group of workers is restarted from the newest checkpoint after one of them has died."""
    storage: str | None = None
    """Folder or URL (s3, any fsspec scheme) shared by all hosts; the run directory is then STORAGE/NAME."""
    wait: bool = False
    """Whether to wait when the cluster has fewer free CPUs or GPUs than workers, or to end with an error."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray sets aside for each worker."""

    def __post_init__(self) -> None:
        check_numbers(self, "cluster.")
        _require(self.workers >= 1, "cluster.workers", self.workers, "take 1 or more")
        _require(self.max_failures >= -1, "cluster.max_failures", self.max_failures, "take 0 or more, -1 for no limit")
        _require(self.cpus_per_worker > 0, "cluster.cpus_per_worker", self.cpus_per_worker, "take a positive number")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a training run."""

    seed: int = 0
    """Seed of everything that is drawn: weights, order of images, z, labels."""
    name: str = "dcgan"
    """Name of the run: its directory's name where run_dir is not given."""
    run_dir: str | None = None
    """Run directory; run again with the same one, training resumes. Left out: runs/NAME."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        _require(0 <= self.seed < 2**32, "seed", self.seed, "take a whole number in [0, 2**32)")
        plain = bool(self.name) and not set(self.name) & set("/\\\0") and self.name not in (".", "..")
        _require(plain, "name", self.name, "take a plain file name")
        size, samples = self.model.image_size, self.training.sample_count
        most = GRID_PIXELS // ((size or 0) + 2) ** 2
        _require(samples <= most, "training.sample_count", samples, f"a grid of {size} pixels has at most {most:,}")
        batch, workers = self.training.batch_size, self.cluster.workers
        _require(
            batch % workers == 0,
            "training.batch_size",
            batch,
            f"it is shared out evenly, so take a multiple of cluster.workers ({workers})",
        )


@dataclass(frozen=True, kw_only=True)
class DeduplicationConfig:
    """How near-duplicates are found (section 4.1): by the binarised codes of a de-noising autoencoder."""

    radius: int = 0
    """Bits in which the codes of two duplicates may differ. Paper: 0, exact collisions."""
    code_size: int = 128
    """Units of the autoencoder's code (paper: 128)."""
    units: int | None = None
    """Units whose bits are compared, the steadiest first: fewer find more duplicates, and more images that are none.
    Left out, all for a radius above 0; for exact collisions, so many that few images collide by chance."""
    noise: float = 0.2
    """Standard deviation of the Gaussian noise on the autoencoder's input, in units of the images' own range [-1, 1]
    (the paper states none)."""
    jitter: float = 1.0
    """Further noise on the input: at 1, shifts of up to 0.7 pixels of the 32x32 image, crops of up to 3%, brightness
    changed by up to 7%; 0 for none."""
    stability: float = 3.0
    """Weight of the loss that holds the code still under such changes; 0 for the plain autoencoder."""
    dropout: float = 0.5
    """Share of code units that are dropped in training (the paper states none)."""
    count: int = 200_000
    """Images that the autoencoder is trained on, drawn from the set; all where it has fewer."""
    steps: int = 4000
    """Mini-batches that the autoencoder is trained on."""
    batch_size: int = 128
    """Images in one of them."""
    lr: float = 1e-3
    """Learning rate of Adam."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "count"}

    def __post_init__(self) -> None:
        check_numbers(self, "deduplication.")
        radius, code = self.radius, self.code_size
        _require(8 <= code <= 256 and code % 8 == 0, "deduplication.code_size", code, "take a multiple of 8 to 256")
        _require(0 <= radius < code, "deduplication.radius", radius, "take 0 or more, below code_size")
        few = self.units is None or 1 <= self.units <= code
        _require(few, "deduplication.units", self.units, "take 1 or more, at most code_size")
        _require(0 <= self.noise < math.inf, "deduplication.noise", self.noise, "take 0 or a positive number")
        _require(0 <= self.dropout < 1, "deduplication.dropout", self.dropout, "take one in [0, 1)")
        for key in ("jitter", "stability"):
            value = getattr(self, key)
            _require(0 <= value < math.inf, f"deduplication.{key}", value, "take 0 or a positive number")
        for key in ("count", "steps", "batch_size"):
            value = getattr(self, key)
            _require(value >= 1, f"deduplication.{key}", value, "take 1 or more")
        _require(0 < self.lr < math.inf, "deduplication.lr", self.lr, "take a positive number")


@dataclass(frozen=True, kw_only=True)
class TaskClusterConfig:
    """Where independent tasks are done."""

    workers: int = 1
    """Processes of a Ray cluster that share the work, a GPU each where there is use for them; 1 works without Ray, on
    this machine alone."""

    FORMER_VALUES: ClassVar[FormerValues] = {"workers": {"0": 1}}

    def __post_init__(self) -> None:
        check_numbers(self, "cluster.")
        _require(self.workers >= 1, "cluster.workers", self.workers, "take 1 or more")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `prepare`: how a source of images becomes shards."""

    source: (
        Literal["rooms", "lsun", "folder", "imagenet", "cifar10", "svhn", "mnist", "fashion_mnist", "webdataset"] | None
    ) = None
    """What the input is: `rooms` (procedural), `lsun` (a category's LMDB), `folder` (directory, zip, tar, compressed
    tar; sub-folder names become labels), `imagenet` (a folder of class folders, 32x32), `cifar10` (its python batches,
    or a class-folder tree), `svhn` (its cropped digits, .mat), `mnist`, `fashion_mnist` (idx files), `webdataset`
    (tars)."""
    input: str | None = None
    """Path of the source, for `folder` and `webdataset` also a URL (http, https, s3, any fsspec scheme); `rooms` needs
    none."""
    download: bool = False
    """Whether to get the source's files from their official address, in place of `input`: cifar10, svhn, mnist,
    fashion_mnist. They are kept in the cache."""
    output: str | None = None
    """Folder, or URL of object storage (s3, any fsspec scheme), for the shards and their manifest.json."""
    split: Literal["train", "test", "extra"] = "train"
    """Which part of CIFAR-10, SVHN (which alone has `extra`), MNIST or Fashion-MNIST to take."""
    image_member: str | None = None
    """Which members of `webdataset` tars are the images, by their extension; see data.image_member of `train`."""
    only: tuple[str, ...] = ()
    """List of folders or classes, to take no others: `bedroom`, `cat,dog`. Left out, all."""
    labels: Literal["none", "first", "last"] = "last"
    """Which folder of an image names its class: the first or the last one that tells images apart, or none."""
    image_size: int | None = None
    """Side of the square images. Left out, the source's own size (rooms 64, CIFAR-10 32, MNIST 28), else 64."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image becomes square: `crop` makes its shorter side as long as the square and takes the centre, `pad`
    makes its longer side so and fills up with black, `stretch` makes both so. Shrinking averages over areas."""
    white_value: float | None = None
    """Value that becomes white in images of more than 8 bits, such as 4095 for 12-bit pictures in 16-bit files; left
    out, 65535. Of floating-point images it must be given."""
    grey: bool = False
    """Whether to make one-channel images of a colour source."""
    count: int | None = None
    """How many images to take, the first ones of the source; left out, all of them (rooms: 20,000)."""
    encoding: Literal["jpg", "png", "raw"] = "jpg"
    """How an image is stored: JPEG of quality 95, PNG, or raw uint8 values (rows, columns, channels)."""
    shard_size: int = 2000
    """Images in a shard."""
    name: str | None = None
    """First part of the shards' file names; left out, the source's name."""
    seed: int = 0
    """Seed of the images' distribution over the shards, and of the rooms."""
    workers: int | None = None
    """Processes that decode and encode; left out, one for each core."""
    max_bad: float = 0.01
    """Share of inputs that may be undecodable; more of them are an error."""
    verify: str | None = None
    """Folder or URL of shards to check against its manifest, in place of making any."""
    dedup: bool = False
    """Whether to find the near-duplicates among the images, and keep one of each group; without `source`, among those
    of the finished shards at `output`."""
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        _require(
            self.image_size is None or self.image_size in IMAGE_SIZES,
            "image_size",
            self.image_size,
            f"take one of {', '.join(map(str, IMAGE_SIZES))}",
        )
        _require(self.count is None or self.count >= 1, "count", self.count, "take 1 or more")
        _require(
            self.white_value is None or (self.white_value > 0 and math.isfinite(self.white_value)),
            "white_value",
            self.white_value,
            "take a number above 0, such as 4095",
        )
        _check_member(self.image_member, "image_member")
        _require(self.shard_size >= 1, "shard_size", self.shard_size, "take 1 or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "take a whole number in [0, 2**32)")
        _require(self.workers is None or self.workers >= 1, "workers", self.workers, "take 1 or more")
        _require(0 <= self.max_bad <= 1, "max_bad", self.max_bad, "take a share, in [0, 1]")
        plain = self.name is None or (bool(self.name) and not set(self.name) & set("/\\:\0{}") and self.name[0] != ".")
        _require(plain, "name", self.name, "take a plain file name")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `evaluate`: representation scores of a run (section 5)."""

    run: str | None = None
    """Folder or URL of the run directory."""
    task: Literal["cifar10", "svhn", "folder", "rooms", "mnist", "fidelity", "memorisation", "one-nn"] = "rooms"
    """What to score on: `cifar10`, `svhn`, `mnist`, `folder` (any labelled images), or `rooms` (attributes of
    procedural rooms). svhn takes 100 labels a class unless told otherwise, the others all labels. `fidelity` and
    `memorisation` score the generator of any run, without labels: how its samples compare with the images of `data`,
    and whether they copy them. `one-nn` scores that of a conditional run: the error of a 1-nearest-neighbour
    classifier that is trained on its samples (appendix, Table 3)."""
    data: str | None = None
    """Labelled images: shards (folder, URL, tars, rooms:N), or a folder or archive as `prepare` reads. Left out for
    rooms, 2,000 rooms that no run is trained on; for fidelity, memorisation and one-nn, what the run was trained on."""
    test_data: str | None = None
    """A separate test set; the same path as `data` for the test part of CIFAR-10's, SVHN's or MNIST's own files. Left
    out, the test images are split off `data`. For fidelity, real images to compare with `data` as samples are (left
    out, others of `data`); for memorisation and one-nn, images like those trained on that were not among them (left
    out for rooms, other rooms; for one-nn on a folder of MNIST's files, their test part)."""
    count: int | None = None
    """Images that are scored. For tasks with labels, at most so many images of `data`, and of `test_data`, drawn evenly
    by the seed: a cheaper and less certain score (left out, all). For fidelity, generated images, and as many real ones
    (left out, 5,000; the Fréchet distance is left out below that); for memorisation, generated images (left out,
    2,000). For one-nn, generated images that the classifier is trained on (left out, 50,000; paper: 50,000 and
    10,000,000); the error at 1,000, 10,000 and so on up to there comes with it."""
    data_count: int | None = None
    """one-nn, where `count` is of generated images: most real images of `data`, and of `test_data`, drawn evenly by the
    seed. Left out, all."""
    step: str = "latest"
    """Which checkpoints to score: `latest`, `all`, or a step."""
    weights: Literal["auto", "average", "raw"] = "auto"
    """Weights of the generator for fidelity, memorisation and one-nn: their `average` over training, or `raw`;
    `auto` takes the average where the run has one (`training.average`)."""
    labels_per_class: int | None = None
    """Labels of each class that classifiers are fitted to, drawn anew many times; 0 for all labels. Left out, 100
    for svhn and 0 for the others."""
    draws: int | None = None
    """How often labels are drawn for the score. Left out, 100 for svhn and 10 for the others."""
    choosing_draws: int = 10
    """How often labels are drawn to choose C on validation images; other draws than those of the score."""
    validation: int | None = None
    """Images to choose C by. Left out, 10,000 for svhn where that leaves half of them, else a tenth of `data`."""
    test: int | None = None
    """Images split off `data` to score by, where there is no `test_data`. Left out, a fifth."""
    cs: tuple[float, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    """List of the values of C to choose among (released code: these seven)."""
    pooling: Literal["paper", "released"] = "paper"
    """Max-pooling of each conv layer: `paper` to a 4x4 grid, `released` with windows of 4, 2 and 1 pixels, which is
    for discriminators of three layers."""
    statistics: Literal["running", "measured"] = "running"
    """Batch-norm statistics of the discriminator: `running` averages of training, or `measured` over the unlabelled
    training set in batches of 128 and then frozen, as in the released code."""
    unlabelled: str | None = None
    """Where to measure those: shards or rooms:N. Left out, the data that the run was trained on."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the features."""
    store: Literal["float16", "float32"] = "float16"
    """Type in which features are kept on disk."""
    baselines: tuple[str, ...] = ()
    """List of controls on the same splits: `random` (the discriminator with random weights), `pixels`, `knn`,
    `kmeans`, `cnn`; or `all`. Left out, or `none`, there are none."""
    extractor: Literal["random-conv-v1", "inception"] = "random-conv-v1"
    """Space in which fidelity compares images: `random-conv-v1`, convolutions with fixed random weights, or
    `inception`, for FID, KID and the Inception score (needs the extra `inception` and `inception_weights`)."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth, which the project torch-fidelity publishes."""
    centroids: int = 1600
    """Centroids of the k-means control (Coates and Ng: 1,600 and 4,800)."""
    patches: int = 400_000
    """Patches that k-means is fitted to."""
    trials: int = 8
    """Trials of the random search of the supervised CNN control (paper: 64)."""
    epochs: int = 20
    """Passes over the labels in each of them."""
    seed: int = 0
    """Seed of splits, draws of labels and random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes the GPU when there is one."""
    cache: str | None = None
    """Folder for features and shards. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""
    cache_gib: float = 20.0
    """Most GiB of features that the cache keeps; those unused for longest go first."""
    keep_features: bool = True
    """Whether features stay in the cache for the next command."""
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)

    FORMER_NAMES: ClassVar[FormerNames] = {
        "samples": "count",
        "images": lambda given: "data_count" if given.get("task") == "one-nn" else "count",
    }

    def __post_init__(self) -> None:
        check_numbers(self)
        is_step = self.step in ("latest", "all") or is_whole(self.step)
        _require(is_step, "step", self.step, "take a step, latest or all")
        for key in (
            "count",
            "data_count",
            "draws",
            "validation",
            "test",
            "choosing_draws",
            "centroids",
            "patches",
            "trials",
            "epochs",
        ):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, value, "take 1 or more")
        labels = self.labels_per_class
        _require(labels is None or labels >= 0, "labels_per_class", labels, "take 0 (for all) or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "take a whole number in [0, 2**32)")
        _require(0 < self.cache_gib < math.inf, "cache_gib", self.cache_gib, "take a positive number")
        only_one_nn = self.data_count is None or self.task == "one-nn"
        _require(only_one_nn, "data_count", self.data_count, f"it is for the task one-nn; {self.task} has count")
        usable = bool(self.cs) and all(0 < value < math.inf for value in self.cs)
        _require(usable, "cs", ",".join(f"{value:g}" for value in self.cs), "take positive numbers, such as 1e-3,1e-2")
        unknown = sorted(set(self.chosen_baselines) - set(BASELINES))
        way_out = f"take some of {', '.join(BASELINES)}, or all, or none"
        _require(not unknown, "baselines", ",".join(self.baselines), way_out)

    @property
    def c_values(self) -> tuple[float, ...]:
        """The values of `cs`, ascending."""
        return tuple(sorted(set(self.cs)))

    @property
    def chosen_baselines(self) -> tuple[str, ...]:
        """The controls that `baselines` asks for."""
        if self.baselines == ("all",):
            return BASELINES
        return () if self.baselines == ("none",) else self.baselines


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of `sample`: images from a trained generator."""

    run: str | None = None
    """Folder or URL of the run directory."""
    output: str | None = None
    """Where to: FILE.png for a grid (of a conditional run with one class a row), FILE.npz for arrays, DIR/NAME-%06d.tar
    for shards in DIR, any other path for a folder of PNGs (of a conditional run in a sub-folder for each class)."""
    format: Literal["auto", "grid", "folder", "npz", "shards"] = "auto"
    """What the output is; `auto` goes by its name. With `shards`, a folder or URL is that of the shards."""
    count: int | None = None
    """How many samples. Left out, 64, or as many as the file of z has."""
    label: str | None = None
    """Class of all samples, by name or number, of a conditional run. Left out, the classes in turn."""
    seed: int = 0
    """Seed of z: sample i is a function of the seed and i, however many are made and by how many processes."""
    z: str | None = None
    """File of z to use in place of drawn ones: .npy (n, z_dim), or .npz with `z` and perhaps `labels`."""
    step: str = "latest"
    """Which checkpoint to take: `latest`, or a step."""
    truncation: float | None = None
    """Bound of the values of z, for less variety and more typical samples: normal z is drawn without its tails beyond
    this, uniform z from [-T, T]. Each value moves to the same quantile, so that sample i stays recognisable."""
    statistics: Literal["auto", "running", "batch"] = "auto"
    """Batch norm: `running` averages of training, or those of each `batch` of 64 samples; `auto` as the run has it in
    model.sample_statistics."""
    weights: Literal["auto", "average", "raw"] = "auto"
    """Weights of the generator: their `average` over training, or `raw`; `auto` takes the average where the run has one
    (`training.average`)."""
    encoding: Literal["png", "jpg", "raw"] = "png"
    """How shards store images: PNG, JPEG of quality 95 (which changes them a little), or raw uint8 values."""
    overwrite: bool = False
    """Whether to replace an output that exists; a folder only where it holds nothing but samples or shards."""
    workers: int | None = None
    """Processes that compute, with one core each. Left out, one for each core where there is enough to do; on a GPU,
    one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes the GPU when there is one."""
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        is_step = self.step == "latest" or is_whole(self.step)
        _require(is_step, "step", self.step, "take a step, or latest")
        _require(self.count is None or self.count >= 1, "count", self.count, "take 1 or more")
        _require(self.workers is None or self.workers >= 1, "workers", self.workers, "take 1 or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "take a whole number in [0, 2**32)")
        _require(self.truncation is None or self.truncation > 0, "truncation", self.truncation, "take one above 0")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `export`: a trained generator as a file that runs without this package."""

    run: str | None = None
    """Folder or URL of the run directory."""
    output: str | None = None
    """FILE.onnx, which any ONNX runtime runs (needs the extra `onnx`), or FILE.pt2, a program of torch.export."""
    step: str = "latest"
    """Which checkpoint to take: `latest`, or a step."""
    statistics: Literal["auto", "running", "batch"] = "auto"
    """Batch norm: `running` averages of training, or those of each `batch` that the program is given; `auto` as the run
    has it in model.sample_statistics."""
    weights: Literal["auto", "average", "raw"] = "auto"
    """Weights of the generator: their `average` over training, or `raw`; `auto` takes the average where the run has one
    (`training.average`)."""
    overwrite: bool = False
    """Whether to replace an output that exists."""

    def __post_init__(self) -> None:
        is_step = self.step == "latest" or is_whole(self.step)
        _require(is_step, "step", self.step, "take a step, or latest")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How the trials of a sweep are scored: cheaply at milestones, in full for the best of them at the end."""

    task: Literal["none", "cifar10", "svhn", "folder", "rooms", "mnist"] = "rooms"
    """Labelled data for the score `representation`, as in `evaluate`; `none` leaves that score out."""
    data: str | None = None
    """Where they are, as in `evaluate`. Left out for rooms, rooms that no run is trained on."""
    data_count: int = 2000
    """Images of it that are used at a milestone."""
    labels_per_class: int = 50
    """Labels of each class that the classifier is fitted to at a milestone."""
    draws: int = 3
    """How often they are drawn."""
    count: int = 500
    """Generated images, and as many real ones, for the scores of fidelity and diversity at a milestone; 0 for none."""
    finalists: int = 3
    """How many of the best trials are scored at the end by the whole protocol of `evaluate`; 0 for none."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "data_count", "samples": "count"}

    def __post_init__(self) -> None:
        check_numbers(self, "score.")
        for key in ("data_count", "labels_per_class", "draws"):
            _require(getattr(self, key) >= 1, f"score.{key}", getattr(self, key), "take 1 or more")
        _require(self.count == 0 or self.count >= 100, "score.count", self.count, "take 0, or 100 or more")
        _require(self.finalists >= 0, "score.finalists", self.finalists, "take 0 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """Settings of `sweep`: those of every trial's run, and which of them are searched and how."""

    name: str = "sweep"
    """Name of the sweep: its directory's name where sweep_dir is not given."""
    sweep_dir: str | None = None
    """Folder or URL of the sweep; run again with the same one, it resumes. Left out: STORAGE/NAME where cluster.storage
    is given, else sweeps/NAME."""
    space: dict[str, Any] = field(default_factory=dict)
    """What is searched, by dotted name: {uniform: [LOW, HIGH]}, {loguniform: [LOW, HIGH]}, {randint: [LOW, HIGH]} (both
    included), {choice: [A, B]} or {grid: [A, B]}; with `when: {OTHER: VALUE or list}` beside it, only where that other
    setting has such a value. On the command line: --space '{optim.lr: {loguniform: [1e-5, 1e-2]}}'."""
    trials: int = 24
    """Trials in all; a grid has as many as it has points (times this many, where other settings are drawn)."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How values are chosen: at random, every combination, or by Optuna's tree-structured Parzen estimator from what
    earlier trials scored (over several scores where `objective` names more than one without weights)."""
    schedule: Literal["fifo", "asha", "median", "pbt"] = "asha"
    """Which trials go on: all to their end; asynchronous successive halving; those not below the median of the others;
    or population based training, where the worst go on from copies of the best with changed settings."""
    milestones: int = 4
    """At how many evenly spaced steps of its run a trial is sampled, saved, scored, and may be stopped early."""
    reduction: float = 2.0
    """asha: of the trials that reach a milestone whose number is a power of this (1, 2, 4 and so on), one in this many
    goes on."""
    objective: ListText = "representation"
    """What is maximised: a list of scores, each with an optional weight (`representation:1,coverage:0.5`).
    With weights their weighted sum, without them the first one, the others for the Pareto front (and for optuna).
    Scores: representation, stability, precision, recall, density, coverage, distance_ratio, and frechet_distance,
    which is minimised."""
    cpus_per_trial: float = 1.0
    """CPUs set aside for a trial (for each of its workers where there are several)."""
    gpus_per_trial: float = 0.0
    """GPUs, or a fraction of one, set aside for a trial (for each of its workers where there are several)."""
    concurrent: int | None = None
    """Most trials at the same time. Left out, as many as the cluster has room for."""
    trial_failures: int = 1
    """How often a trial that crashed goes on from its newest checkpoint before it counts as failed."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    verbose: bool = False
    """Whether to show what Ray and the trials print."""

    FORMER_NAMES: ClassVar[FormerNames] = {"workers_per_trial": "cluster.workers"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("trials", "milestones"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "take a whole number of at least 1")
        _require(self.concurrent is None or self.concurrent >= 1, "concurrent", self.concurrent, "take 1 or more")
        _require(self.trial_failures >= 0, "trial_failures", self.trial_failures, "take 0 or more")
        _require(1 < self.reduction < math.inf, "reduction", self.reduction, "take a number above 1")
        _require(self.cpus_per_trial > 0, "cpus_per_trial", self.cpus_per_trial, "take a positive number")
        _require(0 <= self.gpus_per_trial < math.inf, "gpus_per_trial", self.gpus_per_trial, "take 0 or more")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `report`."""

    output: str = "report.html"
    """The page; trials.csv, trials.parquet, metrics.parquet and, for many trials, report_files/ go beside it."""
    watch: float | None = None
    """Look again every so many seconds (`--watch` alone: 10) until all that was found has ended."""
    cache: str | None = None
    """Folder in which what was read is kept for next time. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""

    def __post_init__(self) -> None:
        check_numbers(self)
        _require(bool(self.output), "output", self.output, "name a file, such as report.html")
        _require(self.watch is None or 1 <= self.watch < math.inf, "watch", self.watch, "take 1 second or more")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `compare`."""

    sort: str | None = None
    """Column of trials.csv to sort by, such as final.loss_d; with a - before it, falling. Left out, the objective, best
    first, or a score."""
    rows: int = 50
    """Most trials that are shown; 0 for all."""
    cache: str | None = None
    """Folder in which what was read is kept for next time. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""

    def __post_init__(self) -> None:
        check_numbers(self)
        _require(self.rows >= 0, "rows", self.rows, "take 0 (for all) or more")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """Settings of `doctor`: those of the run that is to work, and what is shown."""

    storage: str | None = None
    """Folder or URL for results that is tried. Left out, cluster.storage, else run_dir."""
    json: bool = False
    """Whether to print the findings as JSON."""


def declared_types(settings_class: type, prefix: str = "") -> dict[str, str]:
    """Return the declared type of every setting by its dotted name, as written in the source."""
    types: dict[str, str] = {}
    for entry in dataclasses.fields(settings_class):
        if isinstance(entry.default_factory, type) and dataclasses.is_dataclass(entry.default_factory):
            types.update(declared_types(entry.default_factory, f"{prefix}{entry.name}."))
        else:
            types[prefix + entry.name] = str(entry.type)
    return types


def describe_type(declared: str) -> str:
    """Say in words what a declared type admits."""
    names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "None": "null"}
    names["dict[str, Any]"] = "a mapping such as {optim.lr: {loguniform: [1e-5, 1e-2]}}"
    names |= {"ListText": "a list such as a,b or [a, b]", "tuple[str, ...]": "a list such as a,b or [a, b]"}
    names["tuple[int, ...]"] = names["tuple[float, ...]"] = "a list of numbers such as 1,2 or [1, 2]"
    if declared.startswith("Literal["):
        head, _, tail = declared[len("Literal[") :].partition("]")
        return "one of " + head.replace('"', "").replace("'", "") + tail.replace(" | None", " or null")
    return " or ".join(names.get(part, part) for part in declared.split(" | "))


@cache
def _former(settings_class: type, table: str, prefix: str = "") -> dict[str, Any]:
    """Return what settings declare in FORMER_NAMES or FORMER_VALUES, by dotted name."""
    own = getattr(settings_class, table, {}).items()
    found = {prefix + name: prefix + now if isinstance(now, str) else now for name, now in own}
    for entry in dataclasses.fields(settings_class):
        if isinstance(entry.default_factory, type) and dataclasses.is_dataclass(entry.default_factory):
            found |= _former(entry.default_factory, table, f"{prefix}{entry.name}.")
    return found


def former_names(settings_class: type, given: Mapping[str, Any]) -> dict[str, str]:
    """Return what settings were called in earlier versions and are called now, where all of `given` are given."""
    names = _former(settings_class, "FORMER_NAMES")
    return {old: new if isinstance(new, str) else new(given) for old, new in names.items()}


def former_value(settings_class: type, key: str, value: Any) -> Any:
    """Return the value that stands for one of an earlier version, or the value itself where it is none."""
    return _former(settings_class, "FORMER_VALUES").get(key, {}).get(str(value), value)


def modernised(settings_class: type, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name with today's names and values, as recorded by this version or an earlier one."""
    settings = dict(recorded)
    for old, new in former_names(settings_class, recorded).items():
        if old in settings:
            settings[new] = settings.pop(old)
    for key in _former(settings_class, "FORMER_VALUES").keys() & settings.keys():
        settings[key] = former_value(settings_class, key, settings[key])
    return settings


def unknown_setting(key: str, value: object, known: Sequence[str]) -> ConfigError:
    """Return the error for a setting that does not exist; it names the nearest that does."""
    # The last part decides in case of a forgotten or mistaken group: `lr` is nearest to `optim.lr`.
    same_last = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, same_last or known, n=1, cutoff=0 if same_last else 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists all settings"
    return ConfigError(f"unknown setting {key} (value {value!r}){hint}")


def as_list(value: object) -> list[Any]:
    """Return the items of a list as people write it: ``[a, b]``, its text, or ``"a,b"``; a single value is one item."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.split(",")]
    return [part[1:-1] if part[:1] == part[-1:] and part[:1] in ("'", '"') else part for part in parts if text.strip()]


def is_list(declared: str) -> bool:
    """Whether a declared type is one of lists."""
    return declared == "ListText" or declared.startswith("tuple[")


def _coerce_list(key: str, value: object, declared: str) -> Any:
    items = as_list(value)
    if declared == "ListText":
        return ",".join(map(str, items))
    kind = declared[len("tuple[") : -len(", ...]")]
    if kind == "str":  # the name of a class, written without quotes, can be a number to YAML
        items = [str(item) if type(item) in (int, float) else item for item in items]
    try:
        return tuple(coerce(key, item, kind) for item in items)
    except ConfigError as error:
        raise ConfigError(f"{key} is {value!r}: expected {describe_type(declared)}") from error


def coerce(key: str, value: object, declared: str) -> Any:
    """Return a value as its setting's declared type has it: ``"2e-4"``, as YAML reads that, becomes a float.

    Raises:
        ConfigError: the type does not admit it.
    """
    if is_list(declared) and value is not None and not isinstance(value, dict):
        return _coerce_list(key, value, declared)
    for part in declared.split(" | "):
        if part == "None" and value is None:
            return None
        if part.startswith("Literal["):
            for name in ast.literal_eval(f"({part[len('Literal[') : -1]},)"):
                if str(name) == str(value):
                    return name
        if part == "str" and isinstance(value, str):
            return value
        if part == "bool" and str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if part in ("int", "float") and isinstance(value, int | float | str) and not isinstance(value, bool):
            kind = int if part == "int" else float
            try:
                return kind(str(value))
            except ValueError:
                continue
    raise ConfigError(f"{key} is {value!r}: expected {describe_type(declared)}")


def flatten(settings: object, prefix: str = "") -> dict[str, Any]:
    """Return the settings as ``{"optim.lr": 0.0002, ...}``, in the order of declaration."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{entry.name}."))
        else:
            flat[prefix + entry.name] = value
    return flat


def override(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Return ``settings`` with values replaced by dotted key, checked again.

    Raises:
        ConfigError: a key does not exist or a value is out of range.
    """
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    names = {entry.name for entry in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        if name not in names:
            raise ConfigError(f"unknown setting {key!r}")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = value
    here |= {name: override(getattr(settings, name), inner) for name, inner in below.items()}
    return dataclasses.replace(settings, **here)  # type: ignore[type-var]
