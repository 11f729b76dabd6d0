"""Judges that need no training: they classify images by brightness."""

from __future__ import annotations

import numpy as np

from dcgan_dist.data.images import Pixels
from dcgan_dist.exploration.attributes import AttributeJudge, Probabilities


def by_brightness(threshold: float = 127.5) -> AttributeJudge:
    """Whether an image is bright, and which half of it (`view`) is the brighter one."""

    def judge(images: Pixels) -> Probabilities:
        grey = images.astype(np.float64).mean(axis=3)
        half = grey.shape[2] // 2
        bright = 1 / (1 + np.exp(-(grey.mean(axis=(1, 2)) - threshold)))
        right = 1 / (1 + np.exp(grey[:, :, :half].mean(axis=(1, 2)) - grey[:, :, half:].mean(axis=(1, 2))))
        return {"bright": np.stack([1 - bright, bright], axis=1), "view": np.stack([1 - right, right], axis=1)}

    return AttributeJudge(
        values={"bright": ("dark", "bright"), "view": ("left", "right")},
        phrases={"dark": ("bright", 0), "bright": ("bright", 1), "view left": ("view", 0), "view right": ("view", 1)},
        accuracy={"bright": 1.0, "view": 1.0},
        probabilities=judge,
    )
