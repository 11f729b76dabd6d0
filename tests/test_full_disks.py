"""Commands that write files, on a full disk: a one-line error, no incomplete file, and existing files are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dcgan_dist import explore, export, report, sample, sweep
from tests.conftest import TINY, fill, options

SWEEP = ("--space={optim.lr: {grid: [1e-4, 1e-3]}}", "--sweep-dir=DISK/sweep", *options({**TINY, "training.steps": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 16 << 10])  # with 16 KiB it becomes full in the middle of the work
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (export.main, ("--run=RUN", "--output=DISK/out/s.onnx")),
        (export.main, ("--run=RUN", "--output=DISK/out/s.pt2")),
        (explore.main, ("walk", "--run=RUN", "--output=DISK/out")),
        (explore.main, ("filters", "--run=RUN", "--output=DISK/out")),
        (report.main, ("RUN", "--output=DISK/out/report.html")),
        (sweep.main, SWEEP),
        (sample.main, ("--run=RUN", "--output=DISK/out/grid.png", "--overwrite=true", "--count=900", "--workers=1")),
        (sample.main, ("--run=RUN", "--output=DISK/out/set.npz", "--overwrite=true", "--count=900", "--workers=1")),
    ],
    ids=["onnx", "pt2", "walk", "filters", "report", "ledger", "grid", "npz"],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    command: Callable[[Sequence[str]], int],
    words: Sequence[str],
    free: int,
    small_disk: Path,
    tmp_path: Path,
    finished_run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished_run(1), tmp_path / "run")
    (small_disk / "out").mkdir()
    words = [word.replace("RUN", str(tmp_path / "run")).replace("DISK", str(small_disk)) for word in words]
    for old in ("report.html", "walk.png", "walk.json", "filters.png", "filters.json", "grid.png", "set.npz"):
        (small_disk / "out" / old).write_text("old")
    fill(small_disk)
    filler = small_disk / "filler"
    os.truncate(filler, filler.stat().st_size - free)
    before = content(small_disk / "out") | content(tmp_path / "run")
    assert command(words) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert sum("No space left on device" in line for line in lines) == 1, lines
    assert lines[-1].startswith("dcgan-dist"), lines
    after = content(small_disk / "out") | content(tmp_path / "run")
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before.keys()} <= {"trials.csv"}  # a table of the report, complete


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
