"""`step`: images/s of our training step and of the plain loop of the PyTorch example, measured alternating."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_loop import make_plain_loop
from dcgan_dist.config import Config, ModelConfig, TrainingConfig
from dcgan_dist.distributed import World, pick_device
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.draws import draw_z
from dcgan_dist.training.sampling import to_real
from dcgan_dist.training.step import Players

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
        network.to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            network.compile()
    players = Players(generator, discriminator, config, world)
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

    Return one record per figure: images/s of both (medians over the rounds), and the medians of the rounds' ratios to
    the plain loop in float32 and in the same precision.
    """
    device = pick_device("auto")
    steps = 50 if device.type == "cuda" else 4
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    plain_images = to_real(images, (-1.0, 1.0), torch.float32).contiguous()
    loops: dict[str, tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = {
        "plain fp32": (make_plain_loop(device, batch, bfloat16=False), plain_images),
        "plain bf16": (make_plain_loop(device, batch, bfloat16=True), plain_images),
        "fp32": (make_our_step(TUTORIAL, "fp32", batch, device, compiled=False), images),
        "bf16": (make_our_step(TUTORIAL, "bf16", batch, device, compiled=False), images),
    }
    if device.type == "cuda":
        loops["bf16 compiled"] = (make_our_step(TUTORIAL, "bf16", batch, device, compiled=True), images)
    for step, real in loops.values():
        _seconds(step, real, 3)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, (step, real) in loops.items():
            times[name].append(_seconds(step, real, steps))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    records = []
    for name in loops:
        if name.startswith("plain"):
            continue
        records.append(
            {
                "bench": "step",
                "what": f"tutorial64, batch {batch}, {name}",
                "images_per_s": _rate(times[name], batch * steps),
                "plain_loop_images_per_s": _rate(times["plain fp32"], batch * steps),
                "times_the_plain_loop": _ratio(times["plain fp32"], times[name]),
                "times_the_plain_loop_in_the_same_precision": _ratio(times[f"plain {name[:4]}"], times[name]),
                "rounds": rounds,
                "device": where,
            }
        )
    if device.type == "cuda":
        records.append(_bench_paper_net(device, rounds, where))
    return records


def _rate(seconds: list[float], images: int) -> float:
    return round(images / median(seconds), 1)


def _ratio(base: list[float], ours: list[float]) -> float:
    return round(median(slow / fast for slow, fast in zip(base, ours, strict=True)), 3)


def _bench_paper_net(device: torch.device, rounds: int, where: str) -> dict[str, Any]:
    """Measure the paper's 64x64 network in bf16: images/s, and the share of the measured rate of matrix products."""
    batch, steps = 128, 30
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    step = make_our_step(PAPER, "bf16", batch, device, compiled=True)
    _seconds(step, images, 5)
    with FlopCounterMode(display=False) as counter:
        step(images)
    operations = counter.get_total_flops()
    seconds = [_seconds(step, images, steps) for _ in range(rounds)]
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply(_images: torch.Tensor) -> torch.Tensor:
        return left @ right

    _seconds(multiply, images, 5)
    peak = 2 * side**3 * 20 / median(_seconds(multiply, images, 20) for _ in range(rounds))
    return {
        "bench": "step",
        "what": f"paper 64x64, batch {batch}, bf16 compiled",
        "images_per_s": _rate(seconds, batch * steps),
        "tflop_per_s": round(operations * steps / median(seconds) / 1e12, 1),
        "share_of_measured_matmul_peak": round(operations * steps / median(seconds) / peak, 3),
        "rounds": rounds,
        "device": where,
    }
