"""The commands `report` and `compare` as users start them, and their output."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dcgan_dist import compare, report
from dcgan_dist.errors import InputError
from dcgan_dist.results.aggregate import collect
from dcgan_dist.results.report import write_report
from dcgan_dist.results.thumbnails import Thumbnails
from dcgan_dist.runs.writer import open_run
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord, trial_location
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from tests.results.made_collections import add_score, make_run, metrics_row

FILES = {"report.html", "trials.csv", "trials.parquet", "metrics.parquet"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _unsized(monkeypatch):
    """Let each test set the width of the terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


def trials_in(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def test_the_command_writes_the_page_and_the_tables_without_torch_or_ray(tmp_path):
    make_run(tmp_path / "runs" / "a", steps=20)
    code = (
        "import sys; from dcgan_dist.report import main; status = main(sys.argv[1:]);"
        " print([name for name in ('torch', 'ray', 'tensorboard') if name in sys.modules]); sys.exit(status)"
    )
    output = tmp_path / "new" / "folder" / "report.html"
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert [line.split()[-1] for line in lines] == [
        str(output.parent / name) for name in ("report.html", "trials.csv", "trials.parquet", "metrics.parquet")
    ]
    assert {path.name for path in output.parent.iterdir()} == FILES
    assert "a" in trials_in(output.parent)


def test_words_and_settings_can_be_in_any_order(tmp_path, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name, steps=10)
    output = tmp_path / "report.html"
    assert report.main([str(tmp_path / "a"), f"--output={output}", str(tmp_path / "b")]) == 0
    assert set(trials_in(tmp_path)) == {"a", "b"}
    assert report.main(["--output", str(output), "--", str(tmp_path / "b")]) == 0
    assert set(trials_in(tmp_path)) == {"b"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "no directory given"),
        (["nowhere"], "no such directory: 'nowhere'"),
        (["nowhere", "--output", "new/report.html"], "no such directory: 'nowhere'"),
        (["empty"], "nothing found in empty: no directory there holds config.yaml"),
        (["runs/a/config.yaml"], "no such directory"),
        (["runs", "--outptu", "x"], "did you mean output?"),
        (["runs", "--output", "empty"], "a folder: name a file in it, such as empty/report.html"),
        (["runs", "--output", "/proc/none/report.html"], "cannot be written"),
        (["runs", "--output", "report.pdf"], "name a file that ends in .html"),
        (["runs", "--output", "report"], "name a file that ends in .html"),
        (["runs", "--output", "s3://bucket/report.html"], "to a disk"),
        (["runs", "--watch", "0"], "watch is 0.0"),
        (["runs", "--output"], "--output needs a value"),
        (["ftps://x/y"], "ftps"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, word):
    make_run(tmp_path / "runs" / "a", steps=10)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error
    assert len(error.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "empty"}
    assert not list((tmp_path / "empty").iterdir())


def test_a_page_next_to_the_runs_is_not_a_run(tmp_path):
    make_run(tmp_path / "a", steps=10)
    for _ in range(2):
        assert report.main([str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0
    assert set(trials_in(tmp_path)) == {"a"}


def test_the_second_report_reads_only_what_changed(tmp_path, cache):
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, steps=10)
    output = str(tmp_path / "report.html")
    assert report.main([str(tmp_path / "runs"), "--output", output]) == 0
    (kept,) = (cache / "reports").iterdir()
    make_run(tmp_path / "runs" / "c", steps=10)
    assert collect([str(tmp_path / "runs")], kept).read == 1


def test_watching_follows_a_run_until_it_ends(tmp_path, capsys):
    looks: list[float] = []
    with open_run(str(make_run(tmp_path / "runs" / "a", steps=20))) as run:
        run.set_status("running", step=20)
        make_run(tmp_path / "runs" / "b", steps=10)
        output = tmp_path / "report.html"
        thumbnails = Thumbnails()
        places = [str(tmp_path / "runs")]
        collection = collect(places)
        write_report(collection, output)
        assert report.is_running(collection)

        def sleep(seconds: float) -> None:
            """Change the run between two reads."""
            looks.append(seconds)
            if len(looks) == 1:
                run.append_metrics(metrics_row(30))
                run.set_status("running", step=30)
            elif len(looks) == 2:
                assert trials_in(tmp_path)["a"]["step"] == "30"
                run.set_status("finished")
                run.close()

        report.watch(places, output, tmp_path / "cache.arrow", 5.0, collection, thumbnails, sleep)
    assert looks == [5.0, 5.0]
    row = trials_in(tmp_path)["a"]
    assert (row["status"], row["final.step"]) == ("finished", "30")
    assert capsys.readouterr().out.splitlines()[-1] == "all have ended"


def test_watching_continues_after_a_location_is_gone_for_a_while(tmp_path, capsys):
    runs = tmp_path / "runs"
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            runs.rename(tmp_path / "away")
        if len(looks) == 3:
            (tmp_path / "away").rename(runs)
            run.set_status("finished")

    with open_run(str(make_run(runs / "a", steps=20))) as run:
        run.set_status("running")
        collection = collect([str(runs)])
        report.watch([str(runs)], tmp_path / "report.html", tmp_path / "c.arrow", 1.0, collection, Thumbnails(), sleep)
        assert len(looks) == 3
        assert capsys.readouterr().err.count("no such directory") == 2
        run.set_status("running")
        collection = collect([str(runs)])
        with pytest.raises(InputError, match="no such directory"):
            report.watch(
                ["/none"], tmp_path / "report.html", tmp_path / "c.arrow", 1.0, collection, Thumbnails(), looks.append
            )


def test_ctrl_c_ends_watching_and_leaves_a_complete_page(tmp_path):
    output = tmp_path / "report.html"
    with open_run(str(make_run(tmp_path / "runs" / "a", steps=20))) as run:
        run.set_status("running")
        # The process that started these tests may ignore SIGINT, which is inherited.
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            " from dcgan_dist.report import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "runs"), "--watch", "1"]
        process = subprocess.Popen(
            [*command, "--output", str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 120
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(4)]
            assert time.monotonic() < deadline
            assert lines[-1].split()[-1].endswith("metrics.parquet")
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].startswith("stopped watching")
    assert output.read_text(encoding="utf-8").rstrip().endswith("</html>")


# compare


def make_sweep(folder: Path) -> None:
    config = SweepConfig(space={"optim.lr": {"grid": [1e-4, 1e-3]}}, trials=3)
    with Ledger.open(SweepPlan.of(config), str(folder)) as ledger:
        for number, (lr, value) in enumerate(((1e-4, 0.25), (1e-3, 0.75), (1e-2, None))):
            name = f"t{number:04d}"
            ledger.start(TrialRecord(trial=name, parameters={"optim.lr": lr}, steps=200))
            make_run(trial_location(str(folder), name), optim__lr=lr, model__ngf=16)
            scores = {} if value is None else {"representation": {"value": value, "ci95": [value - 0.1, value + 0.1]}}
            if value is None:
                ledger.finish(name, "diverged", "loss_d is nan at step 7", verdict="diverged")
            else:
                ledger.finish(name, "finished", step=200, objective=value, scores=scores, verdict="stable")
        ledger.close()


def shown(text: str) -> list[list[str]]:
    """Return the rows of a table in the terminal, each as a list of its cells."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_compare_sorts_by_the_objective_and_shows_what_the_sweep_chose(tmp_path, capsys):
    make_sweep(tmp_path / "lr")
    assert compare.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = shown(out)
    names = [row[0] for row in rows if row[0]]
    assert names == ["lr/t0001", "lr/t0000", "lr/t0002"]
    first = rows[0]
    assert first[1] == "lr 0.001"  # settings that all have in common, such as ngf, are left out
    assert first[2] == "finished"
    assert "0.75" in first
    assert "0.65 to 0.85" in rows[1]
    assert "loss_d is nan at step 7" in out
    assert "3 trials by the objective: 2 finished, 1 diverged" in out


def test_compare_shows_the_objective_of_a_sweep_before_other_scores(tmp_path, capsys, monkeypatch):
    make_sweep(tmp_path / "lr")
    for name in ("t0000", "t0001"):
        for metric in ("aaa", "bbb", "ccc"):
            add_score(tmp_path / "lr" / "trials" / name, metric, 200, 80.0)
    monkeypatch.setenv("COLUMNS", "100")  # too narrow for more than one score
    assert compare.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "0.65 to 0.85" in out
    assert "79 to 81" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_compare_sorts_by_any_column_both_ways(tmp_path, capsys):
    for name, steps in (("a", 20), ("b", 40), ("c", 30)):
        make_run(tmp_path / name, steps=steps)
    for column, order in (("step", "acb"), ("-final.step", "bca"), ("-trial", "cba"), ("training.steps", "abc")):
        assert compare.main([str(tmp_path), "--sort", column]) == 0
        assert [row[0] for row in shown(capsys.readouterr().out) if row[0]] == list(order)
    assert compare.main([str(tmp_path), "--sort", "final.los_d"]) == 2
    assert "did you mean final.loss_d?" in capsys.readouterr().err
    assert compare.main([str(tmp_path), "--rows", "1"]) == 0
    assert "the first 1 are shown" in capsys.readouterr().out


def test_compare_fits_80_columns_and_a_pipe(tmp_path):
    add_score(make_run(tmp_path / "a-run-with-quite-a-long-name-indeed", optim__lr=1e-3), "rooms", 200, 80.0)
    make_run(tmp_path / "b", status="diverged", reason="loss_d is nan " * 20, data__path="s3://bucket/" + "x" * 200)
    collection = collect([str(tmp_path)])
    for width in (80, 60):
        text = compare.render(collection, list(collection.trials), width)
        assert max(len(line) for line in text.splitlines()) <= width
    done = subprocess.run(
        [sys.executable, "-m", "dcgan_dist.compare", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout
    assert "79 to 81" in done.stdout


def test_no_control_characters_of_names_or_values_reach_the_terminal(tmp_path, capsys):
    run = make_run(tmp_path / "[red]a[bold]\x1b[2J\n", steps=10)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["path"] = "[/bold]\x1b]0;title\x07" + "x" * 10_000
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    (run / "metrics.jsonl").write_text('{"step": 1')
    assert compare.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "[red]a[bold]" in out
    assert not {"\x1b", "\x07", "\x00"} & set(out)
    assert "line 1 is cut" in out


def test_a_collection_without_any_readable_run_is_reported(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text("a: 1\n")
    assert compare.main([str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert report.main([str(tmp_path), "--output", str(tmp_path / "report.html")]) == 0
