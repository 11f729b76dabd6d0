from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_dist import compare, report
from dcgan_dist.command_line import parse_settings
from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import InputError
from dcgan_dist.results import aggregate
from dcgan_dist.results.aggregate import Collection, Parent, Trial, collect, read_image
from dcgan_dist.results.reading import FigureFile, parse_plain_yaml
from dcgan_dist.results.stability import judge
from dcgan_dist.runs.writer import open_run
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.sweeps.ledger import Ledger, TrialRecord, trial_location
from dcgan_dist.sweeps.plan import SweepPlan
from dcgan_dist.sweeps.settings import SweepConfig
from tests.results.made_collections import add_score, make_run, metrics_row


def only(collection: Collection) -> Trial:
    assert len(collection.trials) == 1
    return collection.trials[0]


def read(folder: Path) -> Trial:
    return only(collect([str(folder)]))


# Runs


def test_former_spellings_of_settings_are_no_difference(tmp_path):
    run = make_run(tmp_path / "rooms", optim__lr=1e-3)
    text = (run / "config.yaml").read_text()
    assert "sample_statistics: running" in text
    (run / "config.yaml").write_text(text.replace("sample_statistics: running", "sample_statistics: paper"))
    trial = read(tmp_path)
    assert trial.settings["model.sample_statistics"] == "running"
    assert set(trial.changed) == {"optim.lr"}


def test_a_list_in_the_record_of_a_run_is_what_its_text_is(tmp_path):
    run = make_run(tmp_path / "rooms", optim__lr=1e-3)
    text = (run / "config.yaml").read_text()
    assert "generator_units: '256'" in text
    (run / "config.yaml").write_text(text.replace("generator_units: '256'", "generator_units: [256]"))
    assert read(tmp_path).settings["model.generator_units"] == "256"
    assert set(read(tmp_path).changed) == {"optim.lr"}


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = make_run(tmp_path / "rooms", optim__lr=1e-3, training__steps=200)
    add_score(run, "rooms", 200, 80.0)
    trial = read(tmp_path)
    assert (trial.key, trial.name, trial.directory) == ("rooms", "rooms", str(run))
    assert (trial.status, trial.step, trial.steps, trial.world_size) == ("finished", 200, 200, 1)
    lists = {"model.generator_units": "256", "model.discriminator_units": "128"}
    assert trial.settings == {**flatten(Config()), **lists, "optim.lr": 1e-3, "training.steps": 200}
    assert trial.changed == {"optim.lr": (1e-3, 2e-4), "training.steps": (200, None)}
    rows = [metrics_row(step) for step in range(10, 201, 10)]
    assert set(trial.metrics) == set(rows[0])
    for name, column in trial.metrics.items():
        expected = [np.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_array_equal(column, expected)
    assert trial.final["loss_g"] == pytest.approx(1.8)
    assert trial.best["loss_g"] == pytest.approx(1.8)
    assert trial.final["filter_oscillation"] == 0.01
    assert (trial.seconds, trial.images_seen, trial.throughput) == (20.0, 12800, 640.0)
    assert [step for step, _ in trial.samples] == [0, 100, 200]
    assert read_image(trial.samples[1][1]) == (run / "samples" / "step-00000100.png").read_bytes()
    assert read_image(str(trial.real)) == (run / "samples" / "real.png").read_bytes()
    assert (trial.device, trial.host) == ("cpu", trial.environment["host"] and os.uname().nodename)
    verdict = judge(rows)
    assert (trial.verdict.name, trial.verdict.reason, trial.verdict.score) == (
        verdict.name,
        verdict.reason,
        verdict.score,
    )
    assert trial.problems == ()


def test_the_command_trains_the_same_run_in_another_directory(tmp_path):
    run = make_run(tmp_path / "a run's", optim__lr=1e-3, cluster__storage=str(tmp_path))
    words = shlex.split(read(run).command)
    assert words[:3] == ["python", "-m", "dcgan_dist.train"]
    config = parse_settings(Config, words[3:], "train", "")
    assert config.run_dir == f"{run}-again"
    assert replace(config, run_dir=None, cluster=Config().cluster) == replace(
        Config(), optim=replace(Config().optim, lr=1e-3)
    )
    assert config.cluster.storage is None  # otherwise the run would be STORAGE/NAME, the old one


def test_the_newest_score_of_the_discriminator_counts_and_all_are_kept(tmp_path):
    run = make_run(tmp_path / "run")
    add_score(run, "cifar10", 100, 70.0)
    add_score(run, "cifar10", 200, 75.0)
    add_score(run, "cifar10", 200, 60.0, protocol="400-per-class")
    add_score(run, "cifar10", None, 99.0, method="pixels")
    trial = read(run)
    assert set(trial.scores) == {"cifar10.accuracy"}
    score = trial.scores["cifar10.accuracy"]
    assert (score.value, score.low, score.high, score.n) == (60.0, 59.0, 61.0, 100)
    assert (score.protocol, score.step, score.task) == ("400-per-class", 200, "cifar10")
    assert sorted(score.value for score in trial.all_scores) == [60.0, 70.0, 75.0, 99.0]


def test_runs_with_the_same_name_get_different_keys(tmp_path):
    for place in ("a/rooms", "b/rooms", "b/faces", "b/c/rooms"):
        make_run(tmp_path / place, steps=10)
    keys = {trial.key: trial.directory for trial in collect([str(tmp_path)]).trials}
    assert keys == {
        "a/rooms": f"{tmp_path}/a/rooms",
        "b/rooms": f"{tmp_path}/b/rooms",
        "c/rooms": f"{tmp_path}/b/c/rooms",
        "faces": f"{tmp_path}/b/faces",
    }


def test_a_run_that_is_reached_by_several_paths_is_one_run(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs" / "rooms", steps=10)
    (tmp_path / "runs" / "again").symlink_to(run)
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    collection = collect(["runs", str(run), "runs/rooms/", f"file://{run}"])
    assert len(collection.trials) == 1


def test_a_location_named_by_a_dot_has_its_real_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "rooms", steps=10))
    assert only(collect(["."])).key == "rooms"


# Sweeps


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep as its driver leaves it: trials that are good, stopped early, refused, copied, and waiting."""
    folder = tmp_path / "lr"
    config = SweepConfig(space={"optim.lr": {"loguniform": [1e-5, 1e-1]}}, trials=5)
    with Ledger.open(SweepPlan.of(config), str(folder)) as ledger:
        for number, lr in enumerate((1e-4, 1e-3, 1e-2, 1e-5)):
            name = f"t{number:04d}"
            ledger.start(TrialRecord(trial=name, parameters={"optim.lr": lr}, steps=200))
            if number != 2:
                make_run(trial_location(str(folder), name), optim__lr=lr)
        score = {"value": 0.5, "ci95": [0.4, 0.6], "n": 100}
        ledger.finish("t0000", "finished", step=200, scores={"representation": score}, objective=0.5)
        ledger.finish("t0001", "stopped", "stopped early by asha at step 100 of 200", objective=0.2, verdict="collapse")
        ledger.finish("t0002", "failed", "optim.lr is 1e-2: too large")
        ledger.finish("t0003", "finished", parent={"trial": "t0000", "step": 100, "digest": "ab"})
        ledger.start(TrialRecord(trial="t0004", parameters={"optim.lr": 0.1}, steps=200))
        ledger.close("stopped", "interrupted")
    return folder


def test_the_records_of_a_sweep_are_part_of_its_trials(sweep):
    make_run(sweep.parent / "alone", steps=10)
    collection = collect([str(sweep.parent)])
    (found,) = collection.sweeps
    assert (found.key, found.status, found.objective) == ("lr", "stopped", "representation")
    assert found.space == {"optim.lr": {"loguniform": [1e-5, 1e-1]}}
    assert found.trials == tuple(f"lr/t000{number}" for number in range(5))
    assert found.best == "lr/t0000"
    trials = {trial.key: trial for trial in collection.trials}
    assert set(trials) == {*found.trials, "alone"}
    assert trials["alone"].sweep is None
    best = trials["lr/t0000"]
    assert (best.sweep, best.objective, best.parameters) == ("lr", 0.5, {"optim.lr": 1e-4})
    assert best.settings["optim.lr"] == 1e-4
    assert best.scores["sweep.representation"].low == 0.4
    assert len(best.samples) == 3
    early = trials["lr/t0001"]
    assert (early.status, early.reason) == ("stopped", "stopped early by asha at step 100 of 200")
    assert early.verdict.name == "collapse"
    refused = trials["lr/t0002"]
    assert (refused.status, refused.reason) == ("failed", "optim.lr is 1e-2: too large")
    assert refused.problems == ("it has no run directory",)
    assert trials["lr/t0003"].parent == Parent("lr/t0000", 100, "ab")
    assert trials["lr/t0004"].status == "stopped"
    assert "resumes with the sweep" in trials["lr/t0004"].reason


def test_a_sweep_with_a_damaged_ledger_is_shown_by_its_trials(sweep):
    ledger = sweep / "sweep.json"
    ledger.write_bytes(ledger.read_bytes()[:500])
    collection = collect([str(sweep)])
    assert collection.sweeps[0].problems == ("sweep.json is cut or damaged: it is no JSON",)
    assert [trial.key for trial in collection.trials] == ["lr/t0000", "lr/t0001", "lr/t0003"]
    ledger.unlink()
    assert "missing" in collect([str(sweep)]).sweeps[0].problems[0]


def test_a_trial_without_its_sweep_is_a_single_run(sweep):
    trial = only(collect([str(sweep / "trials" / "t0001")]))
    assert (trial.key, trial.sweep, trial.status) == ("t0001", None, "finished")


# Runs that are running, and those that only seem to be


def test_a_run_whose_process_lives_is_running_and_one_whose_process_is_gone_died(tmp_path, start_writer):
    writer = start_writer(
        "run = open_run(sys.argv[1]); run.set_status('running', step=7); print('up', flush=True); time.sleep(60)",
        tmp_path / "run",
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "up\n"
    trial = read(tmp_path)
    assert (trial.status, trial.step) == ("running", 7)
    writer.kill()
    writer.wait()
    trial = read(tmp_path)
    assert trial.status == "died"
    assert str(writer.pid) in trial.reason
    assert len(trial.reason.splitlines()) == 1


def test_a_run_on_another_machine_died_when_its_heartbeat_is_old(tmp_path):
    run = make_run(tmp_path / "run", status="running", steps=10)
    status = json.loads((run / "status.json").read_text()) | {"status": "running", "locked": True, "machine": "other"}
    for age, expected in ((1, "running"), (3600, "died")):
        (run / "status.json").write_text(json.dumps(status | {"heartbeat": time.time() - age}))
        assert read(run).status == expected


@pytest.mark.parametrize("pid", [-1, 0, 10**30, True, "7", None])
def test_an_impossible_process_is_gone(tmp_path, pid):
    run = make_run(tmp_path / "run", steps=10)
    status = json.loads((run / "status.json").read_text()) | {"status": "running", "locked": True, "pid": pid}
    (run / "status.json").write_text(json.dumps(status))
    assert read(run).status == "died"


def draw_figure(run: Path, name: str, content: bytes | None = None, **about: object) -> None:
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / f"{name}.png").write_bytes(b"a picture")
    valid = json.dumps({"title": "A walk", "finding": "Neighbours are near.", "step": 20} | about).encode()
    (run / "figures" / f"{name}.json").write_bytes(valid if content is None else content)


def test_figures_are_read_with_title_and_finding(tmp_path):
    run = make_run(tmp_path / "runs" / "a", steps=20)
    cache = tmp_path / "collection.arrow"
    assert only(collect([str(tmp_path / "runs")], cache)).figures == ()
    draw_figure(run, "walk")
    draw_figure(run, "nasty", title="<b>\n" + "x" * 9, finding=[1], step="many")
    draw_figure(run, "cut", content=b'{"title": ')
    (run / "figures" / "alone.json").write_text("{}")
    (run / "figures" / "walk.gif").write_bytes(b"an animation")
    trial = only(collect([str(tmp_path / "runs")], cache))
    place = f"{run}/figures"
    assert trial.figures == (
        (FigureFile("cut", "cut", "", None), f"{place}/cut.png"),
        (FigureFile("nasty", "<b> xxxxxxxxx", "", None), f"{place}/nasty.png"),
        (FigureFile("walk", "A walk", "Neighbours are near.", 20), f"{place}/walk.png"),
    )
    assert trial.problems == ("figures/cut.json is cut or damaged: it is no JSON",)
    again = collect([str(tmp_path / "runs")], cache)
    assert (again.read, only(again).figures) == (0, trial.figures)


# Bad and hostile files


def test_a_metrics_file_that_is_cut_in_a_line_keeps_all_complete_lines(tmp_path):
    run = make_run(tmp_path / "run")
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[:-20])
    trial = read(run)
    assert trial.problems == ("metrics.jsonl line 20 is cut",)
    assert trial.metrics["step"].tolist() == list(range(10, 191, 10))
    lines = whole.split(b"\n")
    lines[4] = lines[4][:30]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read(run).problems == ("metrics.jsonl line 5 is damaged",)


def test_two_cut_lines_are_not_read_as_one_complete_line(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    (run / "metrics.jsonl").write_text('{"step": 1\n"loss_d": 2.0}\n{"step": 3, "loss_d": 1.0}\n')
    trial = read(run)
    assert trial.metrics["step"].tolist() == [3]
    assert trial.problems == ("metrics.jsonl line 1 is damaged, and 1 more",)


def test_nan_infinity_and_values_that_are_not_numbers_are_no_error(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss_d": NaN, "loss_g": Infinity, "note": "a"}\n'
        '{"step": 2, "loss_d": 0.5, "loss_g": -Infinity, "note": ["b"]}\n'
        '{"step": 3, "loss_d": null, "loss_g": 1e999, "note": {}}\n'
        f'{{"step": 4, "loss_d": {10**400}, "loss_g": "x"}}\n'
        '{"step": null, "loss_d": 9}\n'
        "[5]\n\n"
    )
    trial = read(run)
    assert trial.metrics["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(trial.metrics["loss_d"], [np.nan, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(trial.metrics["loss_g"], [np.inf, -np.inf, np.inf, np.nan])
    assert "note" not in trial.metrics
    assert trial.final == {"step": 4.0, "loss_d": 0.5}
    assert trial.problems == (
        "metrics.jsonl line 6 is damaged",
        "metrics.jsonl has 1 lines without a step: they are left out",
    )


@pytest.mark.parametrize("word", ["NaN", "Infinity", "null"])
def test_a_loss_that_is_not_finite_is_a_divergence_whatever_else_the_line_has(tmp_path, word):
    run = make_run(tmp_path / "run", steps=10)
    (run / "metrics.jsonl").write_text(f'{{"step": 1, "loss_d": {word}, "loss_g": 1.0, "d_real": "a", "note": []}}\n')
    assert read(run).verdict.name == "diverged"
    # The line that names the parent of a copied checkpoint has no losses: it is not a line of training.
    (run / "metrics.jsonl").write_text('{"step": 1, "parent": "t0001", "parent_step": 1, "parent_digest": "ab"}\n')
    assert read(run).verdict.name == "undecided"


def test_steps_that_go_back_are_sorted_and_the_last_line_of_each_counts(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    rows = [{"step": 1, "loss_d": 1.0}, {"step": 3, "loss_d": 3.0}, {"step": 2, "loss_d": 2.0}]
    rows += [{"step": 3, "parent": "t0001", "parent_step": 3, "parent_digest": "cd"}, {"step": 1, "loss_d": 9.0}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    trial = read(run)
    assert trial.metrics["step"].tolist() == [1, 2, 3]
    assert trial.metrics["loss_d"].tolist() == [9, 2, 3]
    assert trial.parent == Parent("t0001", 3, "cd")


HOSTILE = '<script>alert("1")</script>\n=1+1 \udcff ' + "x" * 10_000


def test_hostile_settings_and_reasons_are_kept_as_text(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["path"] = content["new"] = HOSTILE.replace("\udcff", "")
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    status = json.loads((run / "status.json").read_text()) | {"reason": HOSTILE, "host": ["<b>"]}
    (run / "status.json").write_text(json.dumps(status))
    trial = read(run)
    assert trial.settings["data.path"] == trial.settings["new"] == HOSTILE.replace("\udcff", "")
    assert trial.reason == HOSTILE.replace("\udcff", "?")
    assert trial.host == '["<b>"]'
    trial.reason.encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "config.yaml is empty"),
        (b"- 1\n", "config.yaml holds no settings"),
        (b"optim: {lr: [\n", "config.yaml is cut or damaged"),
        (b"[" * 100_000, "config.yaml is cut or damaged"),
        (b"\xff\xfe\x00", "config.yaml is cut or damaged"),
        (
            b"a: &a [x]\n" + b"".join(b"%c: &%c {p: *%c, q: *%c}\n" % (c + 1, c + 1, c, c) for c in range(97, 121)),
            "it has aliases",
        ),
        (b"#" * (2**20 + 1), "more than the 1,048,576"),
    ],
)
def test_an_invalid_config_is_reported_in_one_line(tmp_path, content, expected):
    run = make_run(tmp_path / "run", steps=10)
    (run / "config.yaml").write_bytes(content)
    begun = time.process_time()
    trial = read(run)
    assert time.process_time() - begun < 5
    assert expected in trial.problems[0]
    assert len(trial.problems[0].splitlines()) == 1
    assert len(trial.metrics["step"]) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"status": {"a": 1}, "pid": "x"}', b"\xff"])
@pytest.mark.parametrize("name", ["status.json", "scores.json", "sweep.json"])
def test_damaged_json_is_no_error(tmp_path, name, content):
    run = make_run(tmp_path / "runs" / "run", steps=10)
    target = tmp_path / "runs" if name == "sweep.json" else run
    (target / name).write_bytes(content)
    collection = collect([str(tmp_path)])
    assert len(collection.trials) == 1
    problems = [*collection.trials[0].problems, *(line for sweep in collection.sweeps for line in sweep.problems)]
    assert problems if content != b'{"status": {"a": 1}, "pid": "x"}' else not problems


@pytest.mark.parametrize(
    "scores",
    [
        {"rooms": [{"step": 1, "metrics": {"a": {"value": "x", "ci95": [1], "n": "y"}, "b": 3, "c": None, "d": [1]}}]},
        {
            "rooms": {"step": 1},
            "mnist": [1, None, {"metrics": [1]}, {"step": "latest", "metrics": {"a": {"value": 1}}}],
        },
    ],
)
def test_scores_of_another_form_are_no_error(tmp_path, scores):
    run = make_run(tmp_path / "run", steps=10)
    (run / "scores.json").write_text(json.dumps(scores))
    assert set(read(run).scores) <= {"rooms.a", "rooms.b", "rooms.c", "rooms.d"}


def test_pipes_folders_and_links_instead_of_files_are_reported_without_waiting(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    (run / "scores.json").mkdir()
    (run / "status.json").unlink()
    (run / "status.json").symlink_to("nowhere")
    trial = read(run)
    assert trial.problems == ("metrics.jsonl is not a regular file", "scores.json is not a regular file")
    assert (trial.status, trial.reason) == ("unknown", "status.json is missing")


def test_incomplete_directories_are_shown_as_far_as_possible(tmp_path):
    run = make_run(tmp_path / "whole", steps=10)
    for number, name in enumerate(("config.yaml", "status.json", "metrics.jsonl")):
        (tmp_path / f"only{number}").mkdir()
        os.link(run / name, tmp_path / f"only{number}" / name)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").touch()
    trials = {trial.key: trial for trial in collect([str(tmp_path)]).trials}
    assert set(trials) == {"whole", "only0", "only1", "only2"}
    assert (trials["only0"].status, trials["only1"].status, trials["only2"].status) == (
        "unknown",
        "finished",
        "unknown",
    )


def test_a_config_of_something_else_is_listed_as_unreadable(tmp_path):
    make_run(tmp_path / "run", steps=10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("server: {port: 80}\n")
    collection = collect([str(tmp_path)])
    assert len(collection.trials) == 1
    assert collection.unreadable == ((f"{tmp_path}/other", "its config.yaml holds no settings of a run"),)


def test_a_name_that_is_not_utf_8_is_shown_with_a_question_mark(tmp_path):
    make_run(tmp_path / "run", steps=10).rename(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\n<b>"))
    trial = only(collect([str(tmp_path)], tmp_path / "cache.arrow"))
    assert trial.key == "a?\n<b>"
    assert read_image(str(trial.real)) is not None
    assert only(collect([str(tmp_path)], tmp_path / "cache.arrow")).metrics["step"].tolist() == [10]


def test_an_older_run_without_newer_settings_and_metrics_is_shown(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    (run / "config.yaml").write_text("seed: 3\noptim:\n  lr: 1e-3\n  old: 7\n")
    (run / "metrics.jsonl").write_text('{"step": 10, "loss_d": 1.0}\n')
    (run / "status.json").write_text('{"status": "finished"}')
    trial = read(run)
    assert trial.settings == {"seed": 3, "optim.lr": 1e-3, "optim.old": 7}
    assert trial.changed == {"seed": (3, 0), "optim.lr": (1e-3, 2e-4)}
    assert (trial.status, trial.step, trial.seconds, trial.throughput) == ("finished", 10, None, None)


def test_an_empty_location_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such directory: '/nowhere/at/all'"):
        collect(["/nowhere/at/all"])
    with pytest.raises(InputError, match=r"no directory there holds config\.yaml"):
        collect([str(tmp_path)])


# Plain YAML

VALUES = """:|: 1|: 1e-5|: 1.0e-05|: null|: ~|: yes|: 0x1f|: 010|: 1_000|: a:b|: a:|: -3|: .nan|: -.inf|: 'q'|: "|: - x
: #c|: a #c|: {}|: 2001-01-01|: 1:30| : 1|: >|: a b|: ---|: *a|: &a b|: /tmp/x|: s3://b/c|: rooms:9
: -|: ?|: 1  |x|: 1.5e-3|: -0|: -01|: 1.50|: -1.5e+3|: 1.5e3|: t00012|: NULL|: oFF|: a/b-c.d+e|: 0.0|: /""".replace(
    "\n", "|"
).split("|")
LINES = st.builds(
    lambda spaces, key, rest: " " * spaces + key + rest,
    st.sampled_from([0, 0, 2, 2, 4, 3]),
    st.sampled_from(["a", "b", "lr", "yes", "no", "null", "y", "1"]),
    st.sampled_from(VALUES),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINES, max_size=6))
def test_plain_yaml_is_parsed_like_yaml_or_left_to_the_yaml_parser(lines):
    text = "\n".join(lines) + "\n"
    ours = parse_plain_yaml(text)
    if ours is not None:
        theirs = yaml.safe_load(text) or {}
        assert repr(ours) == repr(aggregate.clean(theirs))


def test_the_config_that_a_run_writes_is_plain_yaml(tmp_path):
    text = (make_run(tmp_path / "run", steps=10, optim__lr=1e-5) / "config.yaml").read_text()
    assert parse_plain_yaml(text) == yaml.safe_load(text)


# The cache


def test_only_changed_runs_are_read_again_and_nothing_else_differs(tmp_path):
    runs = [make_run(tmp_path / "runs" / f"r{number}", steps=20) for number in range(4)]
    add_score(runs[0], "rooms", 20, 80.0)
    cache = tmp_path / "cache" / "collection.arrow"
    first = collect([str(tmp_path / "runs")], cache)
    again = collect([str(tmp_path / "runs")], cache)
    assert (first.read, again.read) == (4, 0)
    for one, other in zip(first.trials, again.trials, strict=True):
        assert replace(one, metrics={}) == replace(other, metrics={})
        for name in one.metrics:
            np.testing.assert_array_equal(one.metrics[name], other.metrics[name])
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_row(30)) + "\n")
    add_score(runs[2], "rooms", 20, 70.0)
    third = collect([str(tmp_path / "runs")], cache)
    assert third.read == 2
    assert third.trials[1].metrics["step"][-1] == 30
    assert third.trials[2].scores["rooms.accuracy"].value == 70.0


def test_a_damaged_cache_is_replaced(tmp_path):
    make_run(tmp_path / "runs" / "a", steps=20)
    cache = tmp_path / "collection.arrow"
    expected = collect([str(tmp_path / "runs")], cache)
    whole = cache.read_bytes()
    for content in (b"", b"no arrow", whole[:-200], whole[: len(whole) // 2], b"\0" * len(whole)):
        cache.write_bytes(content)
        collection = collect([str(tmp_path / "runs")], cache)
        assert collection.read == 1
        assert collection.trials[0].settings == expected.trials[0].settings
        assert collect([str(tmp_path / "runs")], cache).read == 0


def test_a_cache_that_cannot_be_written_is_reported_and_no_error(tmp_path):
    make_run(tmp_path / "runs" / "a", steps=20)
    lines: list[str] = []
    assert len(collect([str(tmp_path / "runs")], Path("/proc/none/collection.arrow"), lines.append).trials) == 1
    assert len(lines) == 1
    assert "read again" in lines[0]


def test_many_runs_are_read_by_several_processes_in_order(tmp_path, monkeypatch):
    for number in range(6):
        make_run(tmp_path / f"r{number}", steps=10, seed=number)
    monkeypatch.setattr(aggregate, "_RUNS_PER_PROCESS", 1)
    monkeypatch.setattr(aggregate, "_BATCH", 2)
    monkeypatch.setattr(aggregate, "usable_cores", lambda: 2)
    collection = collect([str(tmp_path)])
    assert [trial.settings["seed"] for trial in collection.trials] == list(range(6))


# Storage


def test_runs_and_sweeps_on_object_storage_are_read(s3_server, tmp_path):
    make_run("s3://results/collection/rooms", steps=20)
    draw_figure(tmp_path, "walk")
    for name in ("walk.png", "walk.json"):
        folder_at("s3://results/collection/rooms/figures").write(name, (tmp_path / "figures" / name).read_bytes())
    add_score("s3://results/collection/rooms", "rooms", 20, 80.0)
    with Ledger.open(
        SweepPlan.of(SweepConfig(space={"seed": {"choice": [1, 2]}}, trials=1)), "s3://results/collection/sweep"
    ) as ledger:
        ledger.start(TrialRecord(trial="t0000", parameters={"seed": 1}, steps=20))
        make_run(trial_location("s3://results/collection/sweep", "t0000"), steps=20)
        ledger.finish("t0000", "finished", objective=0.7)
    cache = tmp_path / "collection.arrow"
    collection = collect(["s3://results/collection"], cache)
    assert [(trial.key, trial.status, trial.objective) for trial in collection.trials] == [
        ("sweep/t0000", "finished", 0.7),
        ("rooms", "finished", None),
    ]
    rooms = collection.trials[1]
    assert rooms.scores["rooms.accuracy"].value == 80.0
    assert rooms.metrics["step"].tolist() == [10, 20]
    assert (read_image(rooms.samples[0][1]) or b"").startswith(b"\x89PNG")
    assert [figure.title for figure, _ in rooms.figures] == ["A walk"]
    assert read_image(rooms.figures[0][1]) == b"a picture"
    assert "s3://" not in rooms.command.partition("--")[0]
    assert collect(["s3://results/collection"], cache).read == 0
    with open_run("s3://results/collection/rooms") as run:
        run.append_metrics(metrics_row(30))
        run.set_status("finished")
    assert collect(["s3://results/collection"], cache).read == 1
    with pytest.raises(InputError, match="nothing is at s3://results/none"):
        collect(["s3://results/none"])


def test_reading_needs_neither_torch_nor_ray(tmp_path):
    make_run(tmp_path / "run", steps=10)
    code = (
        "import sys; from dcgan_dist.results.aggregate import collect; assert len(collect(sys.argv[1:]).trials) == 1;"
        " print([name for name in ('torch', 'ray', 'tensorboard', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_damaged_run_is_marked_and_all_others_are_shown(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good", steps=10)
    damages = {
        "nan": ("metrics.jsonl", b'{"step": NaN, "loss_d": 1e999, "loss_g": 1e999}'),
        "zeros": ("metrics.jsonl", b"\0" * 999),
        "noise": ("metrics.jsonl", random.Random(0).randbytes(1_000_000)),
        "nested": ("scores.json", b"[" * 99_999),
        "cut": ("status.json", b'{"pid": 1e999'),
        "open": ("config.yaml", b"a: [\n"),
    }
    for name, (file, content) in damages.items():
        (make_run(tmp_path / "runs" / name, steps=10) / file).write_bytes(content)
    # A number that is too large for a float is no damage, but cannot be in a table.
    (make_run(tmp_path / "runs" / "huge", steps=10) / "config.yaml").write_text(f"optim: {{lr: 1{'0' * 400}}}\n")
    problems = {trial.key: trial.problems for trial in collect([str(tmp_path / "runs")]).trials}
    assert not problems.pop("good") + problems.pop("huge")
    assert {name: damages[name][0] in found[0] for name, found in problems.items()} == dict.fromkeys(damages, True)
    assert report.main([str(tmp_path / "runs"), "--output", str(tmp_path / "report.html")]) == 0
    assert compare.main([str(tmp_path / "runs")]) == 0
    page, table = (tmp_path / "report.html").read_text(), capsys.readouterr().out
    assert all(name in page and name in table for name in ("good", "huge", *damages))


def test_grids_and_scores_of_averaged_weights_take_precedence_over_raw_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {name: dcgan}\n")
    for name in ("step-00000005", "raw-step-00000005", "step-00000000", "raw-step-00000000", "raw-", "raw-real"):
        (run / f"samples/{name}.png").write_bytes(b"")
    entry = {"step": 5, "method": "dcgan", "protocol": "p"}
    scores = [
        {**entry, "weights": weights, "metrics": {"coverage": {"value": value}}}
        for weights, value in (("raw", 0.1), ("average", 0.2))
    ]
    for order in (scores, scores[::-1]):
        (run / "scores.json").write_text(json.dumps({"fidelity": order}))
        (trial,) = aggregate.collect([str(run)], tmp_path / "cache.arrow").trials
        assert trial.scores["fidelity.coverage"].value == 0.2
        assert [step for step, _ in trial.samples] == [step for step, _ in trial.raw_samples] == [0, 5]
        assert all(path.rpartition("/")[2].startswith("raw-") for _, path in trial.raw_samples)
