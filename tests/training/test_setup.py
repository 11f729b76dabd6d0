"""What is looked at before the first step."""

from __future__ import annotations

import os
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
    [
        (None, r"true, but there is no C\+\+ compiler 'g\+\+': install g\+\+ and"),
        ("echo cannot >&2; exit 1", r"fails \(cannot\): install g\+\+ and"),
        ("exec sleep 60", r"took longer than 0.2 s: run it again when"),
    ],
)
def test_compiling_without_a_working_compiler_is_refused_before_any_work(
    compiler: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler is not None:
        program(tmp_path, "g++", f"PATH={os.environ['PATH']}; {compiler}")
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=says):
        require_compiler(0.2 if "longer" in says else 60)


def test_a_compiler_that_is_no_program_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g++").write_bytes(b"\x7fELF")
    (tmp_path / "g++").chmod(0o755)
    for named, says in ((f"{tmp_path}/g++", "Exec format error"), ("", "no C.. compiler ''")):
        monkeypatch.setenv("CXX", named)
        with pytest.raises(ConfigError, match=says):
            require_compiler()
