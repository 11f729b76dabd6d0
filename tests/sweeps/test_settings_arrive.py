"""Every value that a sweep chooses reaches the optimizer or layer that its setting names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcgan_dist.command_line import build_settings
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.distributed import World
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.space import Space
from dcgan_dist.sweeps.trial import plan_trial
from dcgan_dist.training.reporter import Silent
from dcgan_dist.training.setup import batches_per_step, lr_factor, resolve_config
from dcgan_dist.training.trainer import Trainer
from tests.conftest import TINY

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"
DATA = "rooms:256"


def build(parameters: dict[str, Any]) -> Trainer:
    """Return the networks and optimizers of a trial with these parameters, made like in a trial."""
    sweep = build_settings(SweepConfig, {**TINY, "data.path": DATA, "space": {"optim.lr": {"uniform": [0.1, 0.2]}}})
    config = plan_trial(SweepPlan.of(sweep), "t0000", "nowhere", parameters).config
    dataset = open_dataset(DATA, image_size=config.model.image_size, channels=config.model.channels)
    return Trainer(resolve_config(config, dataset), World(0, 1, torch.device("cpu")), dataset, None, Silent())


def networks(training: Trainer) -> tuple[Any, Any]:
    return training.players.generator.network, training.players.discriminator.network


def of_adam(name: str, place: int | None = None) -> Callable[[Trainer], set[Any]]:
    """Return the values of an entry in all parameter groups of both optimizers."""

    def look(training: Trainer) -> set[Any]:
        groups = [group for player in (training.players.generator, training.players.discriminator)
                  for group in player.adam.param_groups]  # fmt: skip
        assert len(groups) == 2
        return {group[name] if place is None else group[name][place] for group in groups}

    return look


def lr_at_the_first_step(training: Trainer) -> set[float]:
    training.players.set_lr(lr_factor(training.config, 1))
    return of_adam("lr")(training)


def slopes(training: Trainer) -> set[float]:
    generator, discriminator = networks(training)
    layers = [module for module in discriminator.modules() if isinstance(module, nn.LeakyReLU)]
    assert len(layers) == sum(isinstance(module, nn.Conv2d) for module in discriminator.modules())
    assert not any(isinstance(module, nn.LeakyReLU) for module in generator.modules())
    return {layer.negative_slope for layer in layers}


def norms(training: Trainer) -> list[_BatchNorm]:
    return [module for network in networks(training) for module in network.modules() if isinstance(module, _BatchNorm)]


def normed_layers(training: Trainer) -> set[tuple[int, int]]:
    """Return the number of layers of G and of D with batch norm."""
    counts = [sum(isinstance(module, _BatchNorm) for module in network.modules()) for network in networks(training)]
    return {(counts[0], counts[1])}


def head_inputs(training: Trainer) -> set[int]:
    return {networks(training)[1].head.in_features}


def drawn_z(training: Trainer) -> set[tuple[int, bool]]:
    """Return the length of the z of a step, and whether all values are in [-1, 1]; check that G accepts them."""
    z, y = training.draws.noise("train", 1)
    assert training.players.generator.network(z, y).shape == (8, 3, 16, 16)
    return {(z.shape[1], bool((z.abs() <= 1).all()))}


def first_batch(training: Trainer) -> set[int]:
    training.feed.open(0, 1)
    try:
        (batch,) = training.feed.take()
    finally:
        training.feed.close()
    return {len(batch.images)}


def autocast_type(training: Trainer) -> set[torch.dtype]:
    with training.players.autocast():
        return {torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype}


CHOSEN: list[tuple[str, Any, Callable[[Trainer], set[Any]], Any]] = [
    ("optim.lr", 3e-3, lr_at_the_first_step, 3e-3),
    ("optim.beta1", 0.77, of_adam("betas", 0), 0.77),
    ("optim.beta2", 0.95, of_adam("betas", 1), 0.95),
    ("optim.eps", 1e-5, of_adam("eps"), 1e-5),
    ("optim.l2", 1e-4, of_adam("weight_decay"), 1e-4),
    ("optim.decay", 1.0, lambda t: {lr_factor(t.config, step) for step in (13,)}, 0.5),
    ("model.slope", 0.37, slopes, 0.37),
    ("model.batch_norm", "paper", normed_layers, (2, 1)),
    ("model.batch_norm", "all", normed_layers, (3, 2)),
    ("model.batch_norm", "none", normed_layers, (0, 0)),
    ("model.norm_momentum", 0.42, lambda t: {norm.momentum for norm in norms(t)}, 0.42),
    ("model.norm_eps", 1e-3, lambda t: {norm.eps for norm in norms(t)}, 1e-3),
    ("model.head", "flatten", head_inputs, 8 * 16),
    ("model.head", "average_pool", head_inputs, 8),
    ("model.ngf", 6, lambda t: {networks(t)[0].layers[0].conv.out_channels}, 6),
    ("model.ndf", 6, lambda t: {networks(t)[1].layers[0].conv.out_channels}, 6),
    ("model.kernel_size", 3, lambda t: {m.kernel_size for n in networks(t) for m in n.modules()
                                        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}, (3, 3)),
    ("model.z_dim", 5, drawn_z, (5, True)),
    ("model.z_distribution", "normal", drawn_z, (8, False)),
    ("training.updates", "released", lambda t: {batches_per_step(t.config)}, 2),
    ("training.batch_size", 12, first_batch, 12),
    ("training.precision", "bf16", autocast_type, torch.bfloat16),
    ("training.precision", "fp64", lambda t: {p.dtype for n in networks(t) for p in n.parameters()}, torch.float64),
    ("seed", 5, lambda t: {torch.equal(t.samples.z, build({}).samples.z)}, False),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "look", "expected"), CHOSEN, ids=[f"{key}={v}" for key, v, *_ in CHOSEN])
def test_a_chosen_value_reaches_what_it_names(
    key: str, value: Any, look: Callable[[Trainer], set[Any]], expected: Any
) -> None:
    parameters = Space.parse({key: {"choice": [value]}}).sample(seed=0, number=0)
    assert parameters == {key: value}
    assert look(build({})) != {expected} or key in ("model.batch_norm", "model.head"), "the default has it already"
    assert look(build(parameters)) == {expected}


def test_drawn_values_reach_the_optimizer_as_drawn() -> None:
    space = Space.parse({"optim.lr": {"loguniform": ["1e-5", 1e-1]}, "optim.beta1": {"uniform": [0, 0.99]}})
    parameters = space.sample(seed=3, number=7)
    training = build(parameters)
    assert lr_at_the_first_step(training) == {parameters["optim.lr"]}
    assert of_adam("betas", 0)(training) == {parameters["optim.beta1"]}


def test_all_settings_that_the_products_sweeps_search_are_tested_here() -> None:
    looked_at = {key for key, *_ in CHOSEN}
    for path in sorted(SWEEPS.glob("*.yaml")):
        space = Space.parse(yaml.safe_load(path.read_text())["space"])
        assert set(space.keys) <= looked_at, path.name
