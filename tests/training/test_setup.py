"""What is looked at before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcgan_dist.errors import ConfigError
from dcgan_dist.training.setup import environment, require_compiler


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("git", [None, "exit 128", "echo fatal: detected dubious ownership >&2; exit 128"])
def test_a_run_needs_no_git(git: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if git is not None:
        program(tmp_path, "git", git)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git_commit"] is None


@pytest.mark.parametrize(
    ("compiler", "says"),
    [(None, r"there is no C\+\+ compiler"), ("echo cannot >&2; exit 1", r"fails \(cannot\)")],
)
def test_compiling_without_a_working_compiler_is_refused_before_any_work(
    compiler: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler is not None:
        program(tmp_path, "g++", compiler)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=says):
        require_compiler()
