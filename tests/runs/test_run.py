"""Checkpoints of a run that is read while it is written."""

from __future__ import annotations

from pathlib import Path

from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import open_run
from dcgan_dist.storage.folder import folder_at


def write(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"weights")


def test_checkpoint_that_is_being_uploaded_is_not_the_latest() -> None:
    with open_run("memory://runs/uploading") as run:
        run.write_config({"model": {}}, {})
        run.commit_checkpoint(10, write, {})
    folder_at("memory://runs/uploading").write("checkpoints/step-00000020/generator.safetensors", b"weights")
    assert Run("memory://runs/uploading").chosen_steps("latest") == [10]
