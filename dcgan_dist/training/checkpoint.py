"""What a checkpoint holds: tensors in safetensors files. `runs.writer` owns its folder and digests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dcgan_dist.errors import RunDirectoryError, StorageError
from dcgan_dist.training.averaging import GeneratorAverage
from dcgan_dist.training.step import AdversarialStep

PLAYERS = ("generator", "discriminator")
AVERAGE = "generator_average"
AVERAGE_FILE = f"{AVERAGE}.safetensors"


def training_tensors(
    step: AdversarialStep, average: GeneratorAverage | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors that a run goes on from, by file and name: networks with buffers, Adam states, the average.

    They are the live ones: copying into them restores the run.
    """
    files = {name: dict(getattr(step, name).network.state_dict()) for name in PLAYERS}
    files["optim"] = {
        f"{name}/{key}": value for name in PLAYERS for key, value in getattr(step, name).adam_tensors().items()
    }
    if average is not None:
        files[AVERAGE] = dict(average.network.state_dict())
    return files


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
