"""Train a small DCGAN on procedural rooms, look at it, score it, change one setting and train again.

``python examples/rooms.py`` takes some minutes on two cores and writes pictures to ``runs/example``; run again, it
resumes. It needs no download.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from PIL import Image

import dcgan_dist as dd
from dcgan_dist.errors import InputError


def train(output: Path, name: str, settings: Mapping[str, object]) -> dd.Run:
    """Train a run of the config `rooms` with some settings changed."""
    return dd.train("rooms", {**settings, "run_dir": str(output / name)}, progress=True)


def save_grid(images: npt.NDArray[np.uint8], path: Path, columns: int = 8) -> None:
    """Write images (N, S, S, C) as one picture, in as many full rows as possible."""
    rows, size, channels = len(images) // columns, images.shape[1], images.shape[3]
    tiles = images[: rows * columns].reshape(rows, columns, size, size, channels)
    grid = Image.fromarray(tiles.swapaxes(1, 2).reshape(rows * size, columns * size, channels))
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(path)


def save_curves(runs: Mapping[str, dd.Run], path: Path) -> None:
    """Draw both losses of each run over its steps."""
    figure, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 3.5), sharey=True, squeeze=False)
    for axis, (name, run) in zip(axes[0], runs.items(), strict=True):
        metrics = run.metrics()
        axis.plot(metrics["step"], metrics["loss_d"], label="discriminator")
        axis.plot(metrics["step"], metrics["loss_g"], label="generator")
        axis.set(title=name, xlabel="step", ylabel="loss")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def accuracies(run: dd.Run, count: int) -> str:
    """Return the accuracy of a classifier on the discriminator's features, and on those of random weights, as text."""
    found = []
    for score in run.evaluate("rooms", count=count, cs=[1e-4, 1e-3], baselines=["random"]):
        accuracy = score.metrics["accuracy"]
        low, high = accuracy.ci95 or (accuracy.value, accuracy.value)
        found.append(f"{score.method} {accuracy.value:.1f}% ({low:.1f} to {high:.1f})")
    return ", ".join(found)


def main() -> None:
    """Train twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="steps of each run")
    parser.add_argument("--images", type=int, default=20000, help="rooms to train on")
    parser.add_argument("--score-images", type=int, default=2000, help="rooms to score on")
    parser.add_argument("--output", type=Path, default=Path("runs/example"), help="folder for runs and pictures")
    options = parser.parse_args()

    settings = {
        "data.path": f"rooms:{options.images}",
        "model.image_size": 32,
        "training.epochs": None,  # steps are given instead
        "training.steps": options.steps,
        "training.average": 0.999,  # a short run needs a short average
        "training.log_every": 10,
    }
    try:
        paper = train(options.output, "paper", settings)
        changed = train(options.output, "beta1-0.9", {**settings, "optim.beta1": 0.9})
    except InputError as error:
        parser.error(str(error))

    runs = {"beta1 = 0.5, as in the paper": paper, "beta1 = 0.9, Adam's default": changed}
    save_curves(runs, options.output / "curves.png")
    for run in runs.values():
        save_grid(run.sample(64, seed=0), options.output / f"{Path(run.location).name}.png")
    for name, run in runs.items():
        print(f"{name}: {accuracies(run, options.score_images)}")
    print(f"pictures: {options.output}")


if __name__ == "__main__":
    main()
