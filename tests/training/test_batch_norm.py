"""Batch norm over ranks: two real processes against one with the whole batch."""

import pytest
import torch
from torch import nn

from dcgan_dist.training.batch_norm import RunningStatistics, evaluation, synchronise
from tests.processes import in_processes

ROWS = torch.randn(7, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 2
WEIGHTS = torch.randn(7, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def make_layer() -> nn.Sequential:
    layer = nn.BatchNorm2d(3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.5, -2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    return nn.Sequential(layer)


def check_against_one_process(world, first_rows):
    rows = slice(0, first_rows) if world.rank == 0 else slice(first_rows, None)
    alone = make_layer()
    whole = ROWS.clone().requires_grad_()
    (alone(whole) * WEIGHTS).sum().backward()
    together = synchronise(make_layer(), world)
    mine = ROWS[rows].clone().requires_grad_()
    output = together(mine)
    (output * WEIGHTS[rows]).sum().backward()
    torch.testing.assert_close(output, alone(ROWS)[rows], rtol=0, atol=1e-12)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad, whole.grad[rows], rtol=0, atol=1e-12)
    gradient = world.sum_(together[0].weight.grad.clone())
    torch.testing.assert_close(gradient, alone[0].weight.grad, rtol=0, atol=1e-11)
    alone = make_layer()
    alone(ROWS)
    torch.testing.assert_close(together[0].running_mean, alone[0].running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(together[0].running_var, alone[0].running_var, rtol=0, atol=1e-12)


@pytest.mark.parametrize("first_rows", [4, 1, 0])
def test_synchronised_over_two_ranks_equals_one_process_also_with_uneven_or_empty_shares(tmp_path, first_rows):
    in_processes(check_against_one_process, tmp_path, first_rows)


def check_running_averages(world):
    layer = make_layer()
    statistics = RunningStatistics(layer, world)
    statistics.remember()
    mine = ROWS[:3] if world.rank == 0 else ROWS[3:]
    layer(mine)
    share = torch.tensor(len(mine) / len(ROWS), dtype=torch.float64)
    statistics.settle(torch.tensor(True), share)
    expected = (3 * ROWS[:3].mean([0, 2, 3]) + 4 * ROWS[3:].mean([0, 2, 3])) / 7 * 0.1
    torch.testing.assert_close(layer[0].running_mean, expected, rtol=0, atol=1e-12)
    kept = layer[0].running_mean.clone()
    statistics.remember()
    layer(mine)
    statistics.settle(torch.tensor(False), share)
    assert torch.equal(layer[0].running_mean, kept)
    assert int(layer[0].num_batches_tracked) == 1


def test_running_averages_are_reduced_by_the_ranks_true_shares_and_put_back_when_masked(tmp_path):
    in_processes(check_running_averages, tmp_path)


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_evaluation_leaves_the_network_as_it_was(batch_statistics):
    layer = make_layer()
    layer(ROWS)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with evaluation(layer, batch_statistics=batch_statistics):
        output = layer(ROWS[:2])
    assert layer.training
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    centred = (output.mean([0, 2, 3]) - layer[0].bias).abs().max() < 1e-6
    assert bool(centred) == batch_statistics
