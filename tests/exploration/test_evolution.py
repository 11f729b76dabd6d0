import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dcgan_dist.config import Config, override
from dcgan_dist.distributed import World
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.exploration.evolution import (
    Activations,
    EvolutionConfig,
    choose_samples,
    choose_steps,
    cut_grid,
    dead_filters,
    draw,
    finding,
    follow_activations,
    measure,
)
from dcgan_dist.exploration.networks import Trained, open_trained
from dcgan_dist.runs.checkpoints import name_of, steps_in, write_checkpoint
from dcgan_dist.runs.run import Run
from dcgan_dist.training.sampling import make_grid
from dcgan_dist.training.signals import WINDOW, filter_oscillation, filter_swing
from dcgan_dist.training.trainer import train
from tests.conftest import TINY
from tests.exploration.test_walk import Opened

PERIOD = 4


def write_step(run: Path, step: int, generator: dict[str, torch.Tensor], signals: torch.Tensor | None = None) -> None:
    """Write a checkpoint like the run's newest, with another generator."""
    newest = run / "checkpoints" / name_of(steps_in(run / "checkpoints")[-1])
    state = json.loads((newest / "state.json").read_text())
    discriminator = (newest / "discriminator.safetensors").read_bytes()

    def write(folder: Path) -> None:
        safetensors.torch.save_file(generator, folder / "generator.safetensors")
        (folder / "discriminator.safetensors").write_bytes(discriminator)
        if signals is not None:
            safetensors.torch.save_file({"activations": signals}, folder / "signals.safetensors")

    kept = {key: value for key, value in state.items() if key not in ("step", "files", "digest")}
    write_checkpoint(run / "checkpoints", step, write, kept)


def opened_at(run: Path, tmp_path: Path, step: str = "latest") -> Trained:
    (tmp_path / "cache" / "locks").mkdir(parents=True, exist_ok=True)
    return open_trained(Run(run), step, seed=0, device=torch.device("cpu"), cache=tmp_path / "cache")


@pytest.fixture
def copied(opened: Opened, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """A copy of a tiny run without log lines, and its generator's tensors."""

    def get(name: str = "dcgan") -> tuple[Path, dict[str, torch.Tensor]]:
        run = tmp_path / "run"
        shutil.copytree(opened(name).location, run)
        (run / "metrics.jsonl").unlink()
        (step,) = steps_in(run / "checkpoints")
        return run, safetensors.torch.load_file(run / "checkpoints" / name_of(step) / "generator.safetensors")

    return get


def test_only_dead_and_oscillating_filters_are_marked(copied, tmp_path):
    run, generator = copied()
    for number in range(WINDOW):
        changed = {name: value.clone() for name, value in generator.items()}
        gain, bias = changed["layers.0.norm.weight"], changed["layers.0.norm.bias"]
        bias += 1.0
        if number >= WINDOW - 3:
            gain[1], bias[1] = 0.0, -1.0
        bias[2] = 1.0 + 0.5 * np.sin(2 * np.pi * number / PERIOD)
        write_step(run, 10 + number, changed)
    (run / "checkpoints" / name_of(steps_in(run / "checkpoints")[0])).rename(tmp_path / "first")
    drawn = measure(EvolutionConfig(count=3, rows=4), opened_at(run, tmp_path))
    numbers = drawn.numbers
    assert numbers["times"] == "checkpoints"
    assert [layer["dead"] for layer in numbers["layers"]] == [[], [1]]
    assert [layer["oscillating"] for layer in numbers["layers"]] == [[], [2]]
    assert numbers["dead_by_checkpoint"][0] == {"step": 10, "dead": 0}
    assert [entry["dead"] for entry in numbers["dead_by_checkpoint"]] == [0] * (WINDOW - 3) + [1] * 3
    assert finding(drawn).startswith(f"At step {9 + WINDOW}, 1 of the generator's 12 filters are dead and 1 (8.3%)")
    earlier = measure(EvolutionConfig(), opened_at(run, tmp_path, "12"))
    assert (earlier.numbers["dead"], earlier.numbers["oscillating"]) == (0, None)
    assert earlier.numbers["rows"][-1] == {"step": 12, "source": "checkpoint"}


def test_log_lines_that_checkpoints_kept_are_joined_and_the_others_are_nan(copied, tmp_path):
    run, generator = copied()
    history = torch.rand(90, 12, generator=torch.Generator().manual_seed(0)) + 1
    history[:, 5] = 1 + 0.5 * torch.sin(2 * torch.pi * torch.arange(90) / PERIOD)
    log_steps = [10 * (line + 1) for line in range(90)]
    for step in (205, 250, 900):  # after log lines 20, 25 and 90
        write_step(run, step, generator, history[max(0, step // 10 - WINDOW) : step // 10].contiguous())
    means = dict.fromkeys((205, 250, 900), np.zeros(12))
    found = follow_activations(Run(run), means, log_steps)
    assert found.times == "log lines"
    assert found.steps.tolist() == log_steps[4:]
    known = [*range(4, 25), *range(74, 90)]
    expected = np.full((86, 12), np.nan)
    expected[[line - 4 for line in known]] = history[known].numpy()
    np.testing.assert_array_equal(found.values, expected)
    oscillates, swings = found.oscillating(), found.swings()
    assert oscillates is not None
    assert swings is not None
    assert oscillates[5]
    assert oscillates.mean() == filter_oscillation(history)  # as in metrics.jsonl
    assert float(torch.from_numpy(swings).median()) == filter_swing(history)


def test_oscillation_is_unknown_if_the_newest_times_are_too_few_or_not_kept():
    values = np.random.default_rng(0).random((WINDOW, 3))
    assert Activations(np.arange(WINDOW), values, "log lines").oscillating() is not None
    assert Activations(np.arange(WINDOW - 1), values[1:], "log lines").oscillating() is None
    values[4] = np.nan
    assert Activations(np.arange(WINDOW), values, "log lines").swings() is None


def test_a_filter_is_dead_when_it_is_the_same_for_every_z():
    maps = torch.rand(5, 3, 2, 2) + 1
    maps[:, 0] = 0.0
    maps[:, 1] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # differs between positions only
    units = torch.rand(5, 2)
    units[:, 1] = -0.3
    assert dead_filters([maps, units]).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_cut_into_the_images_that_it_was_made_of(channels):
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, channels), dtype=np.uint8)
    grid = make_grid(images, 3)
    assert np.array_equal(cut_grid(grid, 7, 16, 3), images)
    assert cut_grid(grid, 7, 16, 4) is None
    assert cut_grid(grid[1:], 7, 16, 3) is None


def test_samples_of_a_checkpoint_are_those_of_the_grid_that_training_wrote(tmp_path):
    run = tmp_path / "run"
    own = {"model.name": "cdcgan", "training.steps": 4, "training.sample_every": 2, "training.checkpoint_every": 2,
           "training.log_every": 1, "training.keep_last": 1}  # fmt: skip
    train(override(Config(), TINY | own), World(0, 1, torch.device("cpu")), run_location=str(run))
    trained = opened_at(run, tmp_path)
    config = EvolutionConfig(count=4)
    with_checkpoint = measure(config, trained)
    assert with_checkpoint.numbers["rows"] == [
        {"step": 0, "source": "grid"},
        {"step": 2, "source": "grid"},
        {"step": 4, "source": "checkpoint"},
    ]
    assert with_checkpoint.numbers["times"] == "log lines"
    assert with_checkpoint.numbers["activations"]["steps"] == [1, 2, 3, 4]
    assert "single checkpoint" in finding(with_checkpoint)
    samples = choose_samples(config, trained)
    assert samples == [0, 3, 1, 4]  # the rows of the grid, 3 images each, have the classes in turn
    panel = make_grid(_cells(run, 4)[samples], 4)
    shown = draw(with_checkpoint).figure.axes[0].images[0].get_array()
    assert np.abs(np.asarray(shown)[-16:].astype(int) - panel.astype(int)).max() <= 1

    (run / "samples" / f"{name_of(2)}.png").write_bytes(b"\x89PNG damaged")
    without = measure(config, trained).numbers
    assert [row["step"] for row in without["rows"]] == [0, 4]
    assert "step 2 is damaged" in without["problems"][0]


def _cells(run: Path, step: int) -> np.ndarray:
    with Image.open(run / "samples" / f"{name_of(step)}.png") as picture:
        cells = cut_grid(np.asarray(picture), 9, 16, 3)
    assert cells is not None
    return cells


@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_a_run_of_dense_layers_with_a_single_checkpoint_and_no_log_lines_is_drawn(copied, tmp_path, name):
    run, _ = copied(name)
    drawn = measure(EvolutionConfig(label="1" if name == "cgan" else None), opened_at(run, tmp_path))
    assert drawn.numbers["oscillating"] is None
    assert drawn.numbers["verdict"] is None
    assert drawn.numbers["filters"] == 8
    assert "single checkpoint" in finding(drawn)
    assert draw(drawn).png()[:4] == b"\x89PNG"


def test_the_first_and_the_last_step_are_shown_and_evenly_spaced_ones_between():
    steps = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert choose_steps(steps, 3) == [0, 50, 100]
    assert choose_steps(steps, 1) == [100]
    assert choose_steps(steps, 50) == steps


def test_bad_input_is_refused(copied, tmp_path):
    run, generator = copied()
    trained = opened_at(run, tmp_path)
    with pytest.raises(ConfigError, match="unconditional run"):
        measure(EvolutionConfig(label="3"), trained)
    with pytest.raises(ConfigError, match="rows is 0"):
        EvolutionConfig(rows=0)
    write_step(run, 50, generator | {"layers.1.conv.weight": generator["layers.1.conv.weight"] * torch.nan})
    with pytest.raises(RunDirectoryError, match="step 50 are not finite"):
        measure(EvolutionConfig(), opened_at(run, tmp_path, "50"))
    write_step(run, 60, generator)
    (run / "checkpoints" / name_of(60) / "signals.safetensors").write_bytes(b"damaged")
    shutil.rmtree(run / "checkpoints" / name_of(50))
    with pytest.raises(RunDirectoryError, match=r"signals.safetensors is damaged"):
        measure(EvolutionConfig(), opened_at(run, tmp_path))
