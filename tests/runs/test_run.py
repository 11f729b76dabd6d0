"""Reading a run while it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import open_run
from dcgan_dist.storage.folder import LocalFolder, folder_at


def write(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"weights")


def test_checkpoint_that_is_being_uploaded_is_not_the_latest() -> None:
    with open_run("memory://uploading/run") as run:
        run.write_config({"model": {}}, {})
        run.commit_checkpoint(10, write, {})
    folder_at("memory://uploading/run").write("checkpoints/step-00000020/generator.safetensors", b"weights")
    assert Run("memory://uploading/run").chosen_steps("latest") == [10]


def test_a_checkpoint_gives_its_files_after_comparing_them_with_their_digests(tmp_path: Path) -> None:
    with open_run(str(tmp_path / "run")) as run:
        run.write_config({"model": {}}, {})
        run.commit_checkpoint(10, write, {"images_seen": 80})
    (checkpoint,) = Run(tmp_path / "run").checkpoints
    assert (checkpoint.step, checkpoint.images_seen, checkpoint.files) == (10, 80, ("generator.safetensors",))
    assert checkpoint.read("generator.safetensors") == b"weights"
    (tmp_path / "run/checkpoints/step-00000010/generator.safetensors").write_bytes(b"weightz")
    (damaged,) = Run(tmp_path / "run").checkpoints
    with pytest.raises(RunDirectoryError, match=r"generator\.safetensors is not what was written"):
        damaged.read("generator.safetensors")


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(str(tmp_path / "run")) as writer:
        writer.write_config({"model": {}}, {})
        writer.commit_checkpoint(10, write, {})
    asked: list[str] = []
    get = LocalFolder.get

    def counted(folder: LocalFolder, name: str, most: int | None = None) -> bytes | None:
        asked.append(name)
        return get(folder, name, most)

    monkeypatch.setattr(LocalFolder, "get", counted)
    run = Run(tmp_path / "run")
    for _ in range(3):
        assert run.settings["model"] == {}
        assert run.checkpoint(10).read("generator.safetensors") == b"weights"
    assert sorted(asked) == ["config.yaml", "generator.safetensors", "state.json"]


def test_a_run_without_a_checkpoint_has_an_empty_list_and_an_error_where_one_is_needed(tmp_path: Path) -> None:
    with open_run(str(tmp_path / "run")) as writer:
        writer.write_config({"model": {}}, {})
    run = Run(tmp_path / "run")
    assert (run.checkpoints, run.rows(), run.metrics(), run.scores) == ([], [], {}, {})
    with pytest.raises(RunDirectoryError, match="has no checkpoint yet"):
        run.chosen_steps("latest")


def test_a_column_has_no_number_where_a_line_has_none(tmp_path: Path) -> None:
    with open_run(str(tmp_path / "run")) as writer:
        writer.append_metrics({"step": 1, "loss_d": 0.5})
        writer.append_metrics({"step": 2, "loss_d": float("nan"), "lr": 0.1})
    columns = Run(tmp_path / "run").metrics()
    np.testing.assert_array_equal(columns["loss_d"], [0.5, np.nan])
    np.testing.assert_array_equal(columns["lr"], [np.nan, 0.1])
