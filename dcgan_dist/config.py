"""The settings of a training run: one tree of frozen dataclasses with defaults, meaning and bounds.

Precedence is defaults < YAML file < command line (``--optim.lr 1e-4``). The docstring under each field is what
``--help`` prints; `dcgan_dist.settings` checks the values. Where the paper (Radford, Metz, Chintala 2015) and its
released code disagree, the setting takes the values ``paper`` and ``released``, or the field says which value is whose.
The settings of the other commands stand in the packages that they are for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, SupportsIndex

from msgspec import Meta

from dcgan_dist.errors import ConfigError
from dcgan_dist.settings import FormerValues, Group, flatten, like, override, require

IMAGE_SIZES = (16, 28, 32, 64, 128, 256)
# Of a picture with two pixels between its images.
GRID_PIXELS = 100_000_000
# The largest value of numbers without a bound of their own.
MOST = 10**9

# Of two settings that exclude each other, the one given later (on the command line over YAML) replaces the other.
ALTERNATIVES = (("training.epochs", "training.steps"),)

Weights = Literal["auto", "average", "raw"]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
PositiveInt = Annotated[int, Meta(ge=1, le=MOST)]
NonNegativeInt = Annotated[int, Meta(ge=0, le=MOST)]
PositiveFloat = Annotated[float, Meta(gt=0, le=MOST)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=MOST)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
# Bounds of how much memory, how many processes or how many files there are. Widths of networks count by their squares:
# at 1,024, G and D with their gradients and Adam's moments take about 25 GB.
Width = Annotated[int, Meta(ge=1, le=1 << 10)]
Units = Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 14)], ...], Meta(min_length=1)]
BatchSize = Annotated[int, Meta(ge=1, le=1 << 17)]
Workers = Annotated[int, Meta(ge=1, le=1 << 12)]
SIZES = f"one of {', '.join(map(str, IMAGE_SIZES))}"
ImageSize = Annotated[int, Meta(ge=16, le=256, extra={"expected": SIZES}, extra_json_schema={"enum": [*IMAGE_SIZES]})]
FileName = Annotated[str, like(r"(?!\.{1,2}$)[^/\\\x00]+", "a plain file name")]
Decay = Annotated[float, Meta(ge=0, lt=1, extra={"expected": "a decay in [0, 1), such as 0.9998"})]
DataPath = Annotated[str, like(r"[\s\S]+", "a folder or URL of shards, or rooms:N")]
Step = Annotated[str, like(r"[0-9]{1,18}|latest", "a step, or latest")]
_MEMBER = "an extension in small letters, without its dot, such as png or image.jpg"
Member = Annotated[str, like(r"(?![./ ])[^/A-Z]+(?<![./ ])", _MEMBER)]


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


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group, prefix="model."):
    """The two networks."""

    name: str = "dcgan"
    """Family of networks: `dcgan`; `cdcgan`, the released class-conditional DCGAN, for images of any size; `gan`, the
    first GAN, of dense layers alone; `cgan`, the same given labels. A setting that a family does not have is refused
    unless it is left as it is."""
    image_size: ImageSize | None = None
    """Side of the square images in pixels: 16, 28, 32, 64, 128 or 256. Left out, the size of the data."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour images. Left out, what the data has."""
    classes: Annotated[int, Meta(ge=0, le=1 << 16)] | None = None
    """Number of classes that a conditional model is given. Left out, what the data has; 0 for other models."""
    z_dim: Annotated[int, Meta(ge=1, le=1 << 14)] = 100
    """Length of the noise vector z. Paper: 100; released ImageNet model: 256."""
    z_distribution: Literal["uniform", "normal"] = "uniform"
    """Prior of z: U(-1, 1) (paper and released code) or N(0, 1) (released SVHN model, PyTorch example)."""
    ngf: Width = 128
    """Channels of the generator's last hidden layer; each earlier scale has twice as many."""
    ndf: Width = 128
    """Channels of the discriminator's first layer; each later scale has twice as many."""
    kernel_size: Literal[3, 4, 5] = 5
    """Side of every convolution kernel: 5 (LSUN, faces, SVHN), 3 (ImageNet), 4 (PyTorch example)."""
    convs_per_scale: Literal[1, 2] = 1
    """Convolutions per halving or doubling of the image: 1, or 2 (stride 1 and stride 2, released ImageNet model)."""
    slope: Annotated[float, Meta(ge=-MOST, le=MOST)] = 0.2
    """Slope of LeakyReLU for negative inputs, in every layer of the discriminator (section 4); gan, cgan: of both."""
    conv_bias: bool = False
    """Whether convolutions and dense layers have a bias. Released code and PyTorch example: none has."""
    batch_norm: Literal["paper", "all", "none"] = "paper"
    """Where batch norm stands: `paper` everywhere but G's output and D's first layer, `all`, or `none` (section 3)."""
    norm_gain_init: Literal["paper", "released"] = "paper"
    """Initial gains of batch norm: `paper` 1 (the text names weights alone), `released` N(1, 0.02)."""
    projection_norm: Literal["paper", "released"] = "paper"
    """Batch norm after G's projection of z: `paper` one per channel, `released` one per unit (channels * 4 * 4)."""
    norm_eps: PositiveFloat = 1e-5
    """Number added to the variance in batch norm. Released code: 1e-8; PyTorch: 1e-5."""
    norm_momentum: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Weight of a new batch in the running statistics of batch norm."""
    sample_statistics: Literal["running", "batch"] = "running"
    """Batch-norm statistics of G when sampling: `running` averages of training (paper), or those of each sampled
    `batch` (released code)."""
    head: Literal["flatten", "average_pool"] = "flatten"
    """How D reduces its last feature maps to one logit: flattened into a dense layer, or global average pooling."""
    generator_units: Units = (256,)
    """gan, cgan: list of the units of the generator's hidden layers (`1200,1200`: Goodfellow et al. 2014)."""
    discriminator_units: Units = (128,)
    """gan, cgan: list of the units of the discriminator's hidden layers (`240,240`: the same)."""
    maxout: Annotated[int, Meta(ge=0, le=1 << 6)] = 0
    """gan, cgan: linear pieces of each maxout unit of the discriminator (5: the same); 0 for LeakyReLU."""
    dropout: ShareBelowOne = 0.0
    """gan, cgan: share of the units of each hidden layer of the discriminator that dropout silences in training."""

    FORMER_VALUES: ClassVar[FormerValues] = {"sample_statistics": {"paper": "running", "released": "batch"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.image_size in (None, *IMAGE_SIZES), "image_size", f"expected {SIZES} or null")
        require(
            self,
            self.convs_per_scale == 1 or self.kernel_size % 2 == 1,
            "kernel_size",
            "two convolutions per scale need an odd kernel, since only that keeps the side of its maps: take 3 or 5",
        )
        require(self, self.maxout != 1, "maxout", "take 0, or 2 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Group, prefix="optim."):
    """Adam, the same for both networks."""

    lr: Annotated[float, Meta(gt=0, le=1e30)] = 2e-4
    """Learning rate (paper: 2e-4; released SVHN model: 5e-4)."""
    beta1: ShareBelowOne = 0.5
    """Decay of Adam's first moment (paper: 0.5, since 0.9 oscillates)."""
    beta2: ShareBelowOne = 0.999
    """Decay of Adam's second moment."""
    eps: PositiveFloat = 1e-8
    """Number added to the root of Adam's second moment."""
    l2: NonNegativeFloat = 0.0
    """L2 penalty on every parameter, added to its gradient before Adam. Paper: none; released code: 1e-5."""
    discriminator_loss: Literal["sum", "mean"] = "sum"
    """How D's losses on real and on generated images are joined before its gradient: their sum (the paper's algorithm)
    or their mean. The loss that is logged is the sum either way."""
    decay: Share = 0.0
    """Share of the run, at its end, over which the learning rate falls linearly to 0 (released MNIST model: 0.5)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group, prefix="data."):
    """Where the images come from and how they are read."""

    path: DataPath = "rooms:20000"
    """Folder or URL (http, https, s3, any fsspec scheme) of shards, one .tar, or `rooms:N`, N procedural rooms."""
    workers: Annotated[int, Meta(ge=0, le=1 << 9)] = 0
    """Processes per rank that decode images; 0 decodes in a background thread."""
    prefetch: Annotated[int, Meta(ge=1, le=1 << 9)] = 4
    """Batches kept ready per rank (and per decoding process)."""
    image_member: Member | None = None
    """Which members of tars that someone else made are the images, by their extension, such as `png` or `image.jpg`.
    Left out, those of an image's extension: of KEY.png and KEY.mask.png the plain one."""
    on_damage: Literal["skip", "fail"] = "skip"
    """What a damaged record does: leave its place in the batch empty and count it, or end the run."""
    max_damage: Share = 0.01
    """Share of an epoch's images that may be damaged where `on_damage` is `skip`: more of them end the run."""
    cache: str | None = None
    """Folder for generated and downloaded shards. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""
    cache_gib: PositiveFloat | None = None
    """Most GiB of downloaded shards that the cache keeps; those unused for longest go first. Left out, as many as
    leave a tenth of its disk free."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Group, prefix="training."):
    """The loop."""

    epochs: PositiveFloat | None = None
    """Length of the run in passes over the data; give this or steps. With neither, 5 (as the paper's Fig. 3)."""
    steps: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    """Length of the run in steps; a step ends with one update of the generator."""
    batch_size: BatchSize = 128
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
    average: Decay = 0.0
    """Decay for each image of an exponential moving average of the generator's weights, which samples and scores then
    take: 0.9998 reaches back over about 5,000 images; 0 for none. Early on it reaches back over a ninth of the images
    so far at most."""
    sync_batch_norm: bool = False
    """Whether batch norm takes its statistics over all workers' images, or over each worker's own."""
    check_replicas: bool = False
    """Whether to check at every log line that all workers hold identical parameters."""
    log_every: PositiveInt = 50
    """Steps between two lines of metrics.jsonl."""
    sample_every: PositiveInt = 500
    """Steps between two grids of samples of the same fixed z."""
    sample_count: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Images in a grid of samples."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    checkpoint_minutes: NonNegativeFloat = 0.0
    """Minutes after which a checkpoint is made even between two of those; 0 for never."""
    keep_last: PositiveInt = 3
    """How many of the newest checkpoints are kept."""
    keep_every: NonNegativeInt = 0
    """Every how many of the checkpoints made by steps one is kept forever; 0 for none."""
    on_damaged_run: Literal["refuse", "set-aside"] = "refuse"
    """What a run does if its newest checkpoint or config.yaml is damaged: refuse to resume, or move what is in the way
    (damaged files, and a copy of what follows the newest intact checkpoint) to `set_aside/` and resume from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            both = f"training.epochs is {self.epochs} and training.steps is {self.steps}"
            raise ConfigError(f"{both}: give one of them, the other as null")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Group, prefix="cluster."):
    """The processes that train together, and where their results go."""

    workers: Workers = 1
    """Processes of a Ray cluster that train a run together, a GPU each where there are GPUs; 1 trains without Ray, in
    this process."""
    max_failures: Annotated[int, Meta(ge=-1, le=MOST)] = 0
    """How often the group of workers is restarted from the newest checkpoint after one of them has died."""
    storage: str | None = None
    """Folder or URL (s3, any fsspec scheme) shared by all hosts; the run directory is then STORAGE/NAME."""
    wait: bool = False
    """Whether to wait when the cluster has fewer free CPUs or GPUs than workers, or to end with an error."""
    cpus_per_worker: Annotated[float, Meta(gt=0, le=1 << 12)] = 1.0
    """CPUs that Ray sets aside for each worker."""


@dataclass(frozen=True, kw_only=True)
class Config(Group):
    """Settings of a training run."""

    seed: Seed = 0
    """Seed of everything that is drawn: weights, order of images, z, labels."""
    name: FileName = "dcgan"
    """Name of the run: its directory's name where run_dir is not given."""
    run_dir: str | None = None
    """Run directory; run again with the same one, training resumes. Left out: runs/NAME."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        size, samples = self.model.image_size, self.training.sample_count
        most = GRID_PIXELS // ((size or 0) + 2) ** 2
        require(self.training, samples <= most, "sample_count", f"a grid of {size} pixels has at most {most:,}")
        workers = self.cluster.workers
        require(
            self.training,
            self.training.batch_size % workers == 0,
            "batch_size",
            f"it is shared out evenly, so take a multiple of cluster.workers ({workers})",
        )


__all__ = [
    "ALTERNATIVES",
    "GRID_PIXELS",
    "IMAGE_SIZES",
    "MOST",
    "SIZES",
    "BatchSize",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "FileName",
    "ImageSize",
    "Member",
    "ModelConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptimConfig",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "Share",
    "ShareBelowOne",
    "Step",
    "TrainingConfig",
    "Weights",
    "Workers",
    "check_whole",
    "flatten",
    "is_rooms",
    "is_whole",
    "override",
]
