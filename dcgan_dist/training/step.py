"""One update of the discriminator and one of the generator (the body of the paper's algorithm).

This file decides which network's gradients are on, and keeps non-finite values out of the weights. `trainer.py` is the
loop around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcgan_dist.config import Config
from dcgan_dist.distributed import World
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.training.averaging import GeneratorAverage
from dcgan_dist.training.batch_norm import RunningStatistics, synchronise
from dcgan_dist.training.losses import fake_loss, generator_loss, real_loss
from dcgan_dist.training.setup import dtype_of


@dataclass
class Player:
    """A network and what trains it: `network` itself, `wrapped` in DDP if there are several ranks, and Adam."""

    network: nn.Module
    wrapped: nn.Module
    adam: torch.optim.Adam
    statistics: RunningStatistics

    @classmethod
    def make(cls, network: nn.Module, config: Config, world: World) -> Player:
        """Make the player of a network that is on its device already."""
        optim = config.optim
        adam = torch.optim.Adam(
            network.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.l2,  # Adam's weight decay is the released code's: l2 * parameter added to its gradient
            fused=True,
        )
        # As Adam's first step would do it, so that a checkpoint can be loaded before.
        for parameter in network.parameters():
            adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        wrapped: nn.Module = network
        if world.size > 1:
            # Buffers are averaged in `RunningStatistics`; broadcasting them between the two forward passes of a
            # discriminator step would change them in place under autograd's feet.
            devices = [world.device] if world.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch 2.13 renames the argument, older versions have only this name
                warnings.simplefilter("ignore", FutureWarning)
                wrapped = DistributedDataParallel(
                    network,
                    device_ids=devices,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    # There are none. But otherwise DDP lays out its buckets anew after the first step of a process, and
                    # from three ranks on the last bits of a sum depend on where in a bucket it stands: a resumed run
                    # would not end equal to one that was left alone.
                    find_unused_parameters=world.device.type == "cpu",
                )
        return cls(network, wrapped, adam, RunningStatistics(network, world))

    def adam_tensors(self) -> dict[str, torch.Tensor]:
        """Return Adam's live state by `parameter/moment`."""
        return {
            f"{name}/{moment}": value
            for name, parameter in self.network.named_parameters()
            for moment, value in self.adam.state[parameter].items()
        }

    def local_backward(self) -> AbstractContextManager[None]:
        """Context in which a backward pass keeps its gradients on this rank; the next pass sends the sum."""
        if isinstance(self.wrapped, DistributedDataParallel):
            context: AbstractContextManager[None] = self.wrapped.no_sync()
            return context
        return nullcontext()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context in which gradients flow through the network but none are computed for its weights."""
        self.network.requires_grad_(False)
        try:
            yield
        finally:
            self.network.requires_grad_(True)


class Means(NamedTuple):
    """Means over images; D's loss is the sum of its means on real and on generated images."""

    loss_d: float
    loss_g: float
    d_real: float
    d_fake: float


@dataclass
class Tally:
    """Sums over images since the last row, kept on the device so that no step waits for them.

    Attributes:
        sums: float64 (7,): real images, their loss and D(x); generated images, their loss, D(G(z)) and G's loss.
    """

    sums: torch.Tensor

    @classmethod
    def zero(cls, device: torch.device) -> Tally:
        """Return an empty tally."""
        return cls(torch.zeros(7, dtype=torch.float64, device=device))

    def means(self, world: World) -> Means:
        """Return the means over the images of all ranks, and start again; every rank must call it."""
        real, loss_real, d_real, fake, loss_fake, d_fake, loss_g = world.sum_(self.sums.clone()).tolist()
        self.sums.zero_()
        real, fake = max(real, 1.0), max(fake, 1.0)
        return Means(loss_real / real + loss_fake / fake, loss_g / fake, d_real / real, d_fake / fake)

    def add(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> None:
        """Count one discriminator step, from its logits (n,) before the update."""
        real, fake = real_logits.detach().double(), fake_logits.detach().double()
        self.sums += torch.stack(
            [
                torch.full_like(self.sums[0], len(real)),
                real_loss(real).sum(),
                real.sigmoid().sum(),
                torch.full_like(self.sums[0], len(fake)),
                fake_loss(fake).sum(),
                fake.sigmoid().sum(),
                generator_loss(fake).sum(),
            ]
        )


class Players:
    """The generator, the discriminator, and one update of each.

    After any non-finite loss or gradient on any rank, `finite` is 0 on every rank and no update changes parameters,
    Adam's state or batch-norm buffers again; nothing of that waits for the device.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.generator = Player.make(generator, config, world)
        self.discriminator = Player.make(discriminator, config, world)
        self.dropout_units: int = discriminator.dropout_units  # type: ignore[assignment]
        self.image_range: tuple[float, float] = generator.image_range  # type: ignore[assignment]
        self.finite = torch.ones((), device=world.device)
        self.finite_steps = torch.zeros((), device=world.device)
        self.tally = Tally.zero(world.device)
        # If the second network's update is not finite, the first one's is undone: a checkpoint has whole steps only.
        first = self.discriminator if config.training.updates == "paper" else self.generator
        self.updated_first = [*(p.detach() for p in first.network.parameters()), *first.adam_tensors().values()]
        self.before_step = [tensor.clone() for tensor in self.updated_first]

    @classmethod
    def build(cls, config: Config, world: World) -> tuple[Players, GeneratorAverage | None]:
        """Return both networks with their initial weights on the device, and the generator's average if there is one.

        All depends on the settings alone, so it is the same on every rank.
        """
        training = config.training
        generator, discriminator = build_networks(config.model)
        initialise(generator, config.model, config.seed)
        initialise(discriminator, config.model, config.seed + 1)
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        networks: list[nn.Module] = [generator, discriminator]
        for network in networks:
            network.to(world.device, dtype_of(config)).train()
            network.to(memory_format=layout)  # type: ignore[call-overload]
        # Before batch norm is synchronised: the leader measures the average's statistics alone.
        average = GeneratorAverage(generator, config) if training.average else None
        if training.sync_batch_norm:
            networks = [synchronise(network, world) for network in networks]
        if training.compile:
            for network in networks:
                network.compile()
        return cls(networks[0], networks[1], config, world), average

    @property
    def is_finite(self) -> bool:
        """Whether every loss and gradient so far was finite; waits for the device."""
        return bool(self.finite)

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a forward pass: bfloat16 if `training.precision` is `bf16`."""
        bfloat16 = self.config.training.precision == "bf16"
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()

    def set_lr(self, factor: float) -> None:
        """Set both learning rates to a multiple of the configured one."""
        for player in (self.generator, self.discriminator):
            for group in player.adam.param_groups:
                group["lr"] = self.config.optim.lr * factor

    def begin(self) -> None:
        """Start a step: keep copies of what a non-finite value would spoil."""
        self.generator.statistics.remember()
        self.discriminator.statistics.remember()
        torch._foreach_copy_(self.before_step, self.updated_first)

    def end(self, real_share: torch.Tensor) -> None:
        """End a step: make batch norm's running averages the same on every rank; take back a step half done.

        Args:
            real_share: () this rank's share of the real images, the weight of its discriminator's statistics.
        """
        self.finite_steps += self.finite
        if self.world.device.type != "cpu" or not bool(self.finite):  # on a CPU, looking costs nothing
            for now, before in zip(self.updated_first, self.before_step, strict=True):
                torch.where(self.finite > 0, now, before, out=now)
        self.generator.statistics.settle(self.finite > 0)
        self.discriminator.statistics.settle(self.finite > 0, real_share)

    def generate(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Draw images (n, C, S, S) through which gradients reach the generator."""
        with self.autocast():
            images: torch.Tensor = self.generator.wrapped(z, y)
        return images

    def update_discriminator(
        self,
        real: torch.Tensor,
        y_real: torch.Tensor,
        fake: torch.Tensor,
        y_fake: torch.Tensor,
        real_count: torch.Tensor,
        real_draws: torch.Tensor | None = None,
        fake_draws: torch.Tensor | None = None,
    ) -> None:
        """Descend -log D(x) - log(1 - D(G(z))), or half of it where `optim.discriminator_loss` is `mean`.

        Real and fake go through as batches of their own (batch norm).

        Args:
            real: (n, C, S, S) real images of this rank; n may be 0.
            y_real: (n, classes) their labels, one-hot.
            fake: (m, C, S, S) generated images, detached.
            y_fake: (m, classes) their labels.
            real_count: () how many real images all ranks hold together.
            real_draws: (n, dropout_units) draws of dropout for the real images; left out, there is none.
            fake_draws: (m, dropout_units) those for the generated images.
        """
        player, world = self.discriminator, self.world
        player.adam.zero_grad()
        weight = 0.5 if self.config.optim.discriminator_loss == "mean" else 1.0
        synchronised = any(not isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in _norms(player.network))
        real_logits = fake.new_zeros(0)
        # Only a synchronised batch norm needs an empty rank in its collectives; a local one cannot normalise nothing.
        if len(real) or synchronised:
            with player.local_backward(), self.autocast():
                real_logits = player.wrapped(real, y_real, real_draws)
                real_logits = real_logits.to(torch.promote_types(real.dtype, torch.float32))
                # Gradients are averaged over ranks, so each rank's sum is divided by the images per rank.
                loss = weight * real_loss(real_logits).sum() * world.size / real_count
            with player.local_backward():
                _poisoned(loss).backward()
        with self.autocast():
            fake_logits = player.wrapped(fake, y_fake, fake_draws).to(torch.promote_types(fake.dtype, torch.float32))
            loss = weight * fake_loss(fake_logits).mean()
        _poisoned(loss).backward()
        self.tally.add(real_logits, fake_logits)
        self._apply(player)

    def update_generator(self, fake: torch.Tensor, y_fake: torch.Tensor, draws: torch.Tensor | None = None) -> None:
        """Descend -log D(G(z)) through a frozen discriminator; `draws` as in `update_discriminator`."""
        player = self.generator
        player.adam.zero_grad()
        # The bare discriminator: DDP would wait for gradients of weights that are frozen.
        with self.discriminator.frozen():
            with self.autocast():
                logits = self.discriminator.network(fake, y_fake, draws)
                loss = generator_loss(logits.to(torch.promote_types(fake.dtype, torch.float32))).mean()
            _poisoned(loss).backward()
        self._apply(player)

    def _apply(self, player: Player) -> None:
        """Let Adam take its step, or on a non-finite gradient leave parameters and moments as they are."""
        gradients = [p.grad for p in player.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        self.finite = self.finite * torch.isfinite(norm)
        # The hook that loss scaling uses: a fused step with found_inf = 1 changes nothing, its step count included.
        player.adam.grad_scale = None  # type: ignore[attr-defined]
        player.adam.found_inf = (1 - self.finite).float()  # type: ignore[attr-defined]
        player.adam.step()


def _norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _poisoned(loss: torch.Tensor) -> torch.Tensor:
    """Return the loss, with NaN gradients where it is not finite.

    Gradients are averaged over ranks anyway, so a rank's bad loss is known to all without another collective. (An
    infinite loss can have finite gradients.)
    """
    return loss * torch.where(torch.isfinite(loss), 1.0, torch.nan)


def check_replicas(players: Players, average: GeneratorAverage | None, world: World) -> None:
    """Check that all ranks have the same parameters; every rank must call it.

    Raises:
        RuntimeError: they differ.
    """
    networks = [players.generator.network, players.discriminator.network]
    networks += [] if average is None else [average.network]
    parameters = [parameter for network in networks for parameter in network.parameters()]
    mine = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    leaders = world.broadcast_(mine.clone())
    if not bool(world.minimum_(torch.tensor(float(torch.equal(mine, leaders)), device=world.device))):
        raise RuntimeError("parameters differ between ranks")
