import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.exploration import walk
from dcgan_dist.exploration.drawing import films
from dcgan_dist.exploration.networks import Trained
from dcgan_dist.exploration.walk import PARTS, Path, WalkConfig, distances, interpolate, measure_smoothness
from dcgan_dist.explore import main
from dcgan_dist.models.network import Generator

Opened = Callable[..., Trained]


class Memoriser(Generator):
    """Return the stored image whose z is nearest."""

    def __init__(self, z: torch.Tensor, images: torch.Tensor) -> None:
        super().__init__(z.shape[1], 0, (-1.0, 1.0))
        self.z, self.images = z, images

    def feature_maps(self, z: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return [self.images[torch.cdist(z, self.z).argmin(dim=1)]]


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def smoothness(run: Trained, frames: int = 27) -> tuple[walk.Smoothness, np.ndarray]:
    path = Path(run, run.draw_z("walk", 4))
    parts = np.linspace(0, 1, frames + 1)
    steps = np.stack([distances(flat(path.images(stretch, parts))) for stretch in range(path.stretches)])
    pairs = distances(flat(run.generate(run.draw_z("pairs", 40), run.y(40))))[::2]
    return measure_smoothness(steps, pairs, lambda stretch, places: flat(path.images(stretch, places)))


def test_normal_z_are_interpolated_by_the_formula_of_the_sphere():
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).unbind()
    parts = torch.linspace(0, 1, 7)
    x, y = a.double().numpy(), b.double().numpy()
    angle = math.acos(x @ y / math.sqrt((x @ x) * (y @ y)))
    formula = [(math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle) for t in parts.tolist()]
    np.testing.assert_allclose(interpolate(a, b, parts, "normal").numpy(), formula, rtol=1e-4, atol=1e-5)


def test_on_the_sphere_the_length_is_kept_and_the_angle_grows_evenly():
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, generator=torch.Generator().manual_seed(1))).unbind()
    path = interpolate(a, b, torch.linspace(0, 1, 6), "normal").double()
    np.testing.assert_allclose(path.norm(dim=1), 1, rtol=1e-5)
    angles = torch.arccos((path[:-1] * path[1:]).sum(dim=1))
    np.testing.assert_allclose(angles, float(angles.mean()), rtol=1e-3)


def test_uniform_z_are_interpolated_along_a_straight_line_in_the_cube():
    a, b = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.0])
    found = interpolate(a, b, torch.tensor([0.25, 0.5]), "uniform")
    assert found.tolist() == [[-0.5, 0.375], [0.0, 0.25]]


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_stretch_begins_and_ends_exactly_at_the_random_z(distribution):
    for seed in range(20):
        a, b = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed)).unbind()
        path = interpolate(a, b, torch.tensor([0.0, 1.0]), distribution)
        assert torch.equal(path[0], a)
        assert torch.equal(path[1], b)


@pytest.mark.parametrize("frames", [9, 27, 60])
def test_a_memorising_generator_is_distinguished_from_a_smooth_one_at_any_step_size(opened: Opened, frames):
    smooth = opened("gan")
    z = smooth.draw_z("stored", 6)
    stored = Memoriser(z, smooth.generator(z, smooth.y(6)))
    of_smooth, _ = smoothness(smooth, frames)
    of_stored, cut = smoothness(replace(smooth, generator=stored), frames)
    assert not of_smooth.jumps
    assert of_smooth.jump < 3
    assert of_smooth.cut_step < 2 / PARTS
    assert of_stored.jumps
    assert of_stored.cut_step == 1.0
    assert of_stored.jump > 2 * of_smooth.jump
    assert of_stored.largest_steps > 2 * of_smooth.largest_steps
    assert (cut > 0).sum() == 1


def test_the_measures_are_those_of_a_computation_by_hand():
    steps = np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 2.0]])
    asked = []

    def path(stretch: int, parts: np.ndarray) -> np.ndarray:
        asked.append((stretch, parts))
        return np.arange(PARTS + 1.0)[:, None] ** 2

    found, cut = measure_smoothness(steps, np.array([4.0, 8.0]), path)
    assert found.mean_step == 2 / 6
    assert found.jump == 2
    assert found.largest_steps == 4 / 12
    assert found.cut_step == (PARTS**2 - (PARTS - 1) ** 2) / PARTS**2
    assert cut.tolist() == [2 * number + 1 for number in range(PARTS)]
    assert asked[0][0] == 1
    np.testing.assert_allclose(asked[0][1], np.linspace(0, 1 / 3, PARTS + 1))


def test_a_generator_of_one_image_is_called_collapsed(opened: Opened):
    run = opened("gan")
    found, _ = smoothness(replace(run, generator=Memoriser(torch.zeros(1, 8), torch.zeros(1, 3, 16, 16))), 9)
    assert math.isnan(found.jump)
    assert "same" in walk.finding(found)


def test_rows_of_a_conditional_run_have_the_classes_in_turn_or_the_one_asked_for(opened: Opened):
    run = opened("cgan")
    points = run.draw_z("walk", 3)
    for label, expected in ((None, [0, 1]), ("1", [1, 1])):
        for stretch, wanted in enumerate(expected):
            y = torch.eye(run.classes)[[wanted, wanted]]
            images = Path(run, points, label).images(stretch, np.array([0.0, 1.0]))
            assert np.array_equal(images, run.generate(points[stretch : stretch + 2], y))


@pytest.mark.parametrize("name", ["dcgan", "cdcgan"])
def test_the_walk_is_drawn_the_same_for_the_same_seed(opened: Opened, monkeypatch, name):
    monkeypatch.setattr(walk, "PAIRS", 3)
    config = WalkConfig(points=3, between=1, frames=3, animation="gif")
    measured, again = walk.measure(config, opened(name)), walk.measure(config, opened(name))
    assert measured.numbers == again.numbers
    assert measured.steps.shape == (2, 3)
    canvas, of_again = walk.draw(measured), walk.draw(again)
    assert canvas.files == of_again.files
    assert canvas.png() == of_again.png()
    with Image.open(io.BytesIO(canvas.files[".gif"])) as film:
        there = 7 if name == "dcgan" else 8  # where the class changes, the random z between two rows is shown twice
        assert film.n_frames <= 2 * there - 2  # Pillow joins equal frames
        assert film.n_frames > 3


def test_animations_play_every_frame_forwards_and_backwards():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    made = films(frames, 1.0, "gif") | films(frames, 1.0, "webp")
    assert set(made) == {".gif", ".webp"}
    for content in made.values():
        with Image.open(io.BytesIO(content)) as film:
            assert film.n_frames == 8
            assert film.size == (128, 128)


def test_an_mp4_is_refused_where_there_is_no_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs ffmpeg.*take gif"):
        WalkConfig(animation="mp4")
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    assert ".mp4" not in films(frames, 1.0, "auto")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
@pytest.mark.parametrize("channels", [1, 3])
def test_ffmpeg_makes_an_mp4(channels):
    frames = np.random.default_rng(0).integers(0, 256, (5, 28, 28, channels), dtype=np.uint8)
    assert films(frames, 1.0, "mp4")[".mp4"][4:8] == b"ftyp"


def test_a_failing_ffmpeg_is_reported_in_one_line(monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\n/bin/cat > /dev/null\necho 'Unknown\nencoder' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"failed to make \(Unknown encoder\): take gif"):
        films(np.zeros((3, 16, 16, 3), np.uint8), 1.0, "mp4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 1}, "points is 1"),
        ({"between": -1}, "between is -1"),
        ({"between": 9, "frames": 9}, "frames is 9: between is 9, take more frames than that"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        WalkConfig(**settings)


def test_a_label_is_refused_for_an_unconditional_run(opened: Opened):
    with pytest.raises(ConfigError, match="unconditional run"):
        walk.measure(WalkConfig(label="3"), opened("dcgan"))


def test_samples_that_are_not_finite_are_refused(opened: Opened):
    run = opened("gan")
    broken = Memoriser(torch.zeros(1, 8), torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(RunDirectoryError, match="not finite"):
        walk.measure(WalkConfig(), replace(run, generator=broken))


@pytest.mark.parametrize("figure", ["walk", "neighbours", "evolution"])
def test_a_run_without_the_checkpoint_is_refused_in_one_line(opened: Opened, figure, tmp_path, capsys):
    location = FilePath(opened("gan").location)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(location / "config.yaml", empty)
    for words, message in (
        (["--run", str(empty)], "has no checkpoint yet"),
        (["--run", str(location), "--step", "77"], "no whole checkpoint of step 77"),
    ):
        assert main([figure, *words, "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
