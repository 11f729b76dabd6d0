"""`bench step`: images/s of our training step beside the plain loop of the PyTorch example, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch

from dcgan_dist.benchmarks.plain_loop import make_plain_loop
from dcgan_dist.config import Config, ModelConfig, TrainingConfig
from dcgan_dist.distributed import World, pick_device
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.draws import draw_z
from dcgan_dist.training.sampling import to_real
from dcgan_dist.training.step import AdversarialStep

TUTORIAL = ModelConfig(
    image_size=64, channels=3, classes=0, ngf=64, ndf=64, kernel_size=4, z_distribution="normal",
    norm_gain_init="released",
)  # fmt: skip
PAPER = ModelConfig(image_size=64, channels=3, classes=0, ngf=128, ndf=128, kernel_size=5)


def make_our_step(
    model: ModelConfig, precision: Literal["fp32", "bf16"], batch: int, device: torch.device, *, compiled: bool
) -> Callable[[torch.Tensor], None]:
    """Return a function that performs one step of `training/` on uint8 images (batch, S, S, C)."""
    config = Config(model=model, training=TrainingConfig(batch_size=batch, precision=precision))
    world = World(0, 1, device)
    generator, discriminator = build_networks(model)
    for seed, network in enumerate((generator, discriminator)):
        initialise(network, model, seed)
        network.to(device).to(memory_format=torch.channels_last)
        if compiled:
            network.compile()
    players = AdversarialStep(generator, discriminator, config, world)
    count, one = torch.tensor(float(batch), device=device), torch.ones((), device=device)
    y = torch.zeros(batch, 0, device=device)
    done = 0

    def step(images: torch.Tensor) -> None:
        nonlocal done
        done += 1
        real = to_real(images, (-1.0, 1.0), torch.float32)
        z = draw_z(0, "train", done, batch, model.z_dim, model.z_distribution).to(device)
        players.begin()
        fake = players.generate(z, y)
        players.update_discriminator(real, y, fake.detach(), y, count)
        players.update_generator(fake, y)
        players.end(one)

    return step


def _seconds(step: Callable[[torch.Tensor], Any], images: torch.Tensor, steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        step(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def bench_step(rounds: int = 7, batch: int = 64) -> list[dict[str, Any]]:
    """Measure the tutorial network at each precision; on a GPU also compiled, and the paper's network.

    Returns one record a figure: images/s of both (medians over the rounds) and the median of the rounds' ratios.
    """
    device = pick_device("auto")
    steps = 50 if device.type == "cuda" else 4
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    plain_images = to_real(images, (-1.0, 1.0), torch.float32).contiguous()
    plain = make_plain_loop(device, batch, bfloat16=False)
    ours: dict[str, Callable[[torch.Tensor], Any]] = {
        "fp32": make_our_step(TUTORIAL, "fp32", batch, device, compiled=False),
        "bf16": make_our_step(TUTORIAL, "bf16", batch, device, compiled=False),
    }
    if device.type == "cuda":
        ours["bf16 compiled"] = make_our_step(TUTORIAL, "bf16", batch, device, compiled=True)
    _seconds(plain, plain_images, 3)
    for step in ours.values():
        _seconds(step, images, 3)
    times: dict[str, list[float]] = {name: [] for name in ("plain", *ours)}
    for _ in range(rounds):
        times["plain"].append(_seconds(plain, plain_images, steps))
        for name, step in ours.items():
            times[name].append(_seconds(step, images, steps))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    records = []
    for name in ours:
        ratios = [base / mine for base, mine in zip(times["plain"], times[name], strict=True)]
        records.append(
            {
                "bench": "step",
                "what": f"tutorial64, batch {batch}, {name}",
                "images_per_s": round(batch * steps / median(times[name]), 1),
                "plain_loop_images_per_s": round(batch * steps / median(times["plain"]), 1),
                "times_the_plain_loop": round(median(ratios), 3),
                "rounds": rounds,
                "device": where,
            }
        )
    return records
