"""Trials made in memory, with grids on disk, for the tests of the page."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcgan_dist.config import Config, flatten, override
from dcgan_dist.results.aggregate import Collection, Score, Sweep, Trial, Verdict

EVIL = '"><img src=x onerror="hacked=1"><script>hacked=1</script>\n\u2028{{ 7*7 }}</script><!--\'`${hacked=1}`'
VERDICTS = ("stable", "discriminator_wins", "collapse", "oscillation", "diverged", "undecided")


def grid_png(seed: int, side: int = 16, count: int = 8) -> bytes:
    """Return a grid of count x count smooth images, like those of a run."""
    small = np.random.default_rng(seed).integers(0, 255, (count * count, 4, 4, 3), dtype=np.uint8)
    grid = np.full((count * (side + 2) - 2, count * (side + 2) - 2, 3), 255, np.uint8)
    for place, cell in enumerate(small):
        top, left = (place // count) * (side + 2), (place % count) * (side + 2)
        grid[top : top + side, left : left + side] = np.asarray(Image.fromarray(cell).resize((side, side)))
    packed = io.BytesIO()
    Image.fromarray(grid).save(packed, "PNG", compress_level=1)
    return packed.getvalue()


def huge_png() -> bytes:
    """Return a small file whose header states 20,000 x 20,000 pixels."""
    content = bytearray(grid_png(0))
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    return bytes(content)


def score(task: str, metric: str, value: float, **changes: Any) -> Score:
    given = {"low": value - 0.02, "high": value + 0.02, "n": 500, "protocol": "full", "step": 400, "method": "dcgan"}
    return Score(task, metric, value, **{**given, **changes})


def make_trial(folder: Path, number: int, grids: int = 5, rows: int = 60, side: int = 16, **changes: Any) -> Trial:
    """Return a trial of a sweep with its own grids."""
    draw = random.Random(number)
    parameters = {
        "optim.lr": 10 ** draw.uniform(-5, -3),
        "optim.beta1": draw.uniform(0, 0.9),
        "model.slope": draw.uniform(0, 0.4),
    }
    samples = []
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(grids):
        path = folder / f"{number}-{place}.png"
        path.write_bytes(grid_png(number * 100 + place, side))
        samples.append((place * 100, str(path)))
    steps = np.arange(1, rows + 1) * 10.0
    waves = np.random.default_rng(number).random((5, rows))
    names = ("loss_d", "loss_g", "d_real", "d_fake", "images_per_s")
    verdict = VERDICTS[number % len(VERDICTS)]
    value = draw.uniform(0.2, 0.9)
    scores = (score("sweep", "representation", value), score("sweep", "coverage", draw.uniform(0, 1)))
    settings = flatten(override(Config(), parameters)) | {"model.image_size": side}
    given: dict[str, Any] = {
        "key": f"t{number:04d}",
        "name": f"t{number:04d}",
        "directory": f"sweep/trials/t{number:04d}",
        "sweep": "sweep",
        "status": "finished",
        "settings": settings,
        "changed": {key: (settings[key], 1) for key in parameters},
        "parameters": parameters,
        "metrics": {"step": steps, **dict(zip(names, waves, strict=True))},
        "scores": {f"{one.task}.{one.metric}": one for one in scores},
        "all_scores": scores,
        "verdict": Verdict(verdict, f"reason {number}"),
        "samples": tuple(samples),
        "real": samples[0][1] if samples else None,
        "command": f"python -m dcgan_dist.train --config t{number}.yaml",
        "device": "cpu",
        "world_size": 1,
        "step": 400,
        "steps": 400,
        "seconds": 60.0,
        "images_seen": 51_200,
        "throughput": 850.0,
    }
    return Trial(**{**given, **changes})


def make_collection(folder: Path, count: int = 8, **changes: Any) -> Collection:
    """Return a sweep of `count` trials."""
    trials = [make_trial(folder, number, **changes) for number in range(count)]
    best = max(trials, key=lambda trial: trial.scores["sweep.representation"].value)
    sweep = Sweep(
        "sweep",
        "sweep",
        "sweep",
        status="finished",
        objective="representation,coverage",
        space={"optim.lr": {"loguniform": [1e-5, 1e-3]}, "optim.beta1": {"uniform": [0, 0.9]}},
        trials=tuple(trial.key for trial in trials),
        trials_wanted=count,
        best=best.key,
        importance={"optim.lr": (0.6, 0.5, 0.7), "optim.beta1": (0.1, -0.1, 0.2)},
    )
    return Collection(trials=tuple(trials), sweeps=(sweep,))
