"""The command `doctor`: its output, its exit status, and that it takes the settings of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcgan_dist import doctor


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ignore the cluster of this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def test_a_machine_where_all_works_is_one_page_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    words = [sys.executable, "-m", "dcgan_dist", "doctor", "--run-dir", str(tmp_path / "runs")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 15  # 1.5 on an idle machine
    title, *lines = done.stdout.splitlines()
    assert title.endswith("(this machine)")
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert f"free at {tmp_path / 'runs'}" in done.stdout


def test_missing_requirements_of_the_given_run_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert doctor.main([]) == 0
    assert "  warn  compiler         there is no C++ compiler '/nowhere/g++': install g++" in capsys.readouterr().out
    (tmp_path / "file").touch()
    words = ["--training.compile", "true", "--cluster.storage", str(tmp_path / "file"), "--json"]
    assert doctor.main(words) == 1
    shown = capsys.readouterr()
    assert shown.err == "dcgan-dist doctor: will fail: compiler, run directory\n"
    (findings,) = json.loads(shown.out)["hosts"].values()
    assert [finding["name"] for finding in findings if finding["status"] == "fail"] == ["compiler", "run directory"]
    assert all(set(finding) == {"name", "status", "found", "way_out"} for finding in findings)


def test_storage_that_cannot_be_used_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--storage", "nothing://runs"]) == 1
    assert "  fail  storage " in capsys.readouterr().out


def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--storag", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
