"""Checkpoints of training: what they hold, and how a run resumes from one. `runs` owns folders and digests."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dcgan_dist.config import Config
from dcgan_dist.distributed import World, say
from dcgan_dist.errors import InputError, RunDirectoryError, StorageError
from dcgan_dist.runs.checkpoints import Checkpoint
from dcgan_dist.runs.documents import SavedState, State
from dcgan_dist.runs.writer import RunWriter
from dcgan_dist.training.averaging import GeneratorAverage
from dcgan_dist.training.damage import DamageLog
from dcgan_dist.training.feed import Feed
from dcgan_dist.training.fixed_samples import FixedSamples
from dcgan_dist.training.progress import Progress
from dcgan_dist.training.setup import batches_per_step
from dcgan_dist.training.step import Players

PLAYERS = ("generator", "discriminator")
AVERAGE = "generator_average"
AVERAGE_FILE = f"{AVERAGE}.safetensors"


def training_tensors(players: Players, average: GeneratorAverage | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Return all tensors that a run resumes from, by file and name: networks with buffers, both Adams, the average.

    They are the live ones: copying into them restores the run.
    """
    both = {name: getattr(players, name) for name in PLAYERS}
    files = {name: dict(player.network.state_dict()) for name, player in both.items()}
    files["optim"] = {
        f"{name}/{key}": value for name, player in both.items() for key, value in player.adam_tensors().items()
    }
    if average is not None:
        files[AVERAGE] = dict(average.network.state_dict())
    return files


@dataclass
class TrainingState:
    """Everything that a run resumes from."""

    players: Players
    average: GeneratorAverage | None
    samples: FixedSamples
    feed: Feed
    progress: Progress
    damage: DamageLog


class Checkpointer:
    """Saves a run's state into its run directory, and resumes from it; every rank has one, the leader reads and writes.

    Attributes:
        newest: folder of the newest checkpoint on this host, None where there is none (leader only).
    """

    def __init__(self, config: Config, world: World, run: RunWriter | None, state: TrainingState) -> None:
        self._config, self._world, self._run, self._state = config, world, run, state
        self.newest: Path | None = None
        self._saved_at = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """Whether the leader has not saved for longer than `training.checkpoint_minutes`."""
        minutes = self._config.training.checkpoint_minutes
        return minutes > 0 and self._world.is_leader and time.monotonic() - self._saved_at > 60 * minutes

    def save(self) -> None:
        """Write a checkpoint of the state after the current step; every rank must call it.

        Raises:
            StorageError: it cannot be written.
        """
        state, world = self._state, self._world
        state.damage.collect(world)
        seen, lost = state.progress.total_images(world)
        tallies = world.gather(state.players.tally.sums).tolist()
        self._saved_at = time.monotonic()
        if self._run is None:
            return
        content = self._content(seen, lost, tallies)
        if state.average is not None:
            state.average.measure()

        def write(folder: Path) -> None:
            for name, tensors in training_tensors(state.players, state.average).items():
                save_tensors(folder, tensors, name)
            save_tensors(folder, {"activations": state.samples.history}, "signals")

        self.newest = self._run.commit_checkpoint(state.progress.step, write, content)
        training = self._config.training
        self._run.prune_checkpoints(training.keep_last, training.keep_every * training.checkpoint_every)

    def _content(self, seen: int, lost: int, tallies: list[list[float]]) -> State:
        """Return state.json."""
        config, state = self._config, self._state
        progress, per_epoch = state.progress, state.feed.stream.batches_per_epoch
        batch = progress.step * batches_per_step(config)
        content: State = {
            "step": progress.step,
            "epoch": batch / per_epoch,
            "images_seen": seen,
            "images_lost": lost,
            "lost_in_epoch": int(state.feed.lost_in_epoch),
            "damage": state.damage.state(),
            "seconds": progress.seconds,
            "cursor": {
                "epoch": batch // per_epoch,
                "batch": batch % per_epoch,
                "batch_size": config.training.batch_size,
            },
            "rng": {"kind": "Philox of (seed, purpose, step)", "seed": config.seed},
            "world_size": self._world.size,
            "tallies": tallies,
            "finite": state.players.is_finite,
            "last_logged": progress.last_logged,
        }
        if state.average is not None:
            content["average_from"] = state.average.first_step
        if progress.parent is not None:
            content["parent"] = progress.parent
        return content

    def resume(self) -> None:
        """Load the checkpoint that the run directory went back to, if any, on every rank; every rank must call it.

        The leader reads it and sends it to the others, which may see no storage, and need not be as many as before.

        Raises:
            RunDirectoryError: it is of another architecture.
        """
        world, message, text = self._world, "", ""
        if self._run is not None and self._run.newest is not None:
            try:
                text = json.dumps(self._read(self._run.newest))
            except InputError as error:
                message = str(error)
        if message := world.broadcast_text(message):
            raise RunDirectoryError(message)
        text = world.broadcast_text(text)
        if text:
            self._load(json.loads(text))

    def _read(self, checkpoint: Checkpoint) -> SavedState:
        """Copy a checkpoint into the leader's tensors, and return its state.json."""
        # A checkpoint that was made without an average has none: it begins with the weights, in `_load`.
        average = self._state.average if AVERAGE_FILE in checkpoint.state["files"] else None
        for name, tensors in training_tensors(self._state.players, average).items():
            load_tensors(checkpoint.path, tensors, name)
        self._state.samples.history = load_file(checkpoint.path / "signals.safetensors")["activations"]
        self.newest = checkpoint.path
        return checkpoint.state

    def _load(self, content: SavedState) -> None:
        state, world = self._state, self._world
        for tensors in training_tensors(state.players, state.average).values():
            for tensor in tensors.values():
                world.broadcast_(tensor)
        if state.average is not None and AVERAGE_FILE in content["files"]:
            state.average.first_step = content["average_from"]
        elif state.average is not None:
            step = content["step"]
            state.average.begin(state.players.generator.network, step)
            say(world, f"the checkpoint has no averaged weights: they begin as those of step {step:,}")
        tallies = torch.tensor(content["tallies"], dtype=torch.float64)
        # With another number of ranks, the leader takes over all that was counted since the last row.
        is_same_size = content["world_size"] == world.size
        state.players.tally.sums.copy_(tallies[world.rank] if is_same_size else tallies.sum(0) * world.is_leader)
        state.progress.load_state_dict(content, world)
        state.feed.resume(state.progress.step, content.get("lost_in_epoch", 0))
        if world.is_leader:
            state.damage.restore(content.get("damage", {}))


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Write `NAME.safetensors`; tensors that lie channels last are written row by row.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / f"{name}.safetensors"
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    except SafetensorError as error:  # what the library makes of errors of the operating system
        raise StorageError(f"cannot write {path}: {error}") from error


def load_tensors(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
    """Copy `NAME.safetensors` into live tensors.

    Raises:
        RunDirectoryError: a name or shape differs: a checkpoint of another architecture.
    """
    copy_tensors(load_file(folder / f"{name}.safetensors"), tensors, name, str(folder))


def copy_tensors(loaded: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], name: str, where: str) -> None:
    """Copy the tensors of a checkpoint's file into live ones.

    Args:
        loaded: content of the file.
        tensors: the live ones.
        name: of the network or optimiser that they are of, for messages.
        where: the checkpoint's place, for messages.

    Raises:
        RunDirectoryError: a name or shape differs: a checkpoint of another architecture.
    """
    for key in sorted(tensors.keys() | loaded.keys()):
        ours = tuple(tensors[key].shape) if key in tensors else "not in this architecture"
        theirs = tuple(loaded[key].shape) if key in loaded else "not in the checkpoint"
        if ours != theirs:
            raise RunDirectoryError(
                f"the checkpoint {where} is of another architecture: {name}'s {key} is {theirs} there and {ours} by "
                "the settings: take its config.yaml, or another run directory"
            )
    with torch.no_grad():
        for key, value in tensors.items():
            value.copy_(loaded[key])


def load_network(folder: Path, network: nn.Module, name: str) -> None:
    """Load one network's weights and buffers from a checkpoint.

    Raises:
        RunDirectoryError: a checkpoint of another architecture.
    """
    load_tensors(folder, dict(network.state_dict()), name)
