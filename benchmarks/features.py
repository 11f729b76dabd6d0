"""`features`: features per second of the ImageNet net, compared with a plain evaluation loop, alternating."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import Bench, Record, alternate
from dcgan_dist.config import ModelConfig
from dcgan_dist.data.images import Pixels
from dcgan_dist.distributed import pick_device
from dcgan_dist.evaluation.feature_files import Array
from dcgan_dist.evaluation.features import prepare_extractor, random_discriminator
from dcgan_dist.models.network import Discriminator

IMAGENET32 = ModelConfig(image_size=32, channels=3, classes=0, z_dim=256, kernel_size=3, convs_per_scale=2)
_PLAIN_BATCH = 128


def make_plain_loop(
    network: Discriminator, device: torch.device, *, channels_last: bool = False
) -> Callable[[Pixels], Array]:
    """Return the baseline, a straightforward loop: float32 batches of 128 in the memory layout of ToTensor.

    Evaluation mode, no gradients, adaptive max-pooling layer by layer, rows of float16.

    Args:
        network: the discriminator.
        device: to compute on.
        channels_last: whether to convert network and batches to that memory format, which few loops do.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device).eval()
    network.to(memory_format=layout)  # type: ignore[call-overload]

    def extract(images: Pixels) -> Array:
        rows = []
        with torch.no_grad():
            for start in range(0, len(images), _PLAIN_BATCH):
                batch = torch.from_numpy(images[start : start + _PLAIN_BATCH]).permute(0, 3, 1, 2)
                real = batch.contiguous(memory_format=layout).to(device).float() / 127.5 - 1
                maps = network.feature_maps(real, real.new_zeros(len(real), 0))
                pooled = [nn.functional.adaptive_max_pool2d(layer, 4).flatten(1) for layer in maps]
                rows.append(torch.cat(pooled, dim=1).half().cpu().numpy())
        return np.concatenate(rows)

    return extract


def bench_features(bench: Bench) -> Iterator[Record]:
    """Measure both precisions, the plain loop, and the plain loop with memory channels last.

    The difference is the largest one of a value from the plain loop's, as a share of the largest value.
    """
    device = pick_device("auto")
    count = 16_384 if device.type == "cuda" else bench.size(256, 32)
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    trained = random_discriminator(IMAGENET32, 0)
    plain, channels_last = "a plain loop in float32", "the plain loop in float32 with memory channels last"
    rows: dict[str, Array] = {}

    def extract(name: str, way: Callable[[Pixels], Array]) -> int:
        rows[name] = way(images)
        return count

    with tempfile.TemporaryDirectory(prefix="dcgan_dist-bench-") as cache:
        ways: dict[str, Callable[[Pixels], Array]] = {
            plain: make_plain_loop(copy.deepcopy(trained.network), device),
            channels_last: make_plain_loop(copy.deepcopy(trained.network), device, channels_last=True),
        }
        for precision in ("fp32", "bf16"):
            ways[precision] = prepare_extractor(trained, Path(cache), precision=precision, device=device)
        turns = alternate({name: partial(extract, name, way) for name, way in ways.items()}, bench.rounds, warm_up=1)
    for precision in ("fp32", "bf16"):
        what = f"28,672 features of imagenet32, {count} images, {precision}"
        yield from (bench.compare(what, turns, precision, baseline) for baseline in (plain, channels_last))
        exact, other = (rows[name].astype(np.float32) for name in (plain, precision))
        difference = float(np.abs(other - exact).max() / np.abs(exact).max())
        yield bench.record(f"{what}: largest difference from {plain}", "share of the largest value", [difference])
