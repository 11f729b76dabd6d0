"""The autoencoder whose binary code identifies near-duplicates (section 4.1), and its training.

As in the paper: 3072-128-3072 on 32x32 images, ReLU, de-noising, with dropout. What the paper does not specify is
chosen so that near-duplicates get the same code: each image is normalised by its own mean and contrast, the noise
includes small shifts, crops and changes of brightness, and a term of the loss makes the code invariant to them.
"""

from __future__ import annotations

import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import affine_grid, grid_sample

from dcgan_dist.data.progress import ProgressLine
from dcgan_dist.data.settings import DeduplicationConfig

SIDE = 32
VALUES = SIDE * SIDE * 3

# Maximum changes at jitter 1, in pixels of the 32x32 image, share of its side, share of its brightness.
_SHIFT, _CROP, _BRIGHTNESS = 0.7, 0.03, 0.07
_CONTRAST_FLOOR = 0.1  # of the range [-1, 1]: so that the noise of a flat image is not amplified
_SPREAD_FLOOR = 1e-6


class Autoencoder(nn.Module):
    """A hidden layer of ReLU units between an image and its reconstruction.

    Attributes:
        mean: buffer (3072,), the mean of the training images' contrast-normalised values.
        thresholds: buffer (code_size,), the activation above which a unit's bit is set; infinite for a unit that is not
            part of the binary code.
    """

    mean: torch.Tensor
    thresholds: torch.Tensor

    def __init__(self, code_size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(VALUES, code_size)
        self.decoder = nn.Linear(code_size, VALUES)
        self.register_buffer("mean", torch.zeros(VALUES))
        self.register_buffer("thresholds", torch.zeros(code_size))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images (n, 3072) in [-1, 1] by their own mean and contrast, and subtract the mean of all images."""
        centred = images - images.mean(1, keepdim=True)
        return centred / (centred.std(1, keepdim=True) + _CONTRAST_FLOOR) - self.mean

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the code before the ReLU, (n, code_size), of images (n, 3072) in [-1, 1]."""
        code: torch.Tensor = self.encoder(self.normalise(images))
        return code

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        """Return the code, (n, code_size), of uint8 images (n, 32, 32, 3)."""
        with torch.inference_mode():
            return self.encode(to_values(images)).relu()

    def bits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the binary code, bool (n, code_size), of uint8 images (n, 32, 32, 3)."""
        return self.activations(images) > self.thresholds

    def weights(self) -> bytes:
        """Return all weights as the content of a safetensors file."""
        return save({name: value.contiguous().cpu() for name, value in self.state_dict().items()})

    @classmethod
    def from_weights(cls, weights: dict[str, torch.Tensor]) -> Autoencoder:
        """Return a network with the weights of such a file."""
        network = cls(len(weights["thresholds"]))
        network.load_state_dict(weights)
        return network.requires_grad_(False)


def to_values(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (n, 32, 32, 3) as float32 values in [-1, 1], (n, 3072)."""
    return images.flatten(1).float() / 127.5 - 1


def jitter(values: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Return copies that differ as near-duplicates do: shifted by part of a pixel, cropped, brighter or darker.

    Args:
        values: in [-1, 1], shape (n, 3072).
        amount: 1 for shifts of up to 0.7 pixels, crops of up to 3% and brightness changed by up to 7%.
        generator: on the same device.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(len(values), *shape, generator=generator, device=values.device) * amount

    def symmetric(*shape: int) -> torch.Tensor:
        return 2 * uniform(*shape) - amount

    images = values.view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    maps = torch.zeros(len(values), 2, 3, device=values.device)
    maps[:, 0, 0] = maps[:, 1, 1] = 1 - _CROP * uniform()
    maps[:, :, 2] = symmetric(2) * _SHIFT * 2 / SIDE
    grid = affine_grid(maps, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    lit = ((moved + 1) * (1 + _BRIGHTNESS * symmetric(1, 1, 1)) - 1).clamp(-1, 1)
    return lit.permute(0, 2, 3, 1).reshape(len(values), VALUES)


def train_autoencoder(
    images: torch.Tensor, settings: DeduplicationConfig, *, seed: int, device: torch.device
) -> tuple[Autoencoder, float]:
    """Train an autoencoder; return it on the CPU, and its mean loss over the last hundred steps.

    Args:
        images: uint8, shape (n, 32, 32, 3).
        settings: of the training.
        seed: of the weights, the order of the images and all noise.
        device: where to compute.
    """
    images = images.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(settings.code_size)
    network.to(device)
    sums = [network.normalise(to_values(part)).sum(0) for part in images.split(4096)]
    network.mean.copy_(torch.stack(sums).sum(0) / len(images))
    adam = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    progress = ProgressLine("autoencoder")
    last: list[torch.Tensor] = []
    for step in range(settings.steps):
        # Constant for half of the training, then falling linearly to 0.
        adam.param_groups[0]["lr"] = settings.lr * min(1.0, 2 * (1 - step / settings.steps))
        chosen = torch.randint(len(images), (settings.batch_size,), generator=generator, device=device)
        clean = to_values(images[chosen])

        # De-noising: reconstruct the clean image from a corrupted one.
        moved = jitter(clean, settings.jitter, generator)
        noise = torch.randn(moved.shape, generator=generator, device=device) * settings.noise
        code = network.encode(moved + noise).relu()
        kept = torch.rand(code.shape, generator=generator, device=device) >= settings.dropout
        restored = network.decoder(code * kept / (1 - settings.dropout))
        loss = (restored - network.normalise(clean)).square().mean()

        # Stability: two versions of an image get close codes, in units of each code value's variance over the images.
        if settings.stability:
            one, other = network.encode(clean), network.encode(jitter(clean, settings.jitter, generator))
            spread = one.var(0, unbiased=False) + _SPREAD_FLOOR
            loss = loss + settings.stability * ((one - other).square().mean(0) / spread).mean()

        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        last = [*last[-99:], loss.detach()]
        progress((step + 1) * settings.batch_size, (step + 1) / settings.steps, 0)
    progress.close()
    return network.cpu().requires_grad_(False), float(torch.stack(last).mean())
