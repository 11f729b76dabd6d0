"""How far a run is: what it resumes from besides tensors, and state.json is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcgan_dist.distributed import World
from dcgan_dist.runs.documents import Parent, Row, State


@dataclass
class Progress:
    """Counts of one run on one rank.

    Attributes:
        step: steps of training done.
        images_seen: real images that this rank has trained on; the run's count is the sum over ranks.
        images_lost: real images that this rank could not read, likewise.
        seconds: spent in training, over all processes that have worked on the run.
        last_logged: step of the newest row of metrics.
        parent: the checkpoint of another run that this one continues from (population based training).
        resumed_at: step from which this process continues.
    """

    step: int = 0
    images_seen: int = 0
    images_lost: int = 0
    seconds: float = 0.0
    last_logged: int = 0
    parent: Parent | None = None
    resumed_at: int = 0

    def advance(self, step: int, *, seen: int, lost: int) -> None:
        """Count a step of training."""
        self.step = step
        self.images_seen += seen
        self.images_lost += lost

    def total_images(self, world: World) -> tuple[int, int]:
        """Return the images seen and lost by all ranks; every rank must call it."""
        seen, lost = world.sum_(torch.tensor([self.images_seen, self.images_lost], device=world.device)).tolist()
        return seen, lost

    def load_state_dict(self, state: State, world: World) -> None:
        """Take the counts of state.json; the leader takes over the images of all ranks, whose number may differ."""
        self.step = self.resumed_at = state["step"]
        self.images_seen = state["images_seen"] if world.is_leader else 0
        self.images_lost = state["images_lost"] if world.is_leader else 0
        self.seconds, self.last_logged = state["seconds"], state["last_logged"]
        self.parent = state.get("parent")


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: its last step, the real images it has seen, and where its files are."""

    step: int
    images_seen: int
    run_dir: str
    last_row: Row | None
