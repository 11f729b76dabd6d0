"""The Python API: the same results as the commands, quiet, typed, and callable whatever was imported before."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import math
import os
import pickle
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dcgan_dist as dd
from dcgan_dist import api
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.errors import ConfigError, DataError, DcganDistError, RunDirectoryError, Stopped
from dcgan_dist.runs.run import Run as SavedRun
from dcgan_dist.train import main as train_command
from tests.conftest import TINY, metrics, options
from tests.runs.conftest import s3_server

__all__ = ["s3_server"]

SHORT = {**TINY, "training.steps": 8}
TERMINAL = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}


def subclasses_of(kind: type[DcganDistError]) -> list[type[DcganDistError]]:
    below = kind.__subclasses__()
    return [*below, *itertools.chain.from_iterable(map(subclasses_of, below))]


def in_new_process(code: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def test_importing_the_package_loads_no_torch_and_takes_no_time() -> None:
    code = """
import sys, time
begun = time.process_time()
import dcgan_dist
seconds = time.process_time() - begun
print([name for name in ("torch", "ray", "numpy", "msgspec", "fsspec") if name in sys.modules], seconds)
assert {"train", "Run", "stream"} <= set(dir(dcgan_dist))
"""
    done = in_new_process(code)
    assert done.returncode == 0, done.stderr
    loaded, seconds = done.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 0.15


@pytest.mark.parametrize("name", ["evaluate", "explore", "prepare", "report", "sample", "sweep", "train"])
def test_a_command_and_the_function_of_its_name_are_one_attribute_in_any_order_of_imports(name: str) -> None:
    uses = (f"import dcgan_dist.{name}", f"dd.{name}", f"from dcgan_dist import {name}")
    for first in uses:
        for second in uses:
            code = f"import dcgan_dist as dd\n{first}\n{second}\nassert callable(dd.{name}) and dd.{name}.main\n"
            done = in_new_process(code)
            assert done.returncode == 0, (first, second, done.stderr)


@pytest.mark.parametrize("name", ["evaluate", "explore", "prepare", "report", "sample", "sweep", "train"])
def test_the_functions_tell_their_parameters(name: str) -> None:
    assert inspect.signature(getattr(dd, name)) == inspect.signature(getattr(api, name))


def test_training_works_again_and_again_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = dd.train(SHORT, {"training.epochs": None, "run_dir": str(tmp_path / "a")})
    assert capfd.readouterr() == ("", "")
    assert train_command(options({**SHORT, "run_dir": tmp_path / "b"})) == 0
    capfd.readouterr()
    import dcgan_dist.train  # noqa: F401 - takes the name of the function

    second = dd.train(SHORT, {"run_dir": str(tmp_path / "c")})
    assert capfd.readouterr() == ("", "")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") == metrics(tmp_path / "c")
    assert first.checkpoints[-1].state["files"] == dd.Run(tmp_path / "b").checkpoints[-1].state["files"]
    # The same run directory: it is finished, and goes on where more steps are asked for.
    assert dd.train(SHORT, {"run_dir": str(tmp_path / "c")}).checkpoints[-1].digest == second.checkpoints[-1].digest
    assert dd.train(SHORT, {"run_dir": str(tmp_path / "c"), "training.steps": 12}).steps[-1] == 12


def test_threads_that_wait_leave_the_cores_to_others(tmp_path: Path) -> None:
    code = """
import os, sys
import dcgan_dist as dd
dd.load_config(), dd.stream
assert "torch" not in sys.modules
dd.{call}
assert "torch" in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    train = code.format(call=f"train({ {**SHORT, 'run_dir': str(tmp_path / 'run'), 'training.steps': 1} })")
    stream = code.format(call="stream('rooms:256', batch_size=8)")
    inherited = os.environ.keys() - {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: os.environ[name] for name in inherited}
    for program, given, spins in (
        (train, {}, "1000"),
        (stream, {}, "1000"),
        (stream, {"GOMP_SPINCOUNT": "7"}, "7"),
    ):
        done = in_new_process(program, environment | given)
        assert (done.stdout, done.stderr) == (f"{spins}\n", "")


def test_settings_are_a_file_an_object_or_names_that_are_dotted_or_nested(tmp_path: Path) -> None:
    dotted = {**SHORT, "optim.lr": 1e-3}
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        *groups, last = key.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(nested))
    configs = [dd.load_config(each) for each in (dotted, nested, path, str(path), dd.load_config(dotted))]
    assert all(config == configs[0] for config in configs)
    assert configs[0].optim.lr == 1e-3
    assert dd.load_config(path, {"optim.lr": 2e-3}).optim.lr == dd.override(configs[0], {"optim.lr": 2e-3}).optim.lr
    assert dd.load_config().data.path == "rooms:20000"


def test_none_clears_a_setting() -> None:
    given = {"training.epochs": 3}
    assert dd.load_config(given).training.epochs == 3
    cleared = dd.load_config(given, {"training.epochs": None, "training.steps": 5}).training
    assert (cleared.epochs, cleared.steps) == (None, 5)


def test_what_cannot_be_used_is_an_error_of_the_package_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    location = tmp_path / "run"
    for settings, kind, says in (
        ({"optim.lrr": 1}, ConfigError, "optim.lr"),
        ({"optim.lr": "fast"}, ConfigError, "'fast'"),
        ({"data.path": str(tmp_path / "none")}, DataError, "none"),
    ):
        with pytest.raises(kind, match=says):
            dd.train({**SHORT, **settings, "run_dir": str(location)})
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        dd.Run(location).sample(1)
    with pytest.raises(ConfigError, match="figure is 'fig'"):
        dd.explore("fig", {"run": str(location)})
    assert not location.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [DcganDistError, *subclasses_of(DcganDistError)])
def test_errors_travel_between_processes(kind: type[DcganDistError]) -> None:
    error = Stopped(signal.SIGINT, "why") if kind is Stopped else kind("why")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, "why", vars(error))


def test_progress_is_every_log_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    run = dd.train(
        SHORT, {"run_dir": str(tmp_path), "training.log_every": 2}, progress=lambda row: rows.append({**row})
    )
    assert [row["step"] for row in rows] == run.metrics()["step"].tolist() == [2, 4, 6, 8]
    assert [row["loss_d"] for row in rows] == run.metrics()["loss_d"].tolist()


def test_a_bar_is_drawn_in_a_terminal_and_nothing_elsewhere(tmp_path: Path) -> None:
    given = {**SHORT, "run_dir": str(tmp_path / "run")}
    code = f"import dcgan_dist as dd\ndd.train({given!r}, progress=True)"
    terminal, its_end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its_end, stderr=its_end, env=TERMINAL)
    os.close(its_end)
    drawn = b""
    with contextlib.suppress(OSError):  # the way in which a terminal says that its other end is closed
        while part := os.read(terminal, 4096):
            drawn += part
    os.close(terminal)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode()).rstrip().rpartition("\r")[2]
    assert re.fullmatch(r"training ━+ 8/8 0:00:00 loss_d \d\.\d+, loss_g \d\.\d+, \d+ images/s", shown)
    shutil.rmtree(tmp_path / "run")
    done = in_new_process(code, TERMINAL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_run_tells_what_its_files_say(finished_run: Callable[..., Path]) -> None:
    path = finished_run(1)
    run = dd.Run(path)
    assert run.status is not None
    assert (run.status["status"], run.config.training.steps, run.config.model.ngf) == ("finished", 24, 4)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    columns = run.metrics()
    assert columns["loss_d"].tolist() == [line["loss_d"] for line in lines]
    assert all(column.shape == (len(lines),) and column.dtype == np.float64 for column in columns.values())
    states = [json.loads(file.read_text()) for file in sorted(path.glob("checkpoints/*/state.json"))]
    assert [(c.step, c.digest) for c in run.checkpoints] == [(state["step"], state["digest"]) for state in states]
    assert run == pickle.loads(pickle.dumps(run))


def test_samples_are_those_of_the_command(finished_run: Callable[..., Path], tmp_path: Path) -> None:
    run = dd.Run(finished_run(1))
    images = run.sample(70, seed=3)
    assert (images.shape, images.dtype) == ((70, 16, 16, 3), np.uint8)
    output = dd.sample({"run": run.location, "count": 70, "seed": 3, "output": str(tmp_path / "x.npz")})
    np.testing.assert_array_equal(images, np.load(output)["images"])
    with pytest.raises(ConfigError, match="count is 0"):
        run.sample(0)


def test_scores_are_those_of_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = dd.train(SHORT, {"run_dir": str(tmp_path / "run")})
    scores = run.evaluate("rooms", count=200, cs=[1e-3], cache=str(tmp_path))
    assert capfd.readouterr().out == ""
    (entry,) = json.loads((tmp_path / "run/scores.json").read_text())["rooms"]
    assert [json.loads(json.dumps(score.entry)) for score in scores] == [entry]
    accuracy = scores[0].metrics["accuracy"]
    assert (scores[0].step, accuracy.value, list(accuracy.ci95 or ())) == (
        8,
        entry["metrics"]["accuracy"]["value"],
        entry["metrics"]["accuracy"]["ci95"],
    )
    assert run.scores == {"rooms": scores}


def test_a_value_that_could_not_be_computed_is_no_number(tmp_path: Path) -> None:
    run = SavedRun(tmp_path)
    run.add_scores("x", [{"method": "m", "step": 1, "protocol": "p", "metrics": {"a": {"value": math.nan}}}])
    (score,) = run.scores["x"]
    assert math.isnan(score.metrics["a"].value)
    assert (score.metrics["a"].ci95, score.metrics["a"].n) == (None, None)


def test_figures_shards_and_reports_say_where_they_are(
    finished_run: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    figure = dd.explore("walk", {"run": str(finished_run(1)), "output": str(tmp_path / "figures")})
    from dcgan_dist.exploration.walk import Walk

    about = json.loads(Path(figure.files[-1]).read_text())
    assert (about["finding"], about["numbers"]) == (figure.finding, figure.numbers)
    assert isinstance(figure.measured, Walk)
    assert figure.measured.steps.tolist() == figure.numbers["steps"]
    assert Image.open(figure.files[0]).format == "PNG"
    manifest = dd.prepare({"source": "rooms", "output": str(tmp_path / "shards"), "count": 20, "workers": 1})
    assert (manifest.count, manifest.image_size, len(manifest.shards)) == (20, 64, 1)
    page, *tables = dd.report(finished_run(1).parent, tmp_path / "report.html")
    assert page.read_text().startswith("<!doctype html>")
    assert all(table.exists() for table in tables)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_lines_go_to_whom_they_are_asked_to_go(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    settings = {"source": "rooms", "output": str(tmp_path / "shards"), "count": 20, "workers": 1}
    dd.prepare(settings, progress=lambda row: lines.append(row["line"]))
    assert lines[-1].startswith(f"{tmp_path / 'shards'}: 20 colour images")
    dd.prepare(settings, progress=True)
    assert "nothing to do" in capfd.readouterr().out


def test_a_stream_whose_rooms_are_made_first_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcgan_dist.data.progress.PLAIN_PERIOD_S", 0.0)
    open_dataset("rooms:50", cache=tmp_path / "a")
    assert "drawing rooms:50" in capfd.readouterr().err  # as commands do
    assert dd.stream("rooms:50", batch_size=10, cache=tmp_path / "b").source.batches_per_epoch == 5
    assert capfd.readouterr() == ("", "")


def test_a_run_on_object_storage_is_opened_like_any_other(s3_server: object, finished_run: Callable[..., Path]) -> None:
    from dcgan_dist.storage.folder import RemoteFolder

    local, remote = finished_run(1), RemoteFolder("s3://results/run")
    for path in local.rglob("*"):
        if path.is_file():
            remote.put(path.relative_to(local).as_posix(), path)
    there, here = dd.Run("s3://results/run"), dd.Run(local)
    np.testing.assert_array_equal(there.sample(8), here.sample(8))
    assert there.metrics()["loss_g"].tolist() == here.metrics()["loss_g"].tolist()
    assert [c.digest for c in there.checkpoints] == [c.digest for c in here.checkpoints]
    assert there.config == here.config


def test_weights_and_steps_that_there_are_not_are_refused(finished_run: Callable[..., Path]) -> None:
    run = dd.Run(finished_run(1))
    with pytest.raises(ConfigError, match="weights is 'averaged': take auto, average or raw"):
        run.sample(2, weights="averaged")  # type: ignore[arg-type]
    for step in (-1, "newest"):
        with pytest.raises(ConfigError, match=f"step is '{step}': take latest, all, or the number"):
            run.sample(2, step=step)  # type: ignore[arg-type]


def test_a_run_that_is_not_there_is_not_opened(tmp_path: Path) -> None:
    for location in (tmp_path / "typo", tmp_path, ""):
        with pytest.raises(RunDirectoryError, match="is no run directory"):
            dd.Run(location)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"count": "8"}, "count is '8'"),
        ({"count": 8.0}, "count is 8.0"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"truncation": "a"}, "truncation is 'a'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"statistics": "measured"}, "statistics is 'measured'"),
        ({"label": 3}, "label is '3'"),
    ],
)
def test_samples_that_cannot_be_are_refused(finished_run: Callable[..., Path], settings: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dd.Run(finished_run(1)).sample(**{"count": 2, **settings})


def test_what_is_no_settings_is_refused(finished_run: Callable[..., Path]) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: dd.train(5),  # type: ignore[arg-type]
        lambda: dd.train(["a"]),  # type: ignore[arg-type]
        lambda: dd.train("rooms", "optim.lr=1"),  # type: ignore[arg-type]
        lambda: dd.override(dd.load_config(), {"optim.lr": "x"}),
        lambda: dd.Run(finished_run(1)).checkpoint("latest"),  # type: ignore[arg-type]
        lambda: dd.stream("rooms:64", batch_size="16"),  # type: ignore[arg-type]
        lambda: dd.stream("rooms:64", batch_size=16, seed="a"),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(ConfigError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert dd.override(dd.load_config(), {"optim": {"lr": 1e-2}}).optim.lr == 1e-2


def test_a_run_and_a_path_are_settings_too(finished_run: Callable[..., Path], tmp_path: Path) -> None:
    run = dd.Run(finished_run(1))
    assert dd.sample({"run": run, "count": 2, "output": tmp_path / "x.npz"}) == str(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "entry", [{}, {"metrics": {"a": 5}}, "abc", {"method": "m", "protocol": "p", "metrics": {"a": 5}}]
)
def test_what_is_no_score_is_not_written(entry: Any, tmp_path: Path) -> None:
    run = SavedRun(tmp_path)
    with pytest.raises(ConfigError, match="the score is"):
        run.add_scores("x", [entry])
    assert run.scores == {}
    (tmp_path / "scores.json").write_text('{"x": [{"step": 1, "metrics": {"a": 5}}]}')
    with pytest.raises(RunDirectoryError, match="has an invalid score"):
        _ = run.scores
