"""Figures of every benchmark have one shape, and say what the measurements were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measuring import Bench, alternate, describe_commit, in_own_process, peak_mib

ROOT = Path(__file__).parent.parent.parent
KEYS = {
    **{"bench": str, "what": str, "value": float, "unit": str, "baseline": str | None},
    **{"baseline_value": float | None, "times_the_baseline": float | None, "rounds": int, "spread": list},
    **{"machine": str, "commit": str | None, "goal": float | None},
}


# The others start clusters, servers or many processes; `python -m benchmarks all --quick` runs all twelve.
QUICKEST = ("average", "dedup", "features", "report", "stability", "step")


@pytest.mark.slow
@pytest.mark.parametrize("what", QUICKEST)
def test_every_figure_of_a_quick_benchmark_has_the_same_keys(what, tmp_path):
    own = {name: value for name, value in os.environ.items() if name != "DCGAN_DIST_DATA"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", what, "--quick"],
        cwd=tmp_path, env={**own, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records
    for record in records:
        assert list(record) == list(KEYS)
        assert [key for key, kind in KEYS.items() if not isinstance(record[key], kind)] == []
        assert record["bench"] == what
        assert record["what"].endswith("(quick: a small size)")
        assert (record["baseline"] is None) == (record["baseline_value"] is None)
        low, high = record["spread"]
        assert low <= (record["times_the_baseline"] or record["value"]) <= high
        assert record["rounds"] >= 1
    assert len({(record["what"], record["unit"], record["baseline"]) for record in records}) == len(records)


def test_ways_take_turns_and_rounds_to_warm_up_do_not_count():
    calls = []

    def way(name):
        calls.append(name)
        return {"s": float(len(calls))}

    turns = alternate({"ours": lambda: way("ours"), "theirs": lambda: way("theirs")}, 2, warm_up=1)
    assert calls == ["ours", "theirs"] * 3
    assert (turns["ours"]["s"], turns["theirs"]["s"]) == ([3.0, 5.0], [4.0, 6.0])


def test_a_way_that_counts_images_is_timed(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    figures = alternate({"ours": lambda: 8}, 1)["ours"]
    assert (figures["s"], figures["images/s"]) == ([2.0], [4.0])


def test_ratios_are_those_of_each_round_and_above_1_is_better():
    bench = Bench("step")
    rates = bench.record("reading", "images/s", [10, 40, 90], "the disk", [10, 20, 30], goal=4)
    assert (rates.value, rates.baseline_value, rates.times_the_baseline) == (40, 20, 2)
    assert (rates.rounds, rates.spread, rates.goal) == (3, (1, 3), 4)
    seconds = bench.record("fitting", "s", [1, 2, 4], "another", [8, 8, 8])
    assert (seconds.value, seconds.times_the_baseline, seconds.spread) == (2, 4, (2, 8))


def test_without_a_ratio_the_spread_is_that_of_the_values():
    alone = Bench("step").record("reading", "images/s", [3, 1, 2])
    assert (alone.baseline_value, alone.times_the_baseline, alone.spread) == (None, None, (1, 3))
    nothing = Bench("step").record("found", "share", [0.0, 0.5], "another", [0.5, 0.5])
    assert (nothing.baseline_value, nothing.times_the_baseline, nothing.spread) == (0.5, None, (0, 0.5))


def test_a_quick_figure_says_so_and_has_no_goal():
    record = Bench("step", quick=True).record("reading", "images/s", [1], goal=4)
    assert "quick" in record.what
    assert record.goal is None


def test_a_figure_names_the_commit_of_the_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    commit = Bench("step").record("reading", "images/s", [1]).commit
    assert commit == describe_commit()
    assert (commit or "").removesuffix("-dirty") == head.stdout.strip()


def memory_of(mib: str) -> dict[str, float]:
    content = b"x" * (int(mib) << 20)
    return {"MiB": peak_mib(), "length": len(content)}


def test_a_process_of_its_own_has_its_own_memory():
    held = b"x" * (600 << 20)
    small, large = (in_own_process(memory_of, mib)()["MiB"] for mib in (1, 300))
    assert 290 < large - small < 400
    assert small < len(held) >> 20
