"""`features`: features per second of the ImageNet net, compared with a plain evaluation loop, alternating."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

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


def bench_features(rounds: int = 7) -> list[dict[str, Any]]:
    """Measure both precisions, the plain loop, and the plain loop with memory channels last.

    Return one record per precision: images/s (medians over the rounds), the medians of the rounds' ratios, and the
    largest difference of a value from the plain loop's, relative to the largest value.
    """
    device = pick_device("auto")
    count = 16_384 if device.type == "cuda" else 256
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    trained = random_discriminator(IMAGENET32, 0)
    with tempfile.TemporaryDirectory(prefix="dcgan_dist-bench-") as cache:
        ways: dict[str, Callable[[Pixels], Array]] = {
            "plain": make_plain_loop(copy.deepcopy(trained.network), device),
            "channels_last": make_plain_loop(copy.deepcopy(trained.network), device, channels_last=True),
        }
        for precision in ("fp32", "bf16"):
            ways[precision] = prepare_extractor(trained, Path(cache), precision=precision, device=device)
        rows = {name: way(images).astype(np.float32) for name, way in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                way(images)
                seconds[name].append(time.perf_counter() - begun)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"

    def times(baseline: str, name: str) -> float:
        return round(median(slow / fast for slow, fast in zip(seconds[baseline], seconds[name], strict=True)), 2)

    return [
        {
            "bench": "features",
            "what": f"imagenet32, 28,672 values, {precision}",
            "images_per_s": round(count / median(seconds[precision]), 1),
            "plain_loop_images_per_s": round(count / median(seconds["plain"]), 1),
            "times_the_plain_loop": times("plain", precision),
            "times_the_plain_loop_channels_last": times("channels_last", precision),
            "largest_difference": float(np.abs(rows[precision] - rows["plain"]).max() / np.abs(rows["plain"]).max()),
            "rounds": rounds,
            "device": where,
        }
        for precision in ("fp32", "bf16")
    ]
