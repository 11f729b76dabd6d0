from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dcgan_dist.config import override
from dcgan_dist.sweeps import table
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from dcgan_dist.sweeps.table import LiveTable, print_results, share_done, short_names, sweep_seconds_left

SPACE = {"optim.lr": {"loguniform": ["1e-5", "1e-1"]}, "optim.beta1": {"uniform": [0, 0.99]}}
CONFIG = SweepConfig(space=SPACE, trials=4, name="mine", objective="representation,coverage")


def record(number: int, status: Any, step: int = 0, seconds: float = 0.0, **fields: Any) -> TrialRecord:
    values = {"optim.lr": 0.001 * (number + 1), "optim.beta1": 0.5}
    return TrialRecord(
        trial=f"t{number:04d}", parameters=values, status=status, step=step, steps=100, seconds=seconds, **fields
    )


def score(ledger: Ledger, name: str, value: float, **fields: Any) -> None:
    scores = {
        "representation": {"value": value, "ci95": [value - 0.1, value + 0.1], "n": 500},
        "coverage": {"value": 1 - value, "n": 500},
    }
    objective = ledger.objective.value({"representation": value}, fields.get("verdict"))
    ledger.update(name, scores=scores, objective=objective, **fields)


def fill(ledger: Ledger) -> None:
    for number, (value, verdict) in enumerate([(0.3, "stable"), (0.9, "collapse"), (0.6, "oscillation"), (0.1, None)]):
        name = f"t{number:04d}"
        ledger.start(record(number, "waiting"))
        score(ledger, name, value, verdict=verdict, step=100)
    ledger.finish("t0000", "stopped", "stopped early by asha at step 50 of 100")
    ledger.finish("t0001", "finished")
    ledger.finish("t0002", "finished")
    ledger.finish("t0003", "diverged", "loss_d is nan at step 70")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_results_are_ranked_and_name_the_best_settings_and_how_to_train_them(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path / "my sweep")) as ledger:
        fill(ledger)
        ledger.importance = {
            "optim.beta1": {"value": 0.1, "ci95": [0, 0.3]},
            "optim.lr": {"value": 0.6, "ci95": [0.4, 0.7]},
        }
        print_results(ledger, console)
    text = written(console)
    rows = re.findall(r"^(t\d{4}) +(\S+)", text, flags=re.MULTILINE)
    # The best is first; the collapsed one is below it despite its higher score, and then the diverged one.
    assert [name for name, _ in rows] == ["t0002", "t0000", "t0001", "t0003", "t0003"]
    assert "0.6 (0.5 to 0.7)" in text
    assert "t0003 diverged: loss_d is nan at step 70" in text
    assert "Pareto front over representation, coverage: t0000, t0002" in text
    assert re.findall(r"^  (\S+) +(\S+) +(\S+) to (\S+)", text, flags=re.MULTILINE) == [
        ("optim.lr", "0.60", "0.40", "0.70"),
        ("optim.beta1", "0.10", "0.00", "0.30"),
    ]
    assert f"python -m dcgan_dist.train --config '{tmp_path}/my sweep/best.yaml'" in text
    assert f"{tmp_path}/my sweep/trials/t0002 (optim.lr 0.003, optim.beta1 0.5)" in text
    assert f"tensorboard --logdir '{tmp_path}/my sweep/trials'" in text


def test_the_full_score_of_a_finalist_has_its_own_column(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path / "sweep")) as ledger:
        fill(ledger)
        full = {"representation": {"value": 0.7, "ci95": [0.65, 0.75], "n": 5000}}
        ledger.update("t0002", full_scores=full, full_objective=0.7)
        print_results(ledger, console)
    header, *rows = written(console).splitlines()[1:6]
    places = [header.index(name) for name in ("representation in full", "verdict", "status")]
    cells = [[row[place:].split("  ")[0] for place in places[1:]] for row in rows]
    assert cells == [["oscillation", "finished"], ["stable", "stopped"], ["collapse", "finished"], ["", "diverged"]]
    assert ["0.7 (0.65 to 0.75)" in row for row in rows] == [True, False, False, False]


def test_results_of_a_sweep_without_scores_say_so(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        print_results(ledger, console)
    text = written(console)
    assert "0 of 4 trials ended" in text
    assert "with 8 or more scored trials" in text
    assert "best trial        none" in text


def test_the_live_table_has_the_running_trials_first_and_fits_the_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=110, height=12, force_terminal=True)
    config = override(CONFIG, {"trials": 40})
    with Ledger.open(SweepPlan.of(config), str(tmp_path)) as ledger:
        for number in range(20):
            ledger.start(record(number, "waiting"))
            score(ledger, f"t{number:04d}", number / 20, step=50, verdict="stable")
            if number not in (3, 7):
                ledger.finish(f"t{number:04d}", "finished")
        console.print(LiveTable(ledger, console).render())
    lines = written(console).splitlines()
    assert len(lines) < 12
    assert lines[0].startswith("sweep mine: 18 of 40 trials ended, 2 running, 48% done, about")
    assert lines[1] == "best so far: t0019, representation 0.95, optim.lr 0.02, optim.beta1 0.5"
    assert lines[2].split() == ["trial", "lr", "beta1", "step", "status", "verdict", "representation", "left"]
    assert lines[3].split()[:7] == ["t0003", "0.004", "0.5", "50/100", "running", "stable", "0.15"]
    assert [line.split()[0] for line in lines[4:7]] == ["t0007", "t0019", "t0018"]
    assert lines[-1] == "and 16 more, in sweep.json"


def test_without_a_terminal_each_change_of_status_is_a_line(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    before = threading.active_count()
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        ledger.start(record(0, "waiting"))
        with LiveTable(ledger, console):
            ledger.start(record(1, "waiting"))
            score(ledger, "t0001", 0.25, step=40, verdict="undecided")
            ledger.finish("t0001", "stopped", "stopped early by asha at step 40 of 100")
    lines = [line for line in written(console).splitlines() if line.startswith("t")]
    # No line about the trial that was running before, and no line twice.
    assert lines[-1] == (
        "t0001 stopped at step 40 of 100; undecided; representation 0.25; optim.lr 0.002, optim.beta1 0.5"
        " (stopped early by asha at step 40 of 100)"
    )
    assert all(line.startswith("t0001") for line in lines)
    assert len(lines) <= 2
    assert threading.active_count() == before


def test_without_a_terminal_there_is_a_summary_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PLAIN_SECONDS", 0.2)
    monkeypatch.setattr(table, "_POLL_SECONDS", 0.05)
    console = Console(file=io.StringIO(), width=160)
    with Ledger.open(SweepPlan.of(CONFIG), str(tmp_path)) as ledger:
        ledger.start(record(0, "waiting", step=50))
        with LiveTable(ledger, console):
            threading.Event().wait(1.0)
    lines = written(console).splitlines()
    assert 2 <= sum(line.startswith("sweep mine: 0 of 4 trials ended, 1 running") for line in lines) <= 6
    assert any(line.startswith("  t0000 running at step 50 of 100; optim.lr 0.001") for line in lines)


def test_the_time_left_is_that_of_the_trials_to_come_over_those_at_the_same_time() -> None:
    ended = [record(0, "finished", 100, 60), record(1, "stopped", 25, 20)]  # 40 s on average
    running = [record(2, "running", 50, 30), record(3, "running", 0, 0)]
    assert share_done([*ended, *running], 10) == pytest.approx(0.25)
    # 10 s for the first (40 - 30, less than the 30 s to its end), 40 s for the second, 6 * 40 s for new ones, two at a
    # time.
    assert sweep_seconds_left([*ended, *running], 10) == pytest.approx((10 + 40 + 6 * 40) / 2)
    assert sweep_seconds_left(ended, 2) == 0
    assert sweep_seconds_left(running[:1], 2) == pytest.approx(30 + 60)
    assert sweep_seconds_left([record(0, "running")], 2) is None


def test_columns_are_named_by_the_last_part_of_a_setting_if_it_is_unique() -> None:
    assert short_names(["optim.lr", "model.name", "name"]) == {
        "optim.lr": "lr",
        "model.name": "model.name",
        "name": "name",
    }


@pytest.mark.parametrize(("seconds", "words"), [(8.4, "8 s"), (89, "89 s"), (95, "2 min"), (3599, "1 h 00 min")])
def test_durations_are_texts(seconds: float, words: str) -> None:
    assert table.duration(seconds) == words
