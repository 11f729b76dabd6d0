"""`average`: steps/s with and without the average of the generator's weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch

from benchmarks.measuring import Bench, Record, alternate, repeat
from benchmarks.step import PAPER, TUTORIAL, make_our_step
from dcgan_dist.config import Config, ModelConfig, TrainingConfig
from dcgan_dist.distributed import pick_device
from dcgan_dist.models import build_networks
from dcgan_dist.training.averaging import GeneratorAverage

# The network of configs/rooms.yaml, and its number of steps between two grids and checkpoints.
ROOMS = ModelConfig(image_size=64, channels=3, classes=0, ngf=24, ndf=16, kernel_size=4)
_SAVED_EVERY = 500


def bench_average(bench: Bench) -> Iterator[Record]:
    """Measure steps, updates of the average, and its statistics of batch norm, for each network."""
    device = pick_device("auto")
    networks = {"rooms": (ROOMS, bench.size(32, 8), 20), "tutorial64": (TUTORIAL, bench.size(64, 8), 4)}
    if device.type == "cuda":
        networks["paper64"] = (PAPER, 128, 20)
    for name, (model, batch, steps) in networks.items():
        yield from _bench_network(bench, f"{name}, batch {batch}", model, batch, bench.size(steps, 2), device)


def _bench_network(
    bench: Bench, name: str, model: ModelConfig, batch: int, steps: int, device: torch.device
) -> Iterator[Record]:
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    train = make_our_step(model, "fp32", batch, device, compiled=False)
    generator = build_networks(model)[0].to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = Config(model=model, training=TrainingConfig(batch_size=batch, average=0.9999))
    average = GeneratorAverage(generator, config)
    finite, numbers = torch.ones((), device=device), count(1)

    def update() -> None:
        average.update(generator, next(numbers), finite)

    def measure() -> None:
        update()
        average.measure()

    ways = {"step": (lambda: train(images), steps), "update": (update, 5 * steps), "measure": (measure, 1)}
    turns = alternate({what: repeat(*way) for what, way in ways.items()}, bench.rounds, warm_up=1)
    step, updated, measured = ([s / ways[what][1] for s in turns[what]["s"]] for what in ways)
    plain = [1 / s for s in step]
    for what, added in (
        ("the average of the generator's weights", updated),
        (f"its statistics of batch norm every {_SAVED_EVERY} steps", [s / _SAVED_EVERY for s in measured]),
    ):
        rates = [1 / (one + other) for one, other in zip(step, added, strict=True)]
        yield bench.record(f"training with {what}, {name}", "steps/s", rates, "training without it", plain)
    mib = sum(p.numel() * p.element_size() for p in generator.parameters()) / 2**20
    yield bench.record(f"memory of the average, {name}", "MiB", [mib])
