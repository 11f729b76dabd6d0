"""`average`: the cost of averaging the generator's weights, as a share of the training time."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.step import PAPER, TUTORIAL, make_our_step
from dcgan_dist.config import Config, ModelConfig, TrainingConfig
from dcgan_dist.distributed import pick_device
from dcgan_dist.models import build_networks
from dcgan_dist.training.averaging import GeneratorAverage

# The network of configs/rooms.yaml, and its number of steps between two grids and checkpoints.
ROOMS = ModelConfig(image_size=64, channels=3, classes=0, ngf=24, ndf=16, kernel_size=4)
_SAVED_EVERY = 500


def bench_average(rounds: int = 5) -> list[dict[str, Any]]:
    """Measure steps and the averaging of their weights, alternating.

    Return one record for each network: the median over the rounds of the seconds of a step, the share of it for the
    update of the average, and the share of 500 steps for measuring the statistics of batch norm.
    """
    device = pick_device("auto")
    networks = {"rooms, batch 32": (ROOMS, 32, 20), "tutorial64, batch 64": (TUTORIAL, 64, 4)}
    if device.type == "cuda":
        networks["paper64, batch 128"] = (PAPER, 128, 20)
    records = []
    for name, (model, batch, steps) in networks.items():
        images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
        train = make_our_step(model, "fp32", batch, device, compiled=False)
        generator = build_networks(model)[0].to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = GeneratorAverage(
            generator, Config(model=model, training=TrainingConfig(batch_size=batch, average=0.9999))
        )
        finite = torch.ones((), device=device)
        number = 0

        def step(train: Any = train, images: torch.Tensor = images) -> None:
            train(images)

        def update(average: GeneratorAverage = average, generator: Any = generator, finite: Any = finite) -> None:
            nonlocal number
            number += 1
            average.update(generator, number, finite)

        def measure(average: GeneratorAverage = average) -> None:
            update()
            average.measure()

        times: dict[str, list[float]] = {"step": [], "update": [], "measure": []}
        for counted in [False, *[True] * rounds]:
            for what, work, count in (("step", step, steps), ("update", update, 5 * steps), ("measure", measure, 1)):
                seconds = _seconds(work, count, device) / count
                if counted:
                    times[what].append(seconds)
        shares = {
            what: median(one / whole for one, whole in zip(times[what], times["step"], strict=True))
            for what in ("update", "measure")
        }
        records.append(
            {
                "bench": "average",
                "what": name,
                "step_s": round(median(times["step"]), 5),
                "update_share_of_a_step": round(shares["update"], 5),
                "measuring_share_of_500_steps": round(shares["measure"] / _SAVED_EVERY, 5),
                "generator_bytes": sum(p.numel() * p.element_size() for p in generator.parameters()),
                "rounds": rounds,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            }
        )
    return records


def _seconds(work: Callable[[], None], count: int, device: torch.device) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
