"""The processes that train together, as one small object that also works in a single process.

Models never import this module. All other code gets its rank, its share of a batch and its collectives from a `World`.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed
from dcgan_dist.errors import DOCTOR, ConfigError
from dcgan_dist.printing import tell


@dataclass(frozen=True)
class World:
    """This process, `rank` of `size`, among those that train together; it computes on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0, which writes the run's files and prints its progress."""
        return self.rank == 0

    def share(self, global_batch: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of a global batch: positions p with p mod size = rank."""
        return global_batch[self.rank :: self.size]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place; every rank must call it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def minimum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the minimum of `tensor` over all ranks, in place; every rank must call it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor

    def maximum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the maximum of `tensor` over all ranks, in place; every rank must call it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return every rank's `tensor`, (size, ...), on every rank; every rank must call it."""
        if self.size == 1:
            return tensor[None].clone()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def gather_texts(self, text: str) -> list[str]:
        """Return every rank's `text`, on every rank; every rank must call it."""
        if self.size == 1:
            return [text]
        content = text.encode()
        lengths = self.gather(torch.tensor([len(content)], device=self.device)).flatten().tolist()
        padded = bytearray(content.ljust(max(1, *lengths), b"\0"))
        together = self.gather(torch.frombuffer(padded, dtype=torch.uint8).to(self.device)).cpu().numpy()
        return [bytes(row[:length]).decode() for row, length in zip(together, lengths, strict=True)]

    def broadcast_text(self, text: str) -> str:
        """Return the leader's `text` on every rank; every rank must call it."""
        if self.size == 1:
            return text
        content = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8).to(self.device)
        length = self.broadcast_(torch.tensor([len(text.encode())], device=self.device))
        if not int(length):
            return ""
        if not self.is_leader:
            content = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        return bytes(self.broadcast_(content).cpu().numpy()).decode()

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give every rank the leader's `tensor`, in place; every rank must call it."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        if self.size > 1:
            dist.barrier()


def pick_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """Return the device to compute on.

    Raises:
        ConfigError: `cuda` is wanted, and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("training.device is 'cuda', but PyTorch sees no CUDA GPU here: take cpu or auto" + DOCTOR)
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def join_world(device: Literal["auto", "cpu", "cuda"] = "auto") -> World:
    """Join the processes that train together.

    Under Ray Train the process group exists already. Under `torchrun` (RANK and WORLD_SIZE in the environment) it is
    created here. Otherwise this process trains alone.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    here = pick_device(device, local_rank)
    if here.type == "cuda":
        torch.cuda.set_device(here)
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), here)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
        return World(dist.get_rank(), dist.get_world_size(), here)
    return World(0, 1, here)


def leave_world() -> None:
    """Leave the process group, if this process is in one."""
    gc.collect()  # a DDP reducer that is still alive can abort the process at its exit
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def under_torchrun() -> bool:
    """Return whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def say(world: World, message: str) -> None:
    """Print one line, on the leader only, and flush it."""
    if world.is_leader:
        tell(message)
