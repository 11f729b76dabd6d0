"""`stability`: a record per run, with the verdict on its run directory."""

import json

import pytest

from benchmarks import stability
from benchmarks.__main__ import bench_command
from dcgan_dist.results.stability import MIN_LINES, judge
from dcgan_dist.runs.run import Run


@pytest.mark.slow
def test_each_setting_is_trained_and_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stability, "SETTINGS", {name: stability.SETTINGS[name] for name in ("healthy", "lr-x10")})
    bench_command(["stability", "--quick"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    runs = [record["what"].split()[0] for record in records]
    assert runs == [f"runs/stability/quick/{name}-seed0" for name in ("healthy", "lr-x10")]
    for record, run in zip(records, runs, strict=True):
        lines = Run(run).rows()
        assert len(lines) == MIN_LINES
        assert f": {judge(lines).name}: " in record["what"]
        assert record["value"] == pytest.approx(judge(lines).score, rel=1e-3)
    assert records[1]["baseline_value"] == records[0]["value"]
    assert Run(runs[1]).rows()[0]["lr"] == 10 * Run(runs[0]).rows()[0]["lr"]
