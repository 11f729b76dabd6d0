"""Batch norm across processes: synchronised statistics, and running averages that are the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcgan_dist.distributed import World


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(_ctx: object, local: torch.Tensor) -> torch.Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the images of all ranks together, for devices that torch's SyncBatchNorm refuses (CPU).

    Each rank is weighted by the number of its values; a rank with fewer images, or none, takes part too.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (n, channels, ...), got {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (n, channels, ...); in evaluation, plain batch norm without any collective."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        # bfloat16 sums would lose the small differences that a variance is made of.
        x = input if input.dtype == torch.float64 else input.float()
        others = [0, *range(2, x.dim())]
        held = x.new_full((1,), x.numel() / x.shape[1])
        sums = torch.cat([x.sum(others), x.square().sum(others), held])
        totals: torch.Tensor = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
        channels = x.shape[1]
        count = totals[-1].detach()
        mean = totals[:channels] / count
        variance = (totals[channels : 2 * channels] / count - mean.square()).clamp_min(0)
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = [1, channels, *([1] * (x.dim() - 2))]
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)


def synchronise(network: nn.Module, world: World) -> nn.Module:
    """Replace every batch norm of a network, in place, by one with statistics over all ranks; return the network."""
    if world.size == 1:
        return network
    if world.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            affine, tracks = child.affine, child.track_running_stats
            new = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum, affine, tracks)
            like = next(iter(child.state_dict().values()))
            setattr(network, name, new.to(like.device, like.dtype))
            new.load_state_dict(child.state_dict())
        else:
            synchronise(child, world)
    return network


@contextmanager
def evaluation(network: nn.Module, *, batch_statistics: bool) -> Iterator[None]:
    """Put a network into evaluation within the block, with running averages or with each batch's own statistics.

    Nothing of the network changes. No collective is called, so one rank can sample alone.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    averages = [(layer.running_mean, layer.running_var) for layer in layers]
    was_training = network.training
    network.eval()
    if batch_statistics:
        for layer in layers:  # without running averages, evaluation normalises by the batch
            layer.running_mean = layer.running_var = None
    try:
        yield
    finally:
        for layer, (mean, variance) in zip(layers, averages, strict=True):
            layer.running_mean, layer.running_var = mean, variance
        network.train(was_training)


class RunningStatistics:
    """The batch-norm buffers of a network: the same on every rank, and untouched by a step that was not finite.

    Call `remember` before a step and `settle` after it. `settle` averages the buffers over the ranks, or restores those
    from before the step if it was not finite. Neither waits for the device.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self.world = world
        self.buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self.counters = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        self.remembered = torch.empty(0)
        self.remembered_counters: list[torch.Tensor] = []

    def _flat(self) -> torch.Tensor:
        return torch.cat([buffer.reshape(-1) for buffer in self.buffers])

    def remember(self) -> None:
        """Keep a copy of the buffers."""
        if self.buffers:
            self.remembered = self._flat()
            self.remembered_counters = [counter.clone() for counter in self.counters]

    def settle(self, finite: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Average the buffers over ranks if the step was finite, else restore them.

        Args:
            finite: () bool, the same on all ranks.
            weight: () of this rank; all weights sum to 1. None weights ranks equally.
        """
        if not self.buffers:
            return
        flat = self._flat()
        if self.world.size > 1:
            flat = self.world.sum_(flat * weight if weight is not None else flat / self.world.size)
        flat = torch.where(finite, flat, self.remembered)
        sizes = [buffer.numel() for buffer in self.buffers]
        for buffer, value in zip(self.buffers, flat.split(sizes), strict=True):
            buffer.copy_(value.view_as(buffer))
        for counter, before in zip(self.counters, self.remembered_counters, strict=True):
            counter.copy_(torch.where(finite, counter, before))
