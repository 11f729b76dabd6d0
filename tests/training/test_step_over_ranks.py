"""The step on two real ranks against one process with the whole batch."""

import pytest
import torch

from dcgan_dist.config import Config, OptimConfig, TrainingConfig
from dcgan_dist.distributed import World
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.batch_norm import synchronise
from dcgan_dist.training.checkpoint import training_tensors
from dcgan_dist.training.step import Players
from tests.processes import in_processes
from tests.training.test_step import BATCH, MODEL, make_batch, snapshot


def make_players(world: World, *, synchronised: bool) -> Players:
    config = Config(
        model=MODEL,
        optim=OptimConfig(lr=2e-3),
        training=TrainingConfig(batch_size=BATCH, precision="fp64", sync_batch_norm=synchronised),
    )
    networks = []
    for seed, network in enumerate(build_networks(MODEL)):
        initialise(network, MODEL, seed)
        network.double()
        networks.append(synchronise(network, world) if synchronised else network)
    return Players(*networks, config, world)


def take_step(players: Players, real: torch.Tensor, z: torch.Tensor, count: int) -> None:
    y_real, y = real.new_zeros(len(real), 0), real.new_zeros(len(z), 0)
    players.begin()
    fake = players.generate(z, y)
    players.update_discriminator(real, y_real, fake.detach(), y, torch.tensor(float(count)))
    players.update_generator(fake, y)
    players.end(torch.tensor(len(real) / count, dtype=torch.float64))


def compare_with_one_process(world, first_rows):
    alone = make_players(World(0, 1, torch.device("cpu")), synchronised=True)
    together = make_players(world, synchronised=True)
    for step in range(3):
        real, z = make_batch(step)
        take_step(alone, real, z, BATCH)
        rows = slice(0, first_rows) if world.rank == 0 else slice(first_rows, None)
        take_step(together, real[rows], world.share(z), BATCH)
    for file, tensors in training_tensors(alone).items():
        for name, value in tensors.items():
            ours = training_tensors(together)[file][name]
            torch.testing.assert_close(ours, value, rtol=0, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    sums = world.sum_(together.tally.sums.clone())
    torch.testing.assert_close(sums, alone.tally.sums, rtol=0, atol=1e-10)


@pytest.mark.parametrize("first_rows", [3, 5, 6])
def test_synchronised_ranks_with_any_share_of_the_real_images_equal_one_process(tmp_path, first_rows):
    in_processes(compare_with_one_process, tmp_path, first_rows)


def step_with_an_empty_rank(world):
    players = make_players(world, synchronised=False)
    real, z = make_batch(0)
    take_step(players, real if world.rank == 0 else real[:0], world.share(z), BATCH)
    assert float(players.finite) == 1
    for tensors in training_tensors(players).values():
        for name, value in tensors.items():
            if name.endswith("num_batches_tracked"):
                continue  # how often a rank's layers ran, which nothing depends on
            assert torch.equal(value, world.broadcast_(value.clone())), name
    assert world.sum_(players.tally.sums.clone())[0] == BATCH


def test_a_rank_without_real_images_joins_every_collective_and_stays_a_replica(tmp_path):
    in_processes(step_with_an_empty_rank, tmp_path)


def spoil_one_rank(world):
    players = make_players(world, synchronised=False)
    real, z = make_batch(0)
    take_step(players, world.share(real), world.share(z), BATCH)
    before = snapshot(players)
    spoiled = world.share(real).clone()
    if world.rank == 1:
        spoiled[0, 0, 0, 0] = float("nan")
    take_step(players, spoiled, world.share(z), BATCH)
    assert float(players.finite) == 0
    after = snapshot(players)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_non_finite_value_on_one_rank_masks_the_update_on_all(tmp_path):
    in_processes(spoil_one_rank, tmp_path)
