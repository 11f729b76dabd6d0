"""The step against plain PyTorch, in float64 where the two stay equal."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from dcgan_dist.config import Config, ModelConfig, OptimConfig, TrainingConfig
from dcgan_dist.distributed import World
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.checkpoint import training_tensors
from dcgan_dist.training.step import Players

MODEL = ModelConfig(image_size=16, channels=3, classes=0, z_dim=8, ngf=4, ndf=4, norm_gain_init="released")
BATCH = 6


def make_players(
    l2: float = 0.0, dtype: torch.dtype = torch.float64, precision: str = "fp64", updates: str = "paper"
) -> Players:
    config = Config(
        model=MODEL,
        optim=OptimConfig(l2=l2, lr=2e-3),
        training=TrainingConfig(batch_size=BATCH, precision=precision, updates=updates),
    )
    networks = build_networks(MODEL)
    for seed, network in enumerate(networks):
        initialise(network, MODEL, seed)
        network.to(dtype)
    return Players(*networks, config, World(0, 1, torch.device("cpu")))


def make_batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    real = torch.rand(BATCH, 3, 16, 16, generator=random, dtype=torch.float64) * 2 - 1
    z = torch.rand(BATCH, 8, generator=random, dtype=torch.float64) * 2 - 1
    return real.to(dtype), z.to(dtype)


def take_step(players: Players, real: torch.Tensor, z: torch.Tensor) -> None:
    y, count = real.new_zeros(len(real), 0), torch.tensor(float(len(real)))
    players.begin()
    if players.config.training.updates == "released":
        players.update_generator(players.generate(z, y), y)
        players.update_discriminator(real, y, players.generate(z, y).detach(), y, count)
    else:
        fake = players.generate(z, y)
        players.update_discriminator(real, y, fake.detach(), y, count)
        players.update_generator(fake, y)
    players.end(torch.ones(()))


def plain_adam(parameters: list[nn.Parameter], l2: float):
    """Adam as written in Kingma and Ba (2014), algorithm 1, with the L2 penalty in the gradient."""
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    steps = 0

    def update(gradients: list[torch.Tensor]) -> None:
        nonlocal steps
        steps += 1
        for p, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
            g = gradient + l2 * p.detach()
            m.mul_(0.5).add_(0.5 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            step = m / (1 - 0.5**steps) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)
            p.data.sub_(2e-3 * step)

    return update


@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_ten_steps_equal_the_algorithm_written_out(l2):
    players = make_players(l2)
    generator, discriminator = (copy.deepcopy(p.network) for p in (players.generator, players.discriminator))
    update_g, update_d = (plain_adam(list(n.parameters()), l2) for n in (generator, discriminator))
    ones, zeros = torch.ones(BATCH, dtype=torch.float64), torch.zeros(BATCH, dtype=torch.float64)
    for step in range(10):
        real, z = make_batch(step)
        take_step(players, real, z)
        y = real.new_zeros(BATCH, 0)
        fake = generator(z, y)
        loss_d = cross_entropy(discriminator(real, y), ones) + cross_entropy(discriminator(fake.detach(), y), zeros)
        update_d(list(torch.autograd.grad(loss_d, list(discriminator.parameters()))))
        loss_g = cross_entropy(discriminator(fake, y), ones)
        update_g(list(torch.autograd.grad(loss_g, list(generator.parameters()))))
    for ours, plain in ((players.generator, generator), (players.discriminator, discriminator)):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.network.state_dict()[name], value, rtol=0, atol=1e-11)


def test_tally_holds_what_the_discriminator_thought_before_its_update():
    players = make_players()
    discriminator = copy.deepcopy(players.discriminator.network)
    real, z = make_batch(0)
    y = real.new_zeros(BATCH, 0)
    with torch.no_grad():
        fake = copy.deepcopy(players.generator.network)(z, y)
        d_real, d_fake = discriminator(real, y).sigmoid(), discriminator(fake, y).sigmoid()
    take_step(players, real, z)
    expected = [
        BATCH, float(-d_real.log().sum()), float(d_real.sum()),
        BATCH, float(-(1 - d_fake).log().sum()), float(d_fake.sum()), float(-d_fake.log().sum()),
    ]  # fmt: skip
    assert players.tally.sums.tolist() == pytest.approx(expected)


def snapshot(players: Players) -> dict[str, torch.Tensor]:
    return {f"{f}/{k}": v.clone() for f, file in training_tensors(players).items() for k, v in file.items()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_image_changes_nothing_ever_after(bad):
    players = make_players()
    take_step(players, *make_batch(0))
    before = snapshot(players)
    real, z = make_batch(1)
    real[2, 0, 3, 3] = bad
    take_step(players, real, z)
    take_step(players, *make_batch(2))
    assert float(players.finite) == 0
    assert int(players.finite_steps) == 1
    after = snapshot(players)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(("updates", "second"), [("paper", "generator"), ("released", "discriminator")])
def test_a_non_finite_second_update_takes_the_first_one_back(updates, second):
    players = make_players(updates=updates)
    take_step(players, *make_batch(0))
    before = snapshot(players)
    weight = next(getattr(players, second).network.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    take_step(players, *make_batch(1))
    assert float(players.finite) == 0
    after = snapshot(players)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_generator_update_leaves_the_discriminators_weights_and_gradients_alone():
    players = make_players()
    real, z = make_batch(0)
    y = real.new_zeros(BATCH, 0)
    before = [p.clone() for p in players.discriminator.network.parameters()]
    players.begin()
    players.update_generator(players.generate(z, y), y)
    for parameter, was in zip(players.discriminator.network.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.grad is None
        assert parameter.requires_grad


def test_bfloat16_keeps_float32_weights_and_takes_nearly_the_same_first_step():
    exact, rough = (make_players(dtype=torch.float32, precision=precision) for precision in ("fp32", "bf16"))
    for players in (exact, rough):
        take_step(players, *make_batch(0, torch.float32))
    sums = [players.tally.sums for players in (exact, rough)]
    assert not torch.equal(*sums)
    torch.testing.assert_close(sums[1], sums[0], rtol=0.02, atol=0)
    assert {p.dtype for p in rough.generator.network.parameters()} == {torch.float32}
