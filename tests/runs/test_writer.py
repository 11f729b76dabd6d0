from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import yaml
from moto.server import ThreadedMotoServer
from PIL import Image

from dcgan_dist.errors import InputError, RunDirectoryError, StorageError
from dcgan_dist.results.walking import find
from dcgan_dist.runs import lease, writer
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import RunWriter, open_run
from dcgan_dist.storage import folder
from dcgan_dist.storage.folder import RemoteFolder
from tests.conftest import fill
from tests.runs.conftest import StartWriter
from tests.runs.test_events import read as read_scalars


def append_row(run: RunWriter, row: dict[str, Any]) -> None:
    """Append to metrics.jsonl and to TensorBoard's scalars, as the hooks of training do."""
    run.append_metrics(row)
    run.append_scalars(row["step"], {key: value for key, value in row.items() if key != "step"})


def tensors(folder: Path) -> None:
    (folder / "networks.safetensors").write_bytes(b"n" * 6000)


def objects() -> dict[str, bytes]:
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket="results").get("Contents", [])
    return {entry["Key"]: client.get_object(Bucket="results", Key=entry["Key"])["Body"].read() for entry in listed}


both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)


@both
def test_reopened_run_finds_what_was_written(location: str, tmp_path: Path) -> None:
    settings = {"seed": 3, "optim": {"lr": 2e-4, "eps": 1e-8}, "model": {"image_size": None}}
    with open_run(location, scratch=tmp_path / "scratch a") as run:
        assert run.read_config() is None
        assert run.newest_checkpoint() is None
        assert run.previous is None
        run.set_status("running", step=0)
        run.write_config(settings, {"torch": "2.9.0", "git_commit": "abc"})
        append_row(run, {"step": 10, "loss_d": 0.5})
        run.commit_checkpoint(10, tensors, {"epoch": 1})
        append_row(run, {"step": 20, "loss_d": 0.25})
        run.set_status("stopped", "signal 15", step=20)
    with open_run(location, scratch=tmp_path / "scratch b") as run:
        assert run.read_config() == {**settings, "environment": {"torch": "2.9.0", "git_commit": "abc"}}
        newest = run.newest_checkpoint()
        assert newest is not None
        assert (newest.step, newest.state["epoch"]) == (10, 1)
        assert (newest.path / "networks.safetensors").read_bytes() == b"n" * 6000
        assert read_scalars(run.local) == {"loss_d": [(10, 0.5), (20, 0.25)]}
        run.rewind(10)
        append_row(run, {"step": 20, "loss_d": 0.125})
        assert read_scalars(run.local) == {"loss_d": [(10, 0.5), (20, 0.125)]}
        run.set_status("finished", step=20)
    assert Run(location).rows() == [{"step": 10, "loss_d": 0.5}, {"step": 20, "loss_d": 0.125}]
    found = Run(location).status
    assert found is not None
    assert (found["status"], found["step"], found["locked"]) == ("finished", 20, False)
    assert not list(tmp_path.glob("scratch */*"))  # temporary folders are gone


WORK = """
with open_run(sys.argv[1]) as run:
    run.set_status("running")
    newest = run.newest_checkpoint()
    start = newest.step if newest else 0
    run.rewind(start)
    print("start", start, flush=True)
    for step in range(start + 1, int(sys.argv[2]) + 1):
        run.append_metrics({"step": step, "loss_d": 1 / step})
        run.append_scalars(step, {"loss_d": 1 / step})
        if step % 4 == 0:
            run.write_image(f"step-{step:08d}", np.full((8, 8, 3), step % 256, np.uint8))
            def write(folder):
                for name in "abc":
                    (folder / name).write_bytes(step.to_bytes(4, "big") * 20_000)
            run.commit_checkpoint(step, write, {"epoch": step // 100})
            run.prune_checkpoints(2, 100)
            print("saved", step, flush=True)
    run.set_status("finished", step=int(sys.argv[2]))
    print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("location", "kills", "steps"), [("local", 4, 600), ("s3", 2, 36)], indirect=["location"])
def test_a_run_killed_at_any_moment_resumes_and_ends_as_if_it_had_not_been_killed(
    location: str, kills: int, steps: int, start_writer: StartWriter
) -> None:
    moments = random.Random(5)
    starts = []
    for kill in range(kills + 1):
        writer = start_writer(WORK, location, steps)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        while first and not first.startswith("start"):
            first = writer.stdout.readline()
        starts.append(int(first.split()[1]))
        if kill < kills:
            if kill > 0:  # the first time perhaps before there is a checkpoint, then after one, however slow the disk
                assert writer.stdout.readline().startswith(("saved", "finished"))
            time.sleep(moments.uniform(0.02, 0.3))
            writer.kill()
            writer.wait()
        else:
            rest = writer.stdout.read()
            assert rest.endswith("finished\n"), rest  # also of a run that had nothing left to do
    assert starts == sorted(starts)
    assert starts[-1] > 0
    assert Run(location).rows() == [{"step": step, "loss_d": 1 / step} for step in range(1, steps + 1)]
    with open_run(location) as run:
        assert [step for step, _ in read_scalars(run.local)["loss_d"]] == list(range(1, steps + 1))
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == steps
        assert run.previous is not None
        assert run.previous["status"] == "finished"
    if location.startswith("s3"):
        names = [name.removeprefix(location.removeprefix("s3://results/")) for name in objects()]
        assert not list(Path(tempfile.gettempdir()).iterdir())  # nor did killed processes leave their copies
    else:
        names = [path.relative_to(location).as_posix() for path in Path(location).rglob("*")]
    hundreds = set(range(100, steps + 1, 100))
    kept = {name.split("step-")[1][:8] for name in names if "checkpoints/step-" in name}
    assert kept == {f"{step:08d}" for step in hundreds | {steps, steps - 4}}
    assert sum("samples/step-" in name for name in names) == steps // 4
    assert not [name for name in names if "writing" in name or "removed" in name]


def test_rewind_discards_lines_events_grids_checkpoints_beyond_the_step_and_an_incomplete_line(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        run.write_image("real", np.zeros((4, 4, 3), np.uint8))
        for step in (10, 20, 30, 40):
            append_row(run, {"step": step, "loss_d": step / 2})
            run.write_image(f"step-{step:08d}", np.zeros((4, 4, 3), np.uint8))
            run.commit_checkpoint(step, tensors, {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss')
    assert [row["step"] for row in Run(tmp_path).rows()] == [10, 20, 30, 40]
    with open_run(str(tmp_path)) as run:
        run.rewind(20)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "loss_d": 5.0}\n{"step": 20, "loss_d": 10.0}\n'
    assert read_scalars(tmp_path) == {"loss_d": [(10, 5.0), (20, 10.0)]}
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples == ["real.png", "step-00000010.png", "step-00000020.png"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]


def test_metrics_are_strict_json_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with open_run(str(tmp_path)) as run:
        append_row(run, {"step": 1, "loss_d": float("nan"), "loss_g": float("-inf"), "d_real": 0.1 + 0.2, "note": "é"})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # there at once
        assert json.loads(line, parse_constant=refuse) == {
            "step": 1,
            "loss_d": None,
            "loss_g": None,
            "d_real": 0.1 + 0.2,
            "note": "é",
        }
        with pytest.raises(TypeError, match="step"):
            run.append_metrics({"step": "1"})
        run.set_status("diverged", "loss", loss_d=float("nan"))
    json.loads((tmp_path / "status.json").read_text(), parse_constant=refuse)


def test_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl is damaged in line 2"):
        Run(tmp_path).rows()
    assert Run(tmp_path / "none").rows() == []


def test_images_are_png_of_the_same_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with open_run(str(tmp_path)) as run:
        for name, image in (("real", values), ("grey.png", values[..., :1]), ("flat", values[..., 0])):
            path = run.write_image(name, image)
            assert path == tmp_path / "samples" / f"{name.removesuffix('.png')}.png"
            with Image.open(path) as opened:
                assert opened.format == "PNG"
                np.testing.assert_array_equal(np.asarray(opened), image.squeeze())
        for name in ("../real", "a/b", ".hidden"):
            with pytest.raises(ValueError, match="plain file name"):
                run.write_image(name, values)


def test_config_can_be_read_by_plain_yaml(tmp_path: Path) -> None:
    settings = {"run_dir": None, "optim": {"lr": 2e-4, "eps": 1e-8}, "data": {"path": "rooms:20000"}}
    with open_run(str(tmp_path)) as run:
        run.write_config(settings, {"python": "3.11"})
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {**settings, "environment": {"python": "3.11"}}
        (tmp_path / "config.yaml").write_text("a: [")
        with pytest.raises(RunDirectoryError, match=r"config\.yaml"):
            run.read_config()


@pytest.mark.parametrize("form", ["{}", "file://{}", "relative"])
def test_local_locations_are_absolute_folders(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs of mine" / "a b"
    location = "runs of mine/a b" if form == "relative" else form.format(folder)
    with open_run(location) as run:
        assert run.local == folder
        assert run.location == location
        run.set_status("finished")
    assert Run(location).status["status"] == "finished"  # type: ignore[index]


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunDirectoryError, match=r"no run directory.*'thesis\.tex'"):
        open_run(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_objects_at_the_url_are_refused_and_not_changed(s3_server: ThreadedMotoServer) -> None:
    boto3.client("s3").put_object(Bucket="results", Key="thesis/a/b.tex", Body=b"words")
    with pytest.raises(RunDirectoryError, match=r"no run directory.*'a'"):
        open_run("s3://results/thesis")
    assert list(objects()) == ["thesis/a/b.tex"]


def test_unusable_locations_are_one_line_that_names_them(tmp_path: Path, s3_server: ThreadedMotoServer) -> None:
    (tmp_path / "file").write_text("")
    for location in (
        str(tmp_path / "file"),
        str(tmp_path / "file" / "run"),
        "nonsense://bucket/run",
        "s3://no-such-bucket/run",
    ):
        with pytest.raises(InputError) as caught:
            open_run(location)
        assert location in str(caught.value)
        assert "\n" not in str(caught.value)
    assert objects() == {}


def test_unreachable_object_storage_is_one_line_at_once(
    s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(RunDirectoryError, match=r"cannot use the run directory s3://results/x: .*127\.0\.0\.1:9"):
        open_run("s3://results/x")
    assert time.monotonic() - begin < 10


def test_missing_package_for_s3_names_the_extra() -> None:
    code = """
import sys
sys.modules["s3fs"] = None
from dcgan_dist.runs.writer import open_run
try:
    open_run("s3://results/x")
except ValueError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "'s3://results/x' needs a package that is not installed: pip install 'dcgan-dist[s3]'\n"


def test_results_import_no_torch() -> None:
    code = "import sys, dcgan_dist.runs.writer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_object_falls_back_to_the_checkpoint_before(
    s3_server: ThreadedMotoServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run("s3://results/run") as run:
        for step in (10, 20, 30):
            run.commit_checkpoint(step, tensors, {})
    client = boto3.client("s3")
    client.put_object(
        Bucket="results", Key="run/checkpoints/step-00000030/networks.safetensors", Body=b"n" * 5999 + b"m"
    )
    client.delete_object(Bucket="results", Key="run/checkpoints/step-00000020/state.json")
    with open_run("s3://results/run") as run:
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == 10
        lines = capsys.readouterr().err.splitlines()
        assert ["step-00000030 is damaged" in lines[0], "step-00000020 is incomplete" in lines[1]] == [True, True]
        run.rewind(10)
        # The damaged one was set aside; the other looks like an interrupted upload, and does not count.
        kept = [name.removeprefix("run/") for name in objects() if "step-" in name and "00000010" not in name]
        assert kept == [
            "checkpoints/step-00000020/networks.safetensors",
            "set_aside/1/step-00000030/networks.safetensors",
            "set_aside/1/step-00000030/state.json",
        ]


def test_on_object_storage_state_comes_last_and_metrics_before(
    s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = RemoteFolder._send

    def record(self: RemoteFolder, name: str, action: object) -> None:
        sent.append(name.rpartition("/")[2])
        send(self, name, action)  # type: ignore[arg-type]

    with open_run("s3://results/run") as run:
        append_row(run, {"step": 10, "loss_d": 1.0})
        monkeypatch.setattr(RemoteFolder, "_send", record)
        run.commit_checkpoint(10, tensors, {"reason": "interval"})
        kinds = [name.split(".")[0] for name in sent if name != "status.json"]
        assert kinds == ["metrics", "events", "networks", "state"]
        # The same step again, with equal tensors: the valid checkpoint is not changed until the new state replaces it.
        sent.clear()
        run.commit_checkpoint(10, tensors, {"reason": "signal"})
        assert [name for name in sent if name != "status.json"] == ["state.json"]


def test_background_upload_brings_metrics_to_object_storage_without_being_asked(
    s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "UPLOAD_SECONDS", 0.05)
    monkeypatch.setattr(lease, "REMOTE_HEARTBEAT_SECONDS", 0.05)
    with open_run("s3://results/run") as run:
        opened = Run("s3://results/run").status
        append_row(run, {"step": 10, "loss_d": 1.0})
        run.write_image("real", np.zeros((4, 4, 3), np.uint8))
        run.set_status("running", step=10)
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            found = Run("s3://results/run").status
            if "run/samples/real.png" in objects() and found is not None and found.get("step") == 10:
                break
            time.sleep(0.05)
        assert Run("s3://results/run").rows() == [{"step": 10, "loss_d": 1.0}]
        assert found is not None
        assert opened is not None
        assert found["heartbeat"] > opened["heartbeat"]


def test_upload_that_fails_again_and_again_comes_out_of_the_next_call(
    s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writer, "UPLOAD_SECONDS", 0.05)
    run = open_run("s3://results/run")
    s3_server.stop()
    append_row(run, {"step": 1, "loss_d": 1.0})
    give_up = time.monotonic() + 20
    while run._failure is None and time.monotonic() < give_up:
        time.sleep(0.02)
    with pytest.raises(StorageError, match=r"'s3://results/run/.*cannot be written"):
        append_row(run, {"step": 2, "loss_d": 1.0})
    with pytest.raises(StorageError):
        run.commit_checkpoint(2, tensors, {})
    with pytest.raises(StorageError):
        run.close()
    kept = run.local.with_name(f"kept-{run.local.name}")
    assert f"files that could not be uploaded are in {kept}" in capsys.readouterr().err
    assert (kept / "metrics.jsonl").exists()


def test_upload_that_fails_once_is_tried_again(s3_server: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run("s3://results/run") as run:
        host, port = s3_server.get_host_and_port()
        s3_server.stop()
        monkeypatch.setattr(folder, "PATIENCE_S", 10.0)
        second = ThreadedMotoServer(host, port, verbose=False)
        threading.Timer(0.7, second.start).start()
        run.commit_checkpoint(1, tensors, {})
        assert "run/checkpoints/step-00000001/state.json" in objects()
    second.stop()


def write_run(location: str, steps: int = 60) -> None:
    """Write a run with a line of metrics and a grid every 10 steps and a checkpoint every 20, of which two are kept."""
    with open_run(location) as run:
        run.write_config({"training": {"checkpoint_every": 20}}, {})
        run.go_back("refuse", 20)
        for step in range(10, steps + 1, 10):
            append_row(run, {"step": step, "loss_d": step / 2})
            run.write_image(f"step-{step:08d}", np.full((4, 4, 3), step, np.uint8))
            if step % 20 == 0:
                run.commit_checkpoint(step, tensors, {"last_logged": step})
                run.prune_checkpoints(2, 0)
        run.set_status("stopped", step=steps)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a run except those that each start writes again."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("status.json", ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


NEWEST = "checkpoints/step-00000060"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda run: os.truncate(run / NEWEST / "networks.safetensors", 100),
    "flipped": lambda run: (run / NEWEST / "networks.safetensors").write_bytes(b"N" + b"n" * 5999),
    "missing": lambda run: (run / NEWEST / "networks.safetensors").unlink(),
    "a folder": lambda run: [
        (run / NEWEST / "networks.safetensors").unlink(),
        (run / NEWEST / "networks.safetensors").mkdir(),
    ],
    "state cut": lambda run: os.truncate(run / NEWEST / "state.json", 50),
    "state nested": lambda run: (run / NEWEST / "state.json").write_bytes(b"[" * 100_000),
    "state missing": lambda run: (run / NEWEST / "state.json").unlink(),
    "all cut": lambda run: [os.truncate(path, 1) for path in run.glob("checkpoints/*/networks.safetensors")],
    "all gone": lambda run: shutil.rmtree(run / "checkpoints"),
    "one of a later step": lambda run: (run / "checkpoints/step-00000080").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_not_changed_unless_it_shall_be_set_aside_and_then_nothing_is_lost(
    tmp_path: Path, damage: str
) -> None:
    write_run(str(tmp_path))
    DAMAGES[damage](tmp_path)
    before = contents(tmp_path)
    with open_run(str(tmp_path)) as run, pytest.raises(RunDirectoryError) as caught:
        run.go_back("refuse", 20)
    assert contents(tmp_path) == before
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "--training.on_damaged_run set-aside" in str(caught.value)
    with open_run(str(tmp_path)) as run:
        newest = run.go_back("set-aside", 20)
    step = newest.step if newest else 0
    assert step == {"all cut": 0, "all gone": 0, "one of a later step": 60}.get(damage, 40)
    assert [row["step"] for row in Run(tmp_path).rows()] == list(range(10, step + 1, 10))
    assert set(before.values()) <= set(contents(tmp_path).values())
    with open_run(str(tmp_path)) as run:  # and nothing else
        again = run.go_back("refuse", 20)
    assert (again.step if again else 0) == step


def test_what_a_killed_process_wrote_beyond_its_checkpoint_is_no_damage(tmp_path: Path) -> None:
    write_run(str(tmp_path), 70)
    with open_run(str(tmp_path)) as run:
        newest = run.go_back("refuse", 20)
        assert newest is not None
        assert newest.step == 60
    assert not (tmp_path / "set_aside").exists()
    # A diverged run is not damaged: its last line of metrics is up to log_every steps after its checkpoint.
    with open_run(str(tmp_path)) as run:
        append_row(run, {"step": 500, "loss_d": None})
        run.commit_checkpoint(61, tensors, {"last_logged": 500})
    with open_run(str(tmp_path)) as run:
        assert run.go_back("refuse", 20) == run.newest
        assert Run(tmp_path).rows()[-1]["step"] == 60


def test_damaged_lines_of_metrics_are_kept(tmp_path: Path) -> None:
    write_run(str(tmp_path), 40)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    garbage = [b"\0\xff\0\n", b'{"step": NaN, "loss_d": 1e999}\n', b"[1]\n", b'{"loss_d": 1}\n', b'{"step": "3"}\n']
    path.write_bytes(b"".join([*lines[:2], *garbage, *lines[2:], b'{"step": 50}\n', b'{"step": 5']))
    with open_run(str(tmp_path)) as run:
        run.go_back("refuse", 20)
    assert path.read_bytes() == b"".join([*lines[:2], *garbage, *lines[2:]])
    path.write_bytes(b"".join(lines) + b"\0" * 5000)  # as a power cut may leave it
    with open_run(str(tmp_path)) as run:
        run.go_back("refuse", 20)
    assert path.read_bytes() == b"".join(lines) + b"\0" * 5000 + b"\n"


def test_damaged_events_are_set_aside_and_those_before_the_damage_are_kept(tmp_path: Path) -> None:
    write_run(str(tmp_path), 40)
    path = max(tmp_path.glob("events.*"))
    damaged = path.read_bytes()[:-30] + b"?" * 30
    path.write_bytes(damaged)
    with open_run(str(tmp_path)) as run:
        run.go_back("refuse", 20)
    assert (tmp_path / "set_aside" / "1" / path.name).read_bytes() == damaged
    assert read_scalars(tmp_path)["loss_d"] == [(10, 5.0), (20, 10.0), (30, 15.0)]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 999, b"[" * 99_999, b'{"pid": 1e999, "heartbeat": NaN}', b'{"pid": -1}']
)
def test_a_damaged_status_refuses_no_new_writer_and_ends_no_running_one(tmp_path: Path, content: bytes) -> None:
    write_run(str(tmp_path), 20)
    (tmp_path / "status.json").write_bytes(content)
    with open_run(str(tmp_path)) as run:
        (tmp_path / "status.json").write_bytes(content)
        run.commit_checkpoint(21, tensors, {})
        run.set_status("running", step=21)
        assert Run(tmp_path).status["step"] == 21  # type: ignore[index]


def test_pruning_keeps_files_that_no_run_has_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with open_run(str(tmp_path)) as run:
        for step in (10, 20, 30, 40):
            run.commit_checkpoint(step, tensors, {})
        (folder / "step-00000010" / "why-this-one.txt").write_text("best so far")
        (folder / "step-00000020" / "state.json").write_bytes(b"damaged")
        for other in ("step-00000099", "step-00000030 copy", "best"):
            (folder / other).mkdir()
        (folder / "notes.txt").write_text("words")
        run.commit_checkpoint(50, tensors, {})
        run.prune_checkpoints(1, 0)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("best", "notes.txt", "step-00000010", "step-00000020", "step-00000030 copy", "step-00000050"),
        "step-00000099",
    ]


def test_a_step_saved_again_is_intact_wherever_the_saving_is_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with open_run(str(tmp_path)) as run:
        run.commit_checkpoint(10, tensors, {"reason": "old"}).rename(folder / ".removed-step-00000010")
        run.commit_checkpoint(10, tensors, {"reason": "new"}).rename(folder / ".writing-step-00000010")
    # Killed between the two renames.
    with open_run(str(tmp_path)) as run:
        newest = run.newest_checkpoint()
    assert newest is not None
    assert newest.state["reason"] == "new"
    assert [path.name for path in folder.iterdir()] == ["step-00000010"]


def test_damaged_run_on_object_storage_loses_nothing_either(s3_server: ThreadedMotoServer) -> None:
    write_run("s3://results/run")
    client = boto3.client("s3")
    client.put_object(Bucket="results", Key=f"run/{NEWEST}/networks.safetensors", Body=b"n" * 100)
    client.put_object(Bucket="results", Key="run/config.yaml", Body=b"a: [")
    before = objects()
    with open_run("s3://results/run") as run:
        with pytest.raises(RunDirectoryError, match=r"step-00000060 is damaged: networks\.safetensors"):
            run.go_back("refuse", 20)
        with pytest.raises(RunDirectoryError, match=r"run/config\.yaml is damaged"):
            run.read_config()
    assert {name: content for name, content in objects().items() if "status" not in name} == {
        name: content for name, content in before.items() if "status" not in name
    }
    with open_run("s3://results/run") as run:
        run.set_aside("config.yaml")
        newest = run.go_back("set-aside", 20)
        assert newest is not None
        assert newest.step == 40
        run.write_config({}, {})
    after = objects()
    assert after["run/set_aside/1/config.yaml"] == b"a: ["
    assert set(before.values()) - set(after.values()) == {before["run/status.json"]}
    assert Run("s3://results/run").rows()[-1]["step"] == 40


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda run: run.commit_checkpoint(2, tensors, {}), id="checkpoint"),
        pytest.param(lambda run: run.append_metrics({"step": 2, "note": "n" * 9000}), id="metrics"),
        pytest.param(lambda run: run.write_image("step-00000002", np.eye(90, dtype=np.uint8)), id="grid"),
        pytest.param(lambda run: run.write_config({"name": "n" * 9000}, {}), id="config"),
    ],
)
def test_full_disk_is_one_line_with_a_true_status_and_nothing_half_written(
    small_disk: Path, write: Callable[[RunWriter], object]
) -> None:
    folder = small_disk / "run"
    with open_run(str(folder)) as run:
        run.commit_checkpoint(1, tensors, {})
        fill(small_disk)
        with pytest.raises(StorageError, match="No space left") as caught:
            write(run)
        assert "\n" not in str(caught.value)
        run.set_status("failed", str(caught.value), step=1)
    found = Run(folder).status
    assert found is not None
    assert (found["status"], found["reason"], found["locked"]) == ("failed", str(caught.value), False)
    assert not [path for path in folder.rglob("*") if "writing" in path.name]
    (small_disk / "filler").unlink()
    with open_run(str(folder)) as run:
        newest = run.go_back("refuse", 500)
    assert newest is not None
    assert newest.step == 1


def test_set_aside_files_on_object_storage_do_not_count_as_a_run() -> None:
    write_run("memory://runs/aside", 20)
    with open_run("memory://runs/aside") as run:
        run.set_aside("config.yaml")
        run.write_config({}, {})
    found, _ = find(["memory://runs"])
    assert [one.directory for one in found] == ["memory://runs/aside"]
