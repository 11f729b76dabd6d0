"""Run a function in real processes that form a gloo group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dcgan_dist.distributed import World, leave_world


def in_processes(function: Callable[..., None], folder: Path, *arguments: Any, size: int = 2) -> None:
    """Call `function(world, *arguments)` on every rank; an exception of any rank is raised here."""
    mp.spawn(_enter, args=(size, str(folder / "store"), function, arguments), nprocs=size)


def _enter(rank: int, size: int, store: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        function(World(rank, size, torch.device("cpu")), *arguments)
    finally:
        leave_world()
