"""Paths that mean the same in every process of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcgan_dist.launch.locations import JOB_FOLDER, absolute_input, absolute_output, lasting_output


def test_urls_and_rooms_are_unchanged_and_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("s3://bucket/shards", "https://host/shards", "rooms:20000"):
        assert absolute_input(location) == location
    assert absolute_input("shards") == str(tmp_path / "shards")
    assert absolute_output("runs/a") == str(tmp_path / "runs/a")
    assert absolute_output("s3://bucket/runs") == "s3://bucket/runs"
    assert lasting_output("runs/a") == "runs/a"


def test_results_of_a_job_are_kept_outside_its_unpacked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = tmp_path / JOB_FOLDER / "package"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert lasting_output("runs/a") == absolute_output("runs/a") == str(tmp_path / "home/runs/a")
    assert lasting_output("/runs/a") == "/runs/a"
    assert absolute_input("shards") == str(unpacked / "shards")


def test_a_tilde_is_replaced_by_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute_input("~/shards/{0..3}.tar") == str(tmp_path / "home/shards/{0..3}.tar")
    assert absolute_output("~/runs") == str(tmp_path / "home/runs")
