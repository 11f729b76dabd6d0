"""The first training step of a fresh process: one digest of parameters and Adam's state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.draws import draw_z, one_hot
from dcgan_dist.training.step import Players
from tests.stress.forked import in_child, settle
from tests.stress.operators import ramp

BATCH = 8
SEED = 7


def _first_step(step: Players, config: Config, mended: bool) -> str:
    if mended:
        settle()
    model = config.model
    real = ramp(BATCH, model.channels or 3, model.image_size or 64, model.image_size or 64) / 2
    real = real.to(memory_format=torch.channels_last)
    y = one_hot(torch.arange(BATCH) % max(model.classes or 0, 1), model.classes or 0)
    z = draw_z(SEED, "train", 1, BATCH, model.z_dim, model.z_distribution)
    units = step.discriminator.network.dropout_units
    draws = [ramp(BATCH, units) / 4 + 0.5 if units else None for _ in range(3)]
    step.begin()
    fake = step.generate(z, y)
    step.update_discriminator(real, y, fake.detach(), y, torch.tensor(float(BATCH)), draws[0], draws[1])
    step.update_generator(fake, y, draws[2])
    step.end(torch.tensor(1.0))
    digest = hashlib.md5()
    for player in (step.generator, step.discriminator):
        for tensor in [*player.network.state_dict().values(), *player.adam_tensors().values()]:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def trials(config_file: Path, precision: str, without_mending: bool) -> Iterator[str]:
    """Yield the digest after the first step of one fresh process each."""
    torch.set_num_threads(1)
    config = parse_settings(
        Config,
        [f"--config={config_file}", f"--training.precision={precision}", f"--training.batch_size={BATCH}"],
        "",
        "",
    )
    networks = build_networks(config.model)
    for number, network in enumerate(networks):
        initialise(network, config.model, SEED + number)
        network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = Players(*networks, config, World(0, 1, torch.device("cpu")))
    while True:
        yield in_child(lambda: _first_step(step, config, not without_mending))
