"""What a run has trained: its settings, its checkpoints, and the networks in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import safetensors.torch
import xxhash
import yaml
from safetensors import SafetensorError

from dcgan_dist.config import ModelConfig, Weights, modernised
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.models import build_networks
from dcgan_dist.models.network import Discriminator, Generator
from dcgan_dist.results.checkpoints import STATE_NAME, name_of, parse_state, step_of, steps_in
from dcgan_dist.results.run_directory import CONFIG_NAME
from dcgan_dist.results.storage import Mirror, parse_location, read_file
from dcgan_dist.training.checkpoint import AVERAGE, AVERAGE_FILE, copy_tensors

Loaded = TypeVar("Loaded")
_STATE = f"/{STATE_NAME}"


def read_run_config(location: str) -> dict[str, Any]:
    """Return the config.yaml of a run, with the names and values that the settings of its model have today.

    Raises:
        RunDirectoryError: there is no run, or its settings cannot be read.
        StorageError: it cannot be read.
    """
    content = read_file(location, CONFIG_NAME)
    if content is None:
        raise RunDirectoryError(f"{location} is no run directory: it has no {CONFIG_NAME}; give --run DIR of a run")
    try:
        settings = yaml.safe_load(content)
        if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
            raise ValueError("it holds no settings of a model")
    except (ValueError, yaml.YAMLError) as error:
        raise RunDirectoryError(f"{location}/{CONFIG_NAME} cannot be read: {' '.join(str(error).split())}") from error
    return settings | {"model": modernised(ModelConfig, settings["model"])}


def checkpoint_steps(location: str) -> list[int]:
    """Return the steps of a run's checkpoints, ascending.

    Raises:
        RunDirectoryError: it has none, or is no run.
        StorageError: the storage fails.
    """
    read_run_config(location)
    place = parse_location(location)
    if isinstance(place, str):
        # Those without state.json are being uploaded, or their upload was cut short.
        found = {step_of(name.split("/")[1]) for name in Mirror(place).names("checkpoints") if name.endswith(_STATE)}
        steps = sorted(step for step in found if step is not None)
    else:
        steps = steps_in(place / "checkpoints")
    if not steps:
        raise RunDirectoryError(f"{location} has no checkpoint yet: train it for longer, or give another run")
    return steps


def chosen_steps(location: str, step: str) -> list[int]:
    """Return the steps of a run that `step` asks for: `latest`, `all`, or a number (which may have no checkpoint).

    Raises:
        RunDirectoryError, StorageError: as `checkpoint_steps`.
    """
    steps = checkpoint_steps(location)
    if step.isdecimal():
        return [int(step)]
    return steps[-1:] if step == "latest" else steps


def load_each(
    load: Callable[[str, int], Loaded], location: str, steps: Sequence[int], say: Callable[[str], None]
) -> Iterator[Loaded]:
    """Load several checkpoints one after the other, as they are asked for.

    A run that still trains keeps its newest checkpoints only: of several, those that are gone by then are passed over,
    and `say` is told.

    Raises:
        RunDirectoryError, StorageError: as `load`, for the first and for those that are there.
    """
    for number, step in enumerate(steps):
        try:
            yield load(location, step)
        except RunDirectoryError:
            if number == 0 or step in checkpoint_steps(location):
                raise
            say(f"step {step} is not scored: its checkpoint is gone, as the run goes on and keeps the newest")


class LoadedGenerator(NamedTuple):
    """A generator in evaluation mode, its settings, its checkpoint's digest, and which of the run's weights it has."""

    network: Generator
    model: ModelConfig
    digest: str
    weights: Literal["average", "raw"]

    def entry(self, step: int) -> dict[str, Any]:
        """Return what an entry of scores.json says of it, the generator of a checkpoint of `step`."""
        return {"step": step, "checkpoint_digest": self.digest, "weights": self.weights}


def load_generator(location: str, step: int, weights: Weights = "auto") -> LoadedGenerator:
    """Load the generator of a run's checkpoint.

    Args:
        location: folder or URL of the run.
        step: of the checkpoint.
        weights: `average` or `raw`; `auto` takes the averaged weights where there are any.

    Raises:
        ConfigError: there are no averaged weights.
        RunDirectoryError, StorageError: as `load_networks`.
    """
    settings, state, where = _read_state(location, step)
    has_average = AVERAGE_FILE in state["files"]
    if weights == "average" and not has_average:
        raise ConfigError(
            f"weights is 'average', but {where} has none, since training.average was 0: leave it out, or take raw"
        )
    chosen: Literal["average", "raw"] = "average" if has_average and weights != "raw" else "raw"
    name = AVERAGE if chosen == "average" else "generator"
    generator, _, model = _load(location, step, settings, state, "generator", name)
    return LoadedGenerator(generator.eval(), model, str(state["digest"]), chosen)


def load_networks(location: str, step: int) -> tuple[Generator, Discriminator, ModelConfig, str]:
    """Return both networks of a run, the discriminator with its weights, their settings and the checkpoint's digest.

    Raises:
        RunDirectoryError: no such checkpoint, a damaged one, or one of another architecture.
        StorageError: it cannot be read.
    """
    settings, state, _ = _read_state(location, step)
    generator, discriminator, model = _load(location, step, settings, state, "discriminator", "discriminator")
    return generator, discriminator, model, str(state["digest"])


def _read_state(location: str, step: int) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the settings of a run, the state of a checkpoint, and where that is."""
    settings = read_run_config(location)
    where = f"{location.rstrip('/')}/checkpoints/{name_of(step)}"
    state_content = read_file(location, f"checkpoints/{name_of(step)}/{STATE_NAME}")
    if state_content is None:
        steps = ", ".join(map(str, checkpoint_steps(location)))
        raise RunDirectoryError(f"{location} has no whole checkpoint of step {step}; it has those of steps {steps}")
    return settings, parse_state(state_content, where), where


def _load(
    location: str,
    step: int,
    settings: dict[str, Any],
    state: dict[str, Any],
    player: Literal["generator", "discriminator"],
    name: str,
) -> tuple[Generator, Discriminator, ModelConfig]:
    """Return both networks of a run, one of them with the weights of the file `name` of a checkpoint."""
    where, file = f"{location.rstrip('/')}/checkpoints/{name_of(step)}", f"{name}.safetensors"
    content = read_file(location, f"checkpoints/{name_of(step)}/{file}")
    expected = state["files"].get(file, {}).get("xxh3_128")
    if content is None or xxhash.xxh3_128_hexdigest(content) != expected:
        raise RunDirectoryError(f"{where} is damaged: {file} is not what was written; take another step with --step")
    try:
        model = ModelConfig(**settings["model"])
        generator, discriminator = build_networks(model)
        network = generator if player == "generator" else discriminator
        copy_tensors(safetensors.torch.load(content), dict(network.state_dict()), name, where)
    except (TypeError, ConfigError, SafetensorError) as error:
        raise RunDirectoryError(f"{location} was made by another version: {' '.join(str(error).split())}") from error
    return generator, discriminator, model
