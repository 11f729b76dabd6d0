"""The averaged generator against its definition, in whole runs, killed and resumed, alone and together."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from dcgan_dist import evaluate, explore, export, sample
from dcgan_dist.command_line import build_settings
from dcgan_dist.config import Config
from dcgan_dist.errors import ConfigError
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.runs.run import Run
from dcgan_dist.training.averaging import GeneratorAverage, kept_share
from dcgan_dist.training.sampling import fixed_inputs, make_grid, sample_feature_maps, to_uint8
from dcgan_dist.training.trained import load_generator
from tests.conftest import TINY, kill_and_resume, metrics, train
from tests.training.test_trainer import differing

DECAY = 0.99
ON = {"training.average": DECAY, "training.keep_last": 100}
BATCH = 8


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {
        f"{file.stem}/{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps with a checkpoint of each."""
    run = tmp_path_factory.mktemp("averaged") / "run"
    done = train({**ON, "run_dir": run, "training.checkpoint_every": 1, "training.log_every": 1})
    assert done.returncode == 0, done.stderr
    return run


@given(st.floats(0.01, 0.99999), st.integers(0, 200_000), st.integers(1, 300))
def test_the_share_that_is_kept_is_the_product_over_the_images(decay: float, first: int, count: int) -> None:
    expected = math.prod(min(decay, (1 + k) / (10 + k)) for k in range(first, first + count))
    assert math.isclose(kept_share(decay, first, count), expected, rel_tol=1e-9, abs_tol=1e-300)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_a_decay_means_the_same_for_every_size_of_batches(sizes: list[int]) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    kept = math.prod(kept_share(0.98, start, size) for start, size in zip(starts, sizes, strict=True))
    assert math.isclose(kept, kept_share(0.98, 0, sum(sizes)), rel_tol=1e-9, abs_tol=1e-300)


def test_each_checkpoint_holds_the_average_of_the_generators_before_it(averaged: Path) -> None:
    """Weights by the definition, image by image, in float64 from the generators of all steps."""
    model = load_generator(Run(averaged), 1, "raw").model
    start, _ = build_networks(model)
    initialise(start, model, 0)
    expected = {name: value.double() for name, value in start.state_dict().items()}
    for step in range(1, 25):
        raw = load_file(averaged / "checkpoints" / f"step-{step:08d}" / "generator.safetensors")
        found = load_file(averaged / "checkpoints" / f"step-{step:08d}" / "generator_average.safetensors")
        assert found.keys() == raw.keys()
        for number in range((step - 1) * BATCH, step * BATCH):
            keep = min(DECAY, (1 + number) / (10 + number))
            for name in raw:
                expected[name] = keep * expected[name] + (1 - keep) * raw[name].double()
        for name, value in found.items():
            if "running" not in name and value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_averaging_changes_nothing_of_the_training(averaged: Path, tmp_path: Path) -> None:
    done = train({"run_dir": tmp_path / "off", "training.log_every": 1})
    assert done.returncode == 0, done.stderr
    with_it, without = tensors(averaged, 24), tensors(tmp_path / "off", 24)
    assert {name.split("/")[0] for name in with_it.keys() - without.keys()} == {"generator_average"}
    assert differing({name: with_it[name] for name in without}, without) == []
    assert metrics(averaged) == metrics(tmp_path / "off")  # the signals are those of the raw generator
    assert not list((tmp_path / "off/samples").glob("raw-*"))


def test_grids_are_drawn_by_the_average_and_beside_them_by_the_raw_weights(averaged: Path) -> None:
    for grid, weights in (("step-00000020.png", "average"), ("raw-step-00000020.png", "raw")):
        generator, model, _, found = load_generator(Run(averaged), 20, weights)
        assert found == weights
        z, y = fixed_inputs(model, 0, 9)
        images, _ = sample_feature_maps(generator, z, y, model)
        drawn = np.asarray(Image.open(averaged / "samples" / grid))
        assert np.abs(drawn.astype(int) - make_grid(to_uint8(images, generator.image_range))).max() <= 1
    assert (averaged / "samples/raw-step-00000000.png").exists()


@pytest.mark.parametrize(("workers", "kill_at"), [(1, 7), pytest.param(2, 14, marks=pytest.mark.slow)])
def test_a_killed_run_with_an_average_ends_equal_bit_for_bit(tmp_path: Path, workers: int, kill_at: int) -> None:
    settings = {**ON, "training.log_every": 1, "training.check_replicas": "true"}
    assert train({**settings, "run_dir": tmp_path / "whole"}, workers).returncode == 0
    settings["run_dir"] = tmp_path / "run"
    kill_and_resume(settings, kill_at, workers)
    assert differing(tensors(tmp_path / "run", 24), tensors(tmp_path / "whole", 24)) == []
    for grid in (tmp_path / "whole/samples").iterdir():
        assert (tmp_path / "run/samples" / grid.name).read_bytes() == grid.read_bytes()


def test_grids_of_raw_weights_beyond_the_checkpoint_go_as_the_others_do(averaged: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(averaged, tmp_path / "run"))
    for step in range(13, 25):
        shutil.rmtree(run / f"checkpoints/step-{step:08d}")
    shutil.copy(run / "samples/raw-step-00000010.png", run / "samples/raw-step-00000013.png")
    again = {**ON, "run_dir": run, "training.checkpoint_every": 12, "training.steps": 13}
    done = train({**again, "training.on_damaged_run": "set-aside"})
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (run / "samples").glob("raw-*"))
    assert names == [f"raw-step-000000{step}.png" for step in ("00", "10", "13")]


def test_a_checkpoint_without_an_average_begins_one_with_its_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train({"run_dir": run, "training.steps": 12}).returncode == 0
    done = train({**ON, "run_dir": run, "training.steps": 13})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the checkpoint has no averaged weights: they begin as those of step 12\n") == 1
    assert json.loads((run / "checkpoints/step-00000013/state.json").read_text())["average_from"] == 12
    before, after, average = (
        load_file(run / f"checkpoints/step-000000{step}/{name}.safetensors")
        for step, name in ((12, "generator"), (13, "generator"), (13, "generator_average"))
    )
    keep = kept_share(DECAY, 0, BATCH)
    for name, value in average.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, before[name] * keep + after[name] * (1 - keep), rtol=1e-5, atol=1e-6)
    done = train({**ON, "run_dir": run, "training.steps": 14})  # now it has one
    assert "no averaged weights" not in done.stdout
    done = train({"run_dir": run, "training.steps": 15})  # and without the setting it is left behind
    assert done.returncode == 0
    assert not (run / "checkpoints/step-00000015/generator_average.safetensors").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_steps_that_are_not_finite_leave_the_average_alone(tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    done = train({**ON, "run_dir": run, "optim.lr": 1e30, "training.log_every": 12}, workers)
    assert done.returncode == 3
    state = json.loads((run / "status.json").read_text())
    found = tensors(run, state["step"])
    assert state["step"] == 0  # the learning rate is absurd: no step was ever whole
    for name, value in found.items():
        if name.startswith("generator/") and "running" not in name and "num_batches" not in name:
            assert torch.equal(found[name.replace("generator/", "generator_average/")], value)


def test_a_step_that_is_not_finite_leaves_the_average_alone_and_the_next_does_not() -> None:
    config = build_settings(Config, {**TINY, "training.average": DECAY, "model.channels": 3, "model.classes": 0})
    network, _ = build_networks(config.model)
    initialise(network, config.model, 0)
    average = GeneratorAverage(network, config)
    before = [parameter.clone() for parameter in average.network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    average.update(network, 5, torch.tensor(0.0))
    assert all(map(torch.equal, average.network.parameters(), before))
    average.update(network, 6, torch.tensor(1.0))
    assert not any(map(torch.equal, average.network.parameters(), before))


def test_an_average_on_two_workers_is_the_same_on_both_and_near_that_of_one(averaged: Path, tmp_path: Path) -> None:
    settings = {
        **ON,
        "training.check_replicas": "true",
        "training.sync_batch_norm": "true",
        "training.precision": "fp64",
    }
    for workers in (1, 2):
        done = train({**settings, "run_dir": tmp_path / str(workers), "training.log_every": 1}, workers)
        assert done.returncode == 0, done.stderr
    one, two = (tensors(tmp_path / name, 24) for name in "12")
    for name, value in one.items():
        if name.startswith("generator_average/") and value.is_floating_point():
            assert value.dtype == torch.float64
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9)


def test_under_bfloat16_the_average_is_of_float32(tmp_path: Path) -> None:
    done = train({**ON, "run_dir": tmp_path / "run", "training.precision": "bf16", "training.steps": 4})
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "run/checkpoints/step-00000004/generator_average.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}


def test_samples_figures_and_exports_take_the_average_unless_they_are_told_otherwise(
    averaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {}
    for words in ((), ("--weights=average",), ("--weights=raw",)):
        output = tmp_path / f"{len(drawn)}.npz"
        assert sample.main([f"--run={averaged}", "--count=4", f"--output={output}", "--workers=1", *words]) == 0
        assert ("(averaged weights)" in capsys.readouterr().out) == (words != ("--weights=raw",))
        drawn[words] = np.load(output)["images"]
    np.testing.assert_array_equal(drawn[()], drawn["--weights=average",])
    assert (drawn[()] != drawn["--weights=raw",]).any()
    for name, words in (("average", []), ("raw", ["--weights=raw"])):
        assert explore.main(["sheet", f"--run={averaged}", f"--output={tmp_path / name}", *words]) == 0
        assert json.loads((tmp_path / name / "sheet.json").read_text())["weights"] == name
    assert (tmp_path / "average/sheet.png").read_bytes() != (tmp_path / "raw/sheet.png").read_bytes()
    programs = {}
    for name in ("average", "raw"):
        output = tmp_path / f"{name}.pt2"
        assert export.main([f"--run={averaged}", f"--output={output}", f"--weights={name}"]) == 0
        programs[name] = torch.export.load(output).state_dict
    assert any(not torch.equal(value, programs["raw"][key]) for key, value in programs["average"].items())


def test_scores_of_both_weights_stand_beside_each_other(averaged: Path, tmp_path: Path) -> None:
    run = shutil.copytree(averaged, tmp_path / "run")
    words = [f"--run={run}", "--task=fidelity", "--count=100", "--data=rooms:200", "--test-data=rooms:150"]
    for more in ([], ["--weights=raw"], ["--weights=raw"]):
        assert evaluate.main([*words, *more]) == 0
    entries = json.loads((run / "scores.json").read_text())["fidelity"]
    assert sorted(entry.get("weights", "") for entry in entries) == ["", "average", "raw"]
    by_weights = {entry.get("weights"): entry["metrics"]["sample_distance"]["value"] for entry in entries}
    assert by_weights["average"] != by_weights["raw"]


def test_averaged_weights_of_a_run_without_any_are_one_line(
    finished_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(1)
    with pytest.raises(ConfigError, match=r"training\.average was 0"):
        load_generator(Run(run), 24, "average")
    for command, words in (
        (sample, [f"--output={tmp_path / 'a.png'}"]),
        (export, [f"--output={tmp_path / 'a.pt2'}"]),
        (explore, [f"--output={tmp_path / 'figures'}"]),
        (evaluate, ["--task=fidelity", "--count=10"]),
    ):
        front = ["walk"] if command is explore else []
        assert command.main([*front, f"--run={run}", "--weights=average", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "weights is 'average', but" in said
        assert "leave it out, or take raw" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("decay", ["1", "1.5", "-0.1", "nan", "much"])
def test_a_decay_out_of_range_is_one_line(tmp_path: Path, decay: str) -> None:
    done = train({"run_dir": tmp_path / "run", "training.average": decay})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "training.average" in done.stderr
    assert not (tmp_path / "run").exists()
