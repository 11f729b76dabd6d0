"""The non-saturating GAN losses (Goodfellow et al. 2014), from logits, one value per image.

With D(x) = sigmoid(logit): the discriminator descends -log D(x) on real and -log(1 - D(G(z))) on generated images, the
generator descends -log D(G(z)). softplus of a logit is the same number without the overflow of log(sigmoid).
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def real_loss(logits: torch.Tensor) -> torch.Tensor:
    """-log D(x) of real images, (n,): descended by the discriminator."""
    return softplus(-logits)


def fake_loss(logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - D(G(z))) of generated images, (n,): descended by the discriminator."""
    return softplus(logits)


def generator_loss(logits: torch.Tensor) -> torch.Tensor:
    """-log D(G(z)) of generated images, (n,): descended by the generator."""
    return softplus(-logits)
