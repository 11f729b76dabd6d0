"""Settings of `prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from dcgan_dist.config import (
    IMAGE_SIZES,
    SIZES,
    BatchSize,
    ImageSize,
    Member,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    ShareBelowOne,
    Workers,
)
from dcgan_dist.parallel import TaskClusterConfig
from dcgan_dist.settings import FormerNames, Group, like, require

CodeSize = Annotated[int, Meta(ge=8, le=256, multiple_of=8, extra={"expected": "a multiple of 8 to 256"})]
ShardName = Annotated[str, like(r"[^./\\:\x00{}][^/\\:\x00{}]*", "a plain file name")]


@dataclass(frozen=True, kw_only=True)
class DeduplicationConfig(Group, prefix="deduplication."):
    """How near-duplicates are found (section 4.1): by the binarised codes of a de-noising autoencoder."""

    radius: NonNegativeInt = 0
    """Bits in which the codes of two duplicates may differ. Paper: 0, exact collisions."""
    code_size: CodeSize = 128
    """Units of the autoencoder's code (paper: 128)."""
    units: PositiveInt | None = None
    """Units whose bits are compared, the steadiest first: fewer find more duplicates, and more images that are none.
    Left out, all for a radius above 0; for exact collisions, so many that few images collide by chance."""
    noise: NonNegativeFloat = 0.2
    """Standard deviation of the Gaussian noise on the autoencoder's input, in units of the images' own range [-1, 1]
    (the paper states none)."""
    jitter: NonNegativeFloat = 1.0
    """Further noise on the input: at 1, shifts of up to 0.7 pixels of the 32x32 image, crops of up to 3%, brightness
    changed by up to 7%; 0 for none."""
    stability: NonNegativeFloat = 3.0
    """Weight of the loss that holds the code still under such changes; 0 for the plain autoencoder."""
    dropout: ShareBelowOne = 0.5
    """Share of code units that are dropped in training (the paper states none)."""
    count: PositiveInt = 200_000
    """Images that the autoencoder is trained on, drawn from the set; all where it has fewer."""
    steps: PositiveInt = 4000
    """Mini-batches that the autoencoder is trained on."""
    batch_size: BatchSize = 128
    """Images in one of them."""
    lr: PositiveFloat = 1e-3
    """Learning rate of Adam."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "count"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.radius < self.code_size, "radius", "take less than code_size")
        require(self, self.units is None or self.units <= self.code_size, "units", "take at most code_size")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Group):
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
    image_member: Member | None = None
    """Which members of `webdataset` tars are the images, by their extension; see data.image_member of `train`."""
    only: tuple[str, ...] = ()
    """List of folders or classes, to take no others: `bedroom`, `cat,dog`. Left out, all."""
    labels: Literal["none", "first", "last"] = "last"
    """Which folder of an image names its class: the first or the last one that tells images apart, or none."""
    image_size: ImageSize | None = None
    """Side of the square images. Left out, the source's own size (rooms 64, CIFAR-10 32, MNIST 28), else 64."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How an image becomes square: `crop` makes its shorter side as long as the square and takes the centre, `pad`
    makes its longer side so and fills up with black, `stretch` makes both so. Shrinking averages over areas."""
    white_value: PositiveFloat | None = None
    """Value that becomes white in images of more than 8 bits, such as 4095 for 12-bit pictures in 16-bit files; left
    out, 65535. Of floating-point images it must be given."""
    grey: bool = False
    """Whether to make one-channel images of a colour source."""
    count: PositiveInt | None = None
    """How many images to take, the first ones of the source; left out, all of them (rooms: 20,000)."""
    encoding: Literal["jpg", "png", "raw"] = "jpg"
    """How an image is stored: JPEG of quality 95, PNG, or raw uint8 values (rows, columns, channels)."""
    shard_size: PositiveInt = 2000
    """Images in a shard."""
    name: ShardName | None = None
    """First part of the shards' file names; left out, the source's name."""
    seed: Seed = 0
    """Seed of the images' distribution over the shards, and of the rooms."""
    workers: Workers | None = None
    """Processes that decode and encode; left out, one for each core."""
    max_bad: Share = 0.01
    """Share of inputs that may be undecodable; more of them are an error."""
    verify: str | None = None
    """Folder or URL of shards to check against its manifest, in place of making any."""
    dedup: bool = False
    """Whether to find the near-duplicates among the images, and keep one of each group; without `source`, among those
    of the finished shards at `output`."""
    deduplication: DeduplicationConfig = field(default_factory=DeduplicationConfig)
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.image_size in (None, *IMAGE_SIZES), "image_size", f"expected {SIZES} or null")
