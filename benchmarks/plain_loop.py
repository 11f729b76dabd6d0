"""The baseline: a DCGAN step as in the well-known PyTorch example, written from its description.

Sequential networks of 4x4 kernels with 64 channels, sigmoid output and binary cross-entropy, Adam's defaults except for
lr and betas, losses read back every step; contiguous memory, no frozen discriminator in the generator's step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def make_plain_loop(device: torch.device, batch: int, bfloat16: bool) -> Callable[[torch.Tensor], tuple[float, ...]]:
    """Return a function that performs one step on real images (batch, 3, 64, 64) in [-1, 1]."""
    up = [(100, 512, 1, 0), (512, 256, 2, 1), (256, 128, 2, 1), (128, 64, 2, 1)]
    generator_layers: list[nn.Module] = []
    for inputs, outputs, stride, padding in up:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        generator_layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    generator = nn.Sequential(*generator_layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
    discriminator_layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in [(64, 128), (128, 256), (256, 512)]:
        conv_down = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        discriminator_layers += [conv_down, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]
    discriminator = nn.Sequential(*discriminator_layers, nn.Conv2d(512, 1, 4, 1, 0, bias=False), nn.Sigmoid())
    for network in (generator, discriminator):
        network.to(device)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    cross_entropy = nn.BCELoss()

    def judge(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            verdict: torch.Tensor = discriminator(images)
        return verdict.view(-1).float()

    def step(real: torch.Tensor) -> tuple[float, ...]:
        real_label = torch.full((batch,), 1.0, device=device)
        fake_label = torch.full((batch,), 0.0, device=device)
        discriminator.zero_grad()
        verdict = judge(real)
        loss_real = cross_entropy(verdict, real_label)
        loss_real.backward()
        d_real = verdict.mean().item()
        z = torch.randn(batch, 100, 1, 1, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            fake = generator(z)
        verdict = judge(fake.detach())
        loss_fake = cross_entropy(verdict, fake_label)
        loss_fake.backward()
        d_fake = verdict.mean().item()
        adam_d.step()
        generator.zero_grad()
        verdict = judge(fake)
        loss_g = cross_entropy(verdict, real_label)
        loss_g.backward()
        adam_g.step()
        return (loss_real + loss_fake).item(), loss_g.item(), d_real, d_fake

    return step
