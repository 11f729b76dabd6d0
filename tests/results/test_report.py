"""The report of a sweep, in the sweep's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcgan_dist.results.aggregate import collect
from dcgan_dist.results.report import write_report_of
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig

FILES = {"report": "report.html", "table": "trials.csv", "typed table": "trials.parquet", "curves": "metrics.parquet"}


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_the_page_of_a_sweep_is_written_into_the_sweep_on_a_disk_or_object_storage(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = SweepConfig(space={"optim.lr": {"grid": [1e-4]}}, name="there")
    with Ledger.open(SweepPlan.of(config), location) as ledger:
        ledger.start(TrialRecord(trial="t0000", parameters={"optim.lr": 1e-4}, steps=20))
        ledger.finish("t0000", "finished", step=20, objective=0.5)
    before = sorted(tmp_path.iterdir())
    assert write_report_of(location) == {what: f"{location}/{name}" for what, name in FILES.items()}
    for name in FILES.values():
        assert folder_at(location).read(name), name
    assert b"there" in folder_at(location).read("report.html")
    assert {path.name for path in set(tmp_path.iterdir()) - set(before)} <= {"my run"}
    assert [trial.name for trial in collect([location]).trials] == ["t0000"]  # the page is not taken for a trial
