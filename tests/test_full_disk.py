"""A disk that is full when a command writes its result: one line, status 1, and what was there stays whole."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from dcgan_dist.config import SweepConfig
from dcgan_dist.errors import StorageError
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord, read_sweep
from tests.conftest import fill


@pytest.mark.parametrize(
    ("command", "words", "old"),
    [
        ("report", ["RUN", "--output=DISK/page.html"], "page.html"),
        ("sample", ["--run=RUN", "--count=9", "--output=DISK/grid.png", "--overwrite=true", "--workers=1"], "grid.png"),
        ("sample", ["--run=RUN", "--count=9", "--output=DISK/set.npz", "--overwrite=true", "--workers=1"], "set.npz"),
        ("sample", ["--run=RUN", "--count=99", "--output=DISK/pictures", "--workers=1"], ""),
        ("sample", ["--run=RUN", "--count=999", "--output=DISK/set/s-%06d.tar", "--workers=1"], ""),
        ("export", ["--run=RUN", "--output=DISK/program.pt2", "--overwrite=true"], "program.pt2"),
        ("explore", ["sheet", "--run=RUN", "--output=DISK/figures"], "figures/sheet.png"),
    ],
)
def test_a_command_whose_disk_is_full_says_so_and_leaves_what_was_there(
    command: str,
    words: list[str],
    old: str,
    finished_run: Callable[..., Path],
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if old:
        (small_disk / old).parent.mkdir(exist_ok=True)
        (small_disk / old).write_bytes(b"of before")
    fill(small_disk)
    before = {path: path.stat().st_size for path in small_disk.rglob("*")}
    given = [word.replace("RUN", str(finished_run(1))).replace("DISK", str(small_disk)) for word in words]
    assert import_module(f"dcgan_dist.{command}").main(given) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    left = {path for path in small_disk.rglob("*") if not path.name.startswith(".")}
    assert {path: path.stat().st_size for path in left} == before
    if old:
        assert (small_disk / old).read_bytes() == b"of before"


def test_a_sweep_whose_disk_is_full_keeps_its_last_whole_ledger_and_goes_on_from_it(small_disk: Path) -> None:
    config = SweepConfig(space={"optim.lr": {"loguniform": ["1e-5", "1e-1"]}}, trials=6)
    place = str(small_disk / "sweep")
    ledger = Ledger.open(config, place)
    ledger.start(TrialRecord(trial="t0000", parameters={"optim.lr": 0.1}, steps=9))
    whole = (small_disk / "sweep/sweep.json").read_bytes()
    fill(small_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        ledger.finish("t0000", "failed", reason="x" * 8192)
    assert (small_disk / "sweep/sweep.json").read_bytes() == whole
    (small_disk / "filler").unlink()
    ledger.close()
    with Ledger.open(config, place) as again:
        assert list(again.records) == ["t0000"]
    assert read_sweep(place)["trials"][0]["trial"] == "t0000"
