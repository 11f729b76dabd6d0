"""Whole runs as real processes: what they leave behind, killed and resumed, alone and together."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import kill_and_resume, metrics, signal_torchrun, train, train_and_signal


def checkpoint(run: Path, step: int = 24) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = sorted(folder.glob("*.safetensors"))
    assert [file.stem for file in files] == ["discriminator", "generator", "optim", "signals"]
    return {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}


def state(run: Path, step: int = 24) -> dict[str, object]:
    content = json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    return {key: value for key, value in content.items() if key not in ("seconds", "digest")}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_a_run_leaves_what_the_contract_names(finished_run):
    run = finished_run(1)
    rows = metrics(run)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 24]
    assert rows[-1]["images_seen"] == 24 * 8
    assert rows[-1]["epoch"] == pytest.approx(24 * 8 / 256)
    wanted = {"loss_d", "loss_g", "d_real", "d_fake", "sample_distance", "filter_oscillation", "world_size"}
    assert wanted <= rows[0].keys()
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "real.png", "step-00000000.png", "step-00000010.png", "step-00000020.png", "step-00000024.png",
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000016", "step-00000020", "step-00000024",
    ]  # fmt: skip
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "finished"
    assert status["images_seen"] == 192
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize(
    ("workers", "kill_at"),
    [(1, 1), (1, 6), (1, 23), pytest.param(2, 14, marks=pytest.mark.slow)],
)
def test_a_killed_run_started_again_ends_equal_bit_for_bit(finished_run, tmp_path, workers, kill_at):
    run, whole = tmp_path / "run", finished_run(workers, log_every=1)
    settings = {"run_dir": run, "training.log_every": 1}
    kill_and_resume(settings, kill_at, workers)
    assert differing(checkpoint(run), checkpoint(whole)) == []
    assert state(run) == state(whole)
    assert metrics(run) == metrics(whole)
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss_d")] == list(range(1, 25))


@pytest.mark.slow
def test_with_three_workers_whose_sums_have_an_order_a_resumed_run_ends_equal_bit_for_bit(tmp_path):
    settings = {"data.path": "rooms:240", "training.batch_size": 24, "training.log_every": 1, "model.ngf": 8}
    for run, ends in (("whole", [12]), ("resumed", [4, 12])):
        for steps in ends:
            done = train({**settings, "run_dir": tmp_path / run, "training.steps": steps}, workers=3)
            assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "resumed")


def test_metrics_of_an_interval_cut_by_a_kill_are_equal_too(finished_run, tmp_path):
    run = tmp_path / "run"
    # Checkpoints at 4, 8, ... lie inside the intervals of 5 steps; the kill comes after step 15 was logged.
    assert train_and_signal({"run_dir": run}, signal.SIGKILL, "step 15/") != 0
    assert train({"run_dir": run}).returncode == 0
    assert metrics(run) == metrics(finished_run(1))
    assert differing(checkpoint(run), checkpoint(finished_run(1))) == []


def test_a_finished_run_started_again_says_so_and_goes_on_when_its_steps_are_raised(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run(1), run)
    again = train({"run_dir": run})
    assert again.returncode == 0
    assert "finished already" in again.stdout
    longer = train({"run_dir": run, "training.steps": 30})
    assert longer.returncode == 0
    assert "resuming at step 24" in longer.stdout
    assert metrics(run)[-1]["step"] == 30


def test_every_other_checkpoint_is_kept_forever_and_the_newest_one_besides(tmp_path):
    run = tmp_path / "run"
    settings = {"training.keep_every": 2, "training.keep_last": 1, "training.checkpoint_every": 4}
    done = train({"run_dir": run, "training.steps": 20, **settings})
    assert done.returncode == 0, done.stderr
    steps = sorted(int(path.name[-8:]) for path in (run / "checkpoints").iterdir())
    assert steps == [8, 16, 20]


def test_a_checkpoint_is_made_when_minutes_have_passed(tmp_path):
    run = tmp_path / "run"
    done = train({"run_dir": run, "training.checkpoint_every": 1000, "training.checkpoint_minutes": 1e-4})
    assert done.returncode == 0, done.stderr
    assert len(list((run / "checkpoints").iterdir())) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_run_with_a_checkpoint_at_its_step(tmp_path, number, workers):
    run = tmp_path / "run"
    settings = {"run_dir": run, "training.steps": 4000, "training.checkpoint_every": 4000}
    if workers == 1:
        assert train_and_signal(settings, number, "step 5/") == 128 + number
    else:
        signal_torchrun(settings, number, "step 5/", workers)
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    assert len(list((run / "checkpoints").glob("step-*"))) == 1


def test_changed_settings_are_refused_by_name_and_nothing_is_touched(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run(1), run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "status.json"}
    done = train({"run_dir": run, "model.ngf": 8, "training.batch_size": 16, "data.path": "rooms:300"})
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    for key in ("model.ngf", "training.batch_size", "data.path"):
        assert key in done.stderr
    assert "training.steps" not in done.stderr
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "status.json"}
    assert after.keys() - before.keys() <= {run / ".lock"}
    assert {path: after[path] for path in before} == before


def test_a_checkpoint_of_another_architecture_is_refused(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run(1), run)
    (run / "config.yaml").unlink()
    done = train({"run_dir": run, "model.ngf": 8})
    assert done.returncode == 2
    assert "another architecture" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_diverging_run_ends_with_status_3_and_its_last_finite_state(tmp_path, workers):
    run = tmp_path / "run"
    done = train({"run_dir": run, "optim.lr": 1e30, "training.log_every": 12}, workers)
    assert done.returncode == 3
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "diverged"
    newest = max((run / "checkpoints").glob("step-*"))
    assert all(
        bool(value.isfinite().all()) for file in newest.glob("*.safetensors") for value in load_file(file).values()
    )
    assert json.loads((newest / "state.json").read_text())["step"] < 12


def test_released_updates_use_two_mini_batches_a_step_and_decay_reaches_zero(tmp_path):
    run = tmp_path / "run"
    settings = {"training.updates": "released", "optim.decay": 0.5, "training.log_every": 1, "optim.l2": 1e-5}
    done = train({"run_dir": run, "training.steps": 8, **settings})
    assert done.returncode == 0, done.stderr
    rows = metrics(run)
    assert [row["images_seen"] for row in rows] == [16 * step for step in range(1, 9)]
    assert [row["lr"] for row in rows] == pytest.approx([2e-4 * f for f in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])


def test_synchronised_batch_norm_makes_two_workers_equal_to_one_in_float64(tmp_path):
    settings = {"training.precision": "fp64", "training.sync_batch_norm": "true", "training.steps": 20}
    settings |= {"training.log_every": 1, "training.check_replicas": "true"}
    losses = []
    for workers in (1, 2):
        run = tmp_path / f"run-{workers}"
        done = train(settings | {"run_dir": run}, workers)
        assert done.returncode == 0, done.stderr
        losses.append([[row[key] for key in ("loss_d", "loss_g", "d_real", "d_fake")] for row in metrics(run)])
        assert metrics(run)[-1]["world_size"] == workers
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=0, atol=1e-9)


def test_synchronised_batch_norm_in_float32_agrees_at_the_first_step(tmp_path):
    settings = {"training.sync_batch_norm": "true", "training.steps": 1, "training.log_every": 1}
    rows = []
    for workers in (1, 2):
        done = train(settings | {"run_dir": tmp_path / f"run-{workers}"}, workers)
        assert done.returncode == 0, done.stderr
        rows.append(metrics(tmp_path / f"run-{workers}")[0])
    for key in ("loss_d", "loss_g"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-5)


def test_a_run_resumed_with_another_number_of_workers_sees_each_image_once(tmp_path):
    run = tmp_path / "run"
    settings = {"run_dir": run, "training.steps": 60}
    assert train_and_signal(settings, signal.SIGKILL, "step 15/") != 0
    done = train(settings, workers=2)
    assert done.returncode == 0, done.stderr
    assert metrics(run)[-1]["images_seen"] == 60 * 8
    sizes = [row["world_size"] for row in metrics(run)]
    assert sizes == sorted(sizes)
    assert (len(sizes), sizes[:2], sizes[-1]) == (12, [1, 1], 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.path": "nowhere"}, ["nowhere"]),
        ({"model.image_size": 31}, ["31", "32"]),
        ({"training.batch_size": 512}, ["512", "256 images"]),
        ({"cluster.workers": 3}, ["batch_size", "8", "3"]),
        ({"optim.lr": "fast"}, ["optim.lr", "fast"]),
        ({"optim.lrr": "1"}, ["optim.lrr", "optim.lr"]),
        ({"run_dir": "/dev/null/run"}, ["/dev/null/run"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_value(tmp_path, settings, words):
    run = tmp_path / "run"
    done = train({"run_dir": run, **settings})
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (run / "config.yaml").exists()
