"""Before the first step: settings completed by the data, the run directory opened, another run's settings refused."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcgan_dist.config import Config, flatten, override
from dcgan_dist.data.dataset import Dataset, open_dataset
from dcgan_dist.distributed import World
from dcgan_dist.errors import ConfigError, InputError, RunDirectoryError
from dcgan_dist.machine import compiler
from dcgan_dist.models.family import families, family_of
from dcgan_dist.runs.names import CONFIG_NAME
from dcgan_dist.runs.writer import RunWriter, open_run
from dcgan_dist.settings import as_record, as_text
from dcgan_dist.version import __version__

DEFAULT_EPOCHS = 5.0
# Settings that must not change when a run resumes, besides `model`: with others, batches and draws would be those of
# another run. Those of `optim` may change. data.path is compared by its content.
FIXED_SETTINGS = ("seed", "training.batch_size", "training.updates")
FREE_MODEL_SETTINGS = ("model.sample_statistics", "model.slope")


def check_world(config: Config, world: World) -> None:
    """Check what can be known before any data is opened.

    Raises:
        ConfigError: the batch cannot be shared out among the ranks, the settings do not fit the family of networks, or
            there is no compiler for `training.compile`.
    """
    batch = config.training.batch_size
    if batch % world.size:
        raise ConfigError(
            f"training.batch_size is {batch}: it is shared out evenly, so take a multiple of the number of workers "
            f"({world.size})"
        )
    if batch // world.size < 2:
        raise ConfigError(
            f"training.batch_size is {batch}: batch norm needs at least 2 images on each of the {world.size} workers"
        )
    if config.training.compile and world.device.type == "cpu":
        require_compiler()
    family_of(config.model)


def open_data(config: Config) -> Dataset:
    """Open the data of a run, as `data` and `model` say.

    Raises:
        DataError: it cannot be read.
    """
    data, model = config.data, config.model
    return open_dataset(
        data.path,
        image_size=model.image_size,
        channels=model.channels,
        cache=Path(data.cache) if data.cache else None,
        cache_gib=data.cache_gib,
        on_damage=data.on_damage,
        image_member=data.image_member,
    )


def resolve_config(config: Config, dataset: Dataset) -> Config:
    """Fill in what the data decides: image size, channels, classes, and the length in steps.

    Raises:
        ConfigError: the settings do not fit the family of networks, or the data them: too small for one global batch,
            without labels or with other classes for a conditional model.
    """
    family = family_of(config.model)
    batch = config.training.batch_size
    per_epoch = dataset.count // batch
    if per_epoch == 0:
        raise ConfigError(
            f"training.batch_size is {batch}, but {dataset.path} has {dataset.count} images: take a smaller batch"
        )
    if family.is_conditional and not dataset.classes:
        unconditional = " or ".join(name for name, other in families().items() if not other.is_conditional)
        raise ConfigError(
            f"model.name is {config.model.name!r}, but {dataset.path} has no labels: take {unconditional}, or data "
            "with labels"
        )
    if family.is_conditional and config.model.classes not in (None, len(dataset.classes)):
        raise ConfigError(
            f"model.classes is {config.model.classes}, but {dataset.path} has {len(dataset.classes)} classes: leave it "
            "out (null)"
        )
    changes: dict[str, Any] = {
        "model.image_size": dataset.image_size,
        "model.channels": dataset.channels,
        "model.classes": len(dataset.classes) if family.is_conditional else 0,
    }
    if config.training.steps is None:
        epochs = DEFAULT_EPOCHS if config.training.epochs is None else config.training.epochs
        steps = math.floor(epochs * per_epoch / batches_per_step(config))
        if steps == 0:
            raise ConfigError(f"training.epochs is {epochs}, less than one step of {batch} images: take more")
        changes |= {"training.epochs": None, "training.steps": steps}
    return override(config, changes)


def dtype_of(config: Config) -> torch.dtype:
    """Return the type of the weights: float32 unless `training.precision` is `fp64`."""
    return torch.float64 if config.training.precision == "fp64" else torch.float32


def batches_per_step(config: Config) -> int:
    """Mini-batches of one step: one, or two where each updates only one network."""
    return 2 if config.training.updates == "released" else 1


def lr_factor(config: Config, step: int) -> float:
    """Multiple of the configured learning rate at a step (from 1): 1, then falling linearly to 0 after the last."""
    assert config.training.steps is not None
    falling = config.optim.decay * config.training.steps
    left = config.training.steps - (step - 1)
    return min(1.0, left / falling) if falling else 1.0


def open_on_leader(config: Config, dataset: Dataset, world: World, location: str, session: str) -> RunWriter | None:
    """Open the run directory on the leader, see `open_run_directory`; every rank must call it.

    Raises:
        RunDirectoryError: it cannot be opened; the same error on every rank.
    """
    run, message = None, ""
    if world.is_leader:
        try:
            run = open_run_directory(config, dataset, location, session)
        except InputError as error:
            if world.size == 1:
                raise
            message = str(error)
    if message := world.broadcast_text(message):
        raise RunDirectoryError(message)
    return run


def open_run_directory(config: Config, dataset: Dataset, location: str, session: str) -> RunWriter:
    """Open the run directory, go back to its newest whole checkpoint and record the settings.

    Raises:
        RunDirectoryError: it is in use, cannot be written, is damaged, or holds a run that cannot resume with these
            settings; it is left as it was.
    """
    on_damaged_run = config.training.on_damaged_run
    run = open_run(location, session=session)
    try:
        try:
            before = run.read_config()
        except RunDirectoryError:
            if on_damaged_run == "refuse":
                raise
            run.set_aside(CONFIG_NAME)
            before = None
        if before is not None:
            _refuse_other_run(config, dataset, before, location)
        written_every = _group(before or {}, "training").get("checkpoint_every")
        if not isinstance(written_every, int):
            written_every = config.training.checkpoint_every
        run.go_back(on_damaged_run, written_every)
        facts = {"data_digest": dataset.digest, "classes": list(dataset.classes)}
        run.write_config(as_record(config), environment() | facts | {"rooms_seed": dataset.rooms_seed})
    except BaseException:
        run.close()
        raise
    return run


def environment() -> dict[str, object]:
    """Versions of what a run is computed with, and the git commit where there is one."""
    return {
        "dcgan_dist": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "git_commit": _git_commit(),
    }


def require_compiler(seconds: float = 60) -> None:
    """Check that C++ for Python can be compiled here, as torch.compile does on a CPU, within so many seconds.

    Raises:
        ConfigError: it cannot.
    """
    found = compiler(needed=True, seconds=seconds)
    if found.status != "ok":
        raise ConfigError(f"training.compile is true, but {found.found}: {found.way_out}")


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, None where there is none or no git that says so in time."""
    here = str(Path(__file__).parent)
    try:
        done = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _group(settings: Mapping[str, object], name: str) -> dict[str, object]:
    group = settings.get(name)
    return group if isinstance(group, dict) else {}


def _refuse_other_run(config: Config, dataset: Dataset, before: Mapping[str, object], location: str) -> None:
    """Refuse settings under which the checkpoints of the run would mean something else."""
    new, defaults = ({key: as_text(value) for key, value in flatten(each).items()} for each in (config, Config()))
    old: dict[str, Any] = {}
    for key in new:
        value: Any = before
        for part in key.split("."):
            # A setting that the run was made before has the value that changes nothing.
            value = value.get(part, defaults.get(key)) if isinstance(value, dict) else None
        old[key] = as_text(tuple(value)) if isinstance(value, list) else value
    fixed = [key for key in new if key.startswith("model.") and key not in FREE_MODEL_SETTINGS]
    differing = [
        f"{key} ({old[key]!r} then, {new[key]!r} now)" for key in (*FIXED_SETTINGS, *fixed) if old[key] != new[key]
    ]
    if _group(before, "environment").get("data_digest") != dataset.digest:
        differing.append(
            f"data.path ({old['data.path']!r} then, {new['data.path']!r} now: other images, or another keep-list; "
            f"{dataset.count:,} now)"
        )
    if differing:
        raise RunDirectoryError(
            f"{location} holds a run with other settings: {', '.join(differing)}: give the same, or another run_dir"
        )
