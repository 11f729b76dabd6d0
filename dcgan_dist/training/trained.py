"""The networks of a run's checkpoint."""

from __future__ import annotations

from typing import Literal, NamedTuple

import safetensors.torch
from safetensors import SafetensorError

from dcgan_dist.config import ModelConfig, Weights
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.models import build_networks
from dcgan_dist.models.network import Discriminator, Generator
from dcgan_dist.runs.checkpoints import Checkpoint
from dcgan_dist.runs.run import Run
from dcgan_dist.training.checkpoint import AVERAGE, AVERAGE_FILE, copy_tensors


class LoadedGenerator(NamedTuple):
    """The generator of a checkpoint.

    Attributes:
        network: in evaluation mode.
        model: its settings.
        digest: of the checkpoint.
        weights: which of the checkpoint's weights it has.
    """

    network: Generator
    model: ModelConfig
    digest: str
    weights: Literal["average", "raw"]

    def entry(self, step: int) -> dict[str, object]:
        """Return the fields of an entry of scores.json that name the generator."""
        return {"step": step, "checkpoint_digest": self.digest, "weights": self.weights}


def load_generator(run: Run, step: int, weights: Weights = "auto") -> LoadedGenerator:
    """Load the generator of a run's checkpoint.

    Args:
        run: the run.
        step: step of the checkpoint.
        weights: `average` or `raw`; `auto` takes averaged weights if the checkpoint has them.

    Raises:
        ConfigError: `weights` is none of these, or `average` and the checkpoint has no averaged weights.
        RunDirectoryError, StorageError: as `load_networks`.
    """
    if weights not in ("auto", "average", "raw"):
        raise ConfigError(f"weights is {weights!r}: take auto, average or raw")
    checkpoint = run.checkpoint(step)
    has_average = AVERAGE_FILE in checkpoint.files
    if weights == "average" and not has_average:
        raise ConfigError(
            f"weights is 'average', but {checkpoint.where} has none, since training.average was 0: leave it out, or "
            "take raw"
        )
    chosen: Literal["average", "raw"] = "average" if has_average and weights != "raw" else "raw"
    name = AVERAGE if chosen == "average" else "generator"
    generator, _ = _load(run, checkpoint, "generator", name)
    return LoadedGenerator(generator.eval(), run.model, checkpoint.digest, chosen)


def load_networks(run: Run, step: int) -> tuple[Generator, Discriminator, ModelConfig, str]:
    """Return both networks (only D with its weights), their settings and the checkpoint's digest.

    Raises:
        RunDirectoryError: there is no such checkpoint, or it is damaged or of another architecture.
        StorageError: it cannot be read.
    """
    checkpoint = run.checkpoint(step)
    generator, discriminator = _load(run, checkpoint, "discriminator", "discriminator")
    return generator, discriminator, run.model, checkpoint.digest


def _load(
    run: Run, checkpoint: Checkpoint, player: Literal["generator", "discriminator"], name: str
) -> tuple[Generator, Discriminator]:
    """Build both networks of a run, and load the checkpoint's file `name` into one of them."""
    content = checkpoint.read(f"{name}.safetensors")
    try:
        generator, discriminator = build_networks(run.model)
        network = generator if player == "generator" else discriminator
        copy_tensors(safetensors.torch.load(content), dict(network.state_dict()), name, checkpoint.where)
    except (ConfigError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RunDirectoryError(f"{run.location} was made by another version: {reason}") from error
    return generator, discriminator
