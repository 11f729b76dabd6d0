"""Settings of `sweep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from dcgan_dist.config import MOST, Config, FileName, NonNegativeInt, PositiveInt
from dcgan_dist.settings import INLINE, FormerNames, Group, require


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Group, prefix="score."):
    """How the trials of a sweep are scored: cheaply at milestones, in full for the best of them at the end."""

    task: Literal["none", "cifar10", "svhn", "folder", "rooms", "mnist"] = "rooms"
    """Labelled data for the score `representation`, as in `evaluate`; `none` leaves that score out."""
    data: str | None = None
    """Where they are, as in `evaluate`. Left out for rooms, rooms that no run is trained on."""
    data_count: PositiveInt = 2000
    """Images of it that are used at a milestone."""
    labels_per_class: PositiveInt = 50
    """Labels of each class that the classifier is fitted to at a milestone."""
    draws: Annotated[int, Meta(ge=1, le=10**6)] = 3
    """How often they are drawn."""
    count: NonNegativeInt = 500
    """Generated images, and as many real ones, for the scores of fidelity and diversity at a milestone; 0 for none."""
    finalists: NonNegativeInt = 3
    """How many of the best trials are scored at the end by the whole protocol of `evaluate`; 0 for none."""

    FORMER_NAMES: ClassVar[FormerNames] = {"images": "data_count", "samples": "count"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.count == 0 or self.count >= 100, "count", "take 0, or 100 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Group):
    """Settings of `sweep`: those of every trial's run, and which of them are searched and how."""

    train: Config = field(default_factory=Config, metadata=INLINE)
    name: FileName = "sweep"
    """Name of the sweep: its directory's name where sweep_dir is not given."""
    sweep_dir: str | None = None
    """Folder or URL of the sweep; run again with the same one, it resumes. Left out: STORAGE/NAME where cluster.storage
    is given, else sweeps/NAME."""
    space: dict[str, Any] = field(default_factory=dict)
    """What is searched, by dotted name: {uniform: [LOW, HIGH]}, {loguniform: [LOW, HIGH]}, {randint: [LOW, HIGH]} (both
    included), {choice: [A, B]} or {grid: [A, B]}; with `when: {OTHER: VALUE or list}`, only where that other
    setting has such a value. On the command line: --space '{optim.lr: {loguniform: [1e-5, 1e-2]}}'."""
    trials: Annotated[int, Meta(ge=1, le=10**6)] = 24
    """Trials in all; a grid has as many as it has points (times this many, where other settings are drawn)."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How values are chosen: at random, every combination, or by Optuna's tree-structured Parzen estimator from what
    earlier trials scored (over several scores where `objective` names more than one without weights)."""
    schedule: Literal["fifo", "asha", "median", "pbt"] = "asha"
    """Which trials continue: all; by asynchronous successive halving; those not below the median of the others; or by
    population based training, where the worst continue from copies of the best with changed settings."""
    milestones: Annotated[int, Meta(ge=1, le=10**4)] = 4
    """At how many evenly spaced steps of its run a trial is sampled, saved, scored, and may be stopped early."""
    reduction: Annotated[float, Meta(gt=1, le=MOST)] = 2.0
    """asha: of the trials that reach a milestone whose number is a power of this (1, 2, 4 and so on), one in this many
    continues."""
    objective: Annotated[tuple[str, ...], Meta(min_length=1)] = ("representation",)
    """What is maximised: a list of scores, each with an optional weight (`representation:1,coverage:0.5`).
    With weights their weighted sum, without them the first one, the others for the Pareto front (and for optuna).
    Scores: representation, stability, precision, recall, density, coverage, distance_ratio, and frechet_distance,
    which is minimised."""
    cpus_per_trial: Annotated[float, Meta(gt=0, le=1 << 12)] = 1.0
    """CPUs set aside for a trial (for each of its workers where there are several)."""
    gpus_per_trial: Annotated[float, Meta(ge=0, le=1 << 12)] = 0.0
    """GPUs, or a fraction of one, set aside for a trial (for each of its workers where there are several)."""
    concurrent: Annotated[int, Meta(ge=1, le=1 << 12)] | None = None
    """Most trials at the same time. Left out, as many as the cluster has room for."""
    trial_failures: NonNegativeInt = 1
    """How often a trial that crashed resumes from its newest checkpoint before it counts as failed."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    verbose: bool = False
    """Whether to show what Ray and the trials print."""

    FORMER_NAMES: ClassVar[FormerNames] = {"workers_per_trial": "cluster.workers"}
