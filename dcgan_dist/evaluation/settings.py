"""Settings of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from dcgan_dist.config import NonNegativeInt, PositiveFloat, PositiveInt, Seed, Weights
from dcgan_dist.parallel import TaskClusterConfig
from dcgan_dist.settings import FormerNames, Group, like, require

BASELINES = ("random", "pixels", "knn", "kmeans", "cnn")
_CS = "a list of positive numbers, such as 1e-3,1e-2"
Cs = Annotated[tuple[PositiveFloat, ...], Meta(min_length=1, extra={"expected": _CS})]
Draws = Annotated[int, Meta(ge=1, le=10**6)]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Group):
    """Settings of `evaluate`: representation scores of a run (section 5)."""

    run: str | None = None
    """Folder or URL of the run directory."""
    task: Literal["cifar10", "svhn", "folder", "rooms", "mnist", "fidelity", "memorisation", "one-nn"] = "rooms"
    """What to score on: `cifar10`, `svhn`, `mnist`, `folder` (any labelled images), or `rooms` (attributes of
    procedural rooms). svhn takes 100 labels a class by default, the others all labels. `fidelity` and
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
    count: PositiveInt | None = None
    """Images that are scored. For tasks with labels, at most so many images of `data`, and of `test_data`, drawn evenly
    by the seed: a cheaper and less certain score (left out, all). For fidelity, generated images, and as many real ones
    (left out, 5,000; the Fréchet distance is left out below that); for memorisation, generated images (left out,
    2,000). For one-nn, generated images that the classifier is trained on (left out, 50,000; paper: 50,000 and
    10,000,000); the error at 1,000, 10,000 and so on up to there comes with it."""
    data_count: PositiveInt | None = None
    """one-nn, where `count` is of generated images: most real images of `data`, and of `test_data`, drawn evenly by the
    seed. Left out, all."""
    step: Annotated[str, like(r"[0-9]{1,18}|latest|all", "a step, latest or all")] = "latest"
    """Which checkpoints to score: `latest`, `all`, or a step."""
    weights: Weights = "auto"
    """Weights of the generator for fidelity, memorisation and one-nn: their `average` over training, or `raw`;
    `auto` takes the average where the run has one (`training.average`)."""
    labels_per_class: NonNegativeInt | None = None
    """Labels of each class that classifiers are fitted to, drawn again many times; 0 for all labels. Left out, 100
    for svhn and 0 for the others."""
    draws: Draws | None = None
    """How often labels are drawn for the score. Left out, 100 for svhn and 10 for the others."""
    choosing_draws: Draws = 10
    """How often labels are drawn to choose C on validation images; other draws than those of the score."""
    validation: PositiveInt | None = None
    """Images to choose C by. Left out, 10,000 for svhn where that leaves half of them, else a tenth of `data`."""
    test: PositiveInt | None = None
    """Images split off `data` to score by, where there is no `test_data`. Left out, a fifth."""
    cs: Cs = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
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
    baselines: tuple[Literal["random", "pixels", "knn", "kmeans", "cnn", "all", "none"], ...] = ()
    """List of controls on the same splits: `random` (the discriminator with random weights), `pixels`, `knn`,
    `kmeans`, `cnn`; or `all`. Left out, or `none`, there are none."""
    extractor: Literal["random-conv-v1", "inception"] = "random-conv-v1"
    """Space in which fidelity compares images: `random-conv-v1`, convolutions with fixed random weights, or
    `inception`, for FID, KID and the Inception score (needs the extra `inception` and `inception_weights`)."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth, which the project torch-fidelity publishes."""
    centroids: Annotated[int, Meta(ge=1, le=1 << 16)] = 1600
    """Centroids of the k-means control (Coates and Ng: 1,600 and 4,800)."""
    patches: PositiveInt = 400_000
    """Patches that k-means is fitted to."""
    trials: Annotated[int, Meta(ge=1, le=10**6)] = 8
    """Trials of the random search of the supervised CNN control (paper: 64)."""
    epochs: Annotated[int, Meta(ge=1, le=10**6)] = 20
    """Passes over the labels in each of them."""
    seed: Seed = 0
    """Seed of splits, draws of labels and random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes the GPU when there is one."""
    cache: str | None = None
    """Folder for features and shards. Left out: $DCGAN_DIST_CACHE, else ~/.cache/dcgan_dist."""
    cache_gib: PositiveFloat = 20.0
    """Most GiB of features that the cache keeps; those unused for longest go first."""
    keep_features: bool = True
    """Whether features stay in the cache for the next command."""
    cluster: TaskClusterConfig = field(default_factory=TaskClusterConfig)

    FORMER_NAMES: ClassVar[FormerNames] = {
        "samples": "count",
        "images": lambda given: "data_count" if given.get("task") == "one-nn" else "count",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        only_one_nn = self.data_count is None or self.task == "one-nn"
        require(self, only_one_nn, "data_count", f"it is for the task one-nn; {self.task} has count")
        alone = len(self.baselines) < 2 or not {"all", "none"} & set(self.baselines)
        require(self, alone, "baselines", f"take some of {', '.join(BASELINES)}, or all, or none")

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
