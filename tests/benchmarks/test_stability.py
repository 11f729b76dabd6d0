"""`stability`: a record per run, with the verdict on its run directory."""

import json

import pytest

from benchmarks import stability
from benchmarks.__main__ import bench_command
from dcgan_dist.config import override
from dcgan_dist.results.stability import MIN_LINES, judge
from dcgan_dist.runs.run import Run


@pytest.mark.slow
def test_each_setting_is_trained_and_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(stability.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(stability, "ROOMS", "rooms:64")
    length = {"training.steps": MIN_LINES, "training.log_every": 1, "model.ngf": 2, "model.ndf": 2}
    monkeypatch.setattr(stability, "BASE", override(stability.BASE, length))
    monkeypatch.setattr(stability, "SETTINGS", {name: stability.SETTINGS[name] for name in ("healthy", "lr-x10")})
    bench_command(["stability", "1"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["run"] for record in records] == ["runs/stability/healthy-seed0", "runs/stability/lr-x10-seed0"]
    for record in records:
        lines = Run(record["run"]).rows()
        assert len(lines) == MIN_LINES
        assert (record["verdict"], record["score"]) == (judge(lines).name, judge(lines).score)
    assert Run(records[1]["run"]).rows()[0]["lr"] == 10 * Run(records[0]["run"]).rows()[0]["lr"]
