"""`step`: images/s of our training step and of the plain loop of the PyTorch example, measured alternating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Bench, Record, alternate, repeat
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


def bench_step(bench: Bench) -> Iterator[Record]:
    """Measure the tutorial network at each precision; on a GPU also compiled, and the paper's network."""
    device = pick_device("auto")
    batch, steps = bench.size(64, 8), bench.size(50 if device.type == "cuda" else 4, 1)
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    plain_images = to_real(images, (-1.0, 1.0), torch.float32).contiguous()
    plain = {name: f"the plain loop of the PyTorch example, {name}" for name in ("fp32", "bf16")}
    loops: dict[str, tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = {
        plain["fp32"]: (make_plain_loop(device, batch, bfloat16=False), plain_images),
        plain["bf16"]: (make_plain_loop(device, batch, bfloat16=True), plain_images),
        "fp32": (make_our_step(TUTORIAL, "fp32", batch, device, compiled=False), images),
        "bf16": (make_our_step(TUTORIAL, "bf16", batch, device, compiled=False), images),
    }
    if device.type == "cuda":
        loops["bf16 compiled"] = (make_our_step(TUTORIAL, "bf16", batch, device, compiled=True), images)
    ways = {name: repeat(partial(step, real), steps, batch) for name, (step, real) in loops.items()}
    turns = alternate(ways, bench.rounds, warm_up=1)
    for name in [name for name in loops if name not in plain.values()]:
        for baseline in dict.fromkeys((plain["fp32"], plain[name[:4]])):
            yield bench.compare(f"a training step of tutorial64, batch {batch}, {name}", turns, name, baseline)
    if device.type == "cuda":
        yield from _bench_paper_net(bench, device)


def _bench_paper_net(bench: Bench, device: torch.device) -> Iterator[Record]:
    """Measure the paper's 64x64 network in bf16: images/s, and its arithmetic compared with that of matrix products."""
    batch, steps, side, products = 128, bench.size(30, 3), 8192, 20
    images = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8, device=device)
    step = partial(make_our_step(PAPER, "bf16", batch, device, compiled=True), images)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    ways = {"step": repeat(step, steps, batch), "product": repeat(lambda: left @ right, products)}
    turns = alternate(ways, bench.rounds, warm_up=1)
    with FlopCounterMode(display=False) as counter:
        step()
    what = f"a training step of the paper's 64x64 network, batch {batch}, bf16 compiled"
    yield bench.record(what, "images/s", turns["step"]["images/s"])
    done = {"step": counter.get_total_flops() * steps / 1e12, "product": 2 * side**3 * products / 1e12}
    rates = {name: [done[name] / s for s in turns[name]["s"]] for name in ways}
    yield bench.record(what, "TFLOP/s", rates["step"], f"bf16 matrix products of {side}", rates["product"])
