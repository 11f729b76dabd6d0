from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import xxhash

from dcgan_dist.errors import RunDirectoryError, StorageError
from dcgan_dist.runs.checkpoints import read_checkpoint, to_prune
from dcgan_dist.runs.writer import open_run
from tests.runs.conftest import StartWriter


def tensors(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"g" * 5000)
    (folder / "optim.safetensors").write_bytes(b"o" * 7000)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_state_names_bytes_and_digest_of_every_file(tmp_path: Path) -> None:
    cursor = {"epoch": 2, "position": 2**70, "rng": [0.1 + 0.2, -0.0], "nested": {10: (1, 2), 9: None}}
    with open_run(str(tmp_path)) as run:
        path = run.commit_checkpoint(40, tensors, cursor)
        newest = run.newest_checkpoint()
    assert path == tmp_path / "checkpoints" / "step-00000040"
    assert newest is not None
    assert (newest.step, newest.path) == (40, path)
    state = json.loads((path / "state.json").read_text())
    assert state == newest.state
    assert {key: state[key] for key in cursor} == json.loads(json.dumps(cursor))
    assert state["files"]["generator.safetensors"] == {
        "bytes": 5000,
        "xxh3_128": xxhash.xxh3_128(b"g" * 5000).hexdigest(),
    }
    assert set(state["files"]) == {"generator.safetensors", "optim.safetensors"}


def test_commit_killed_in_the_middle_leaves_the_older_checkpoint_and_no_trace(
    tmp_path: Path, start_writer: StartWriter
) -> None:
    code = """
def write(folder):
    (folder / "generator.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

run = open_run(sys.argv[1])
run.commit_checkpoint(20, write, {})
"""
    with open_run(str(tmp_path)) as run:
        run.commit_checkpoint(10, tensors, {})
    before = contents(tmp_path / "checkpoints")
    writer = start_writer(code, tmp_path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.kill()
    writer.wait()
    assert contents(tmp_path / "checkpoints") != before
    with open_run(str(tmp_path)) as run:
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == 10
    assert contents(tmp_path / "checkpoints") == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_commit_that_lacked_only_its_name_counts(tmp_path: Path) -> None:
    """A run that is killed while it replaces its only checkpoint, by one of the same step, still has one."""
    with open_run(str(tmp_path)) as run:
        path = run.commit_checkpoint(10, tensors, {"epoch": 3})
    path.rename(path.with_name(".writing-step-00000010"))
    with open_run(str(tmp_path)) as run:
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.state["epoch"] == 3


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        tensors(folder)
        raise KeyError("no such tensor")

    with open_run(str(tmp_path)) as run:
        with pytest.raises(KeyError):
            run.commit_checkpoint(10, write, {})
        with pytest.raises(ValueError, match="JSON"):
            run.commit_checkpoint(10, tensors, {"loss": float("nan")})
        with pytest.raises(ValueError, match="files"):
            run.commit_checkpoint(10, tensors, {"files": []})
        assert run.newest_checkpoint() is None
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        run.commit_checkpoint(10, tensors, {"status": "running"})
        run.commit_checkpoint(10, lambda folder: None, {"status": "diverged"})
        newest = run.newest_checkpoint()
    assert newest is not None
    assert (newest.state["status"], newest.state["files"]) == ("diverged", {})


DAMAGES = {
    "flipped byte": lambda path: (path / "optim.safetensors").write_bytes(b"o" * 4000 + b"O" + b"o" * 2999),
    "truncated": lambda path: (path / "optim.safetensors").write_bytes(b"o" * 6999),
    "missing": lambda path: (path / "optim.safetensors").unlink(),
    "flipped byte in state": lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"epoch": 1', '"epoch": 3')
    ),
    "torn state": lambda path: (path / "state.json").write_bytes((path / "state.json").read_bytes()[:-10]),
    "no state": lambda path: (path / "state.json").unlink(),
    "emptied": lambda path: shutil.rmtree(path) or path.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_is_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(str(tmp_path)) as run:
        run.commit_checkpoint(10, tensors, {"epoch": 0})
        DAMAGES[damage](run.commit_checkpoint(20, tensors, {"epoch": 1}))
    with open_run(str(tmp_path)) as run:
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == 10
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "step-00000020 is " in lines[0]
        # After resuming, the damaged one must not count as the newest, nor make the new one the older of two.
        run.rewind(10)
        run.commit_checkpoint(15, tensors, {})
        run.prune_checkpoints(1, 0)
        newest = run.newest_checkpoint()
        assert newest is not None
        assert newest.step == 15
    with pytest.raises(RunDirectoryError, match="incomplete"):
        read_checkpoint(tmp_path / "checkpoints" / "step-00000010")


def test_state_that_names_files_of_other_folders_is_refused(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        path = run.commit_checkpoint(10, tensors, {})
        text = (path / "state.json").read_text().replace("optim.safetensors", "../../config.yaml")
        state = json.loads(text)
        del state["digest"]
        digest = xxhash.xxh3_128_hexdigest(json.dumps(state, sort_keys=True).encode())
        (path / "state.json").write_text(json.dumps(state | {"digest": digest}))
        with pytest.raises(RunDirectoryError, match="other folders"):
            read_checkpoint(path)


def test_pruning_keeps_the_newest_and_every_multiple(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        for step in range(10, 130, 10):
            run.commit_checkpoint(step, tensors, {})
            run.prune_checkpoints(3, 40)
        assert sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir()) == [40, 80, 100, 110, 120]
        run.prune_checkpoints(2, 0)
        assert sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir()) == [110, 120]
    assert to_prune([1, 2, 3], 5, 0) == []
    assert to_prune([5, 7], 1, 0) == [5]


def test_full_disk_is_one_line_and_the_older_checkpoint_stays(tmp_path: Path, start_writer: StartWriter) -> None:
    code = """
import resource, signal
run = open_run(sys.argv[1])
run.commit_checkpoint(1, lambda folder: (folder / "a").write_bytes(b"a" * 100) and None, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    run.commit_checkpoint(2, lambda folder: (folder / "a").write_bytes(b"a" * 20_000) and None, {})
except DcganDistError as error:
    print(f"{type(error).__name__}: {error}")
print(run.newest_checkpoint().step)
run.close()
"""
    out, _ = start_writer(code, tmp_path).communicate(timeout=60)
    path = tmp_path / "checkpoints" / "step-00000002"
    assert out == f"{StorageError.__name__}: cannot write {path}: File too large\n1\n"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
