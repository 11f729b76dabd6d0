from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import StorageError
from dcgan_dist.results.aggregate import Collection, Trial, collect
from dcgan_dist.results.tables import METRICS_PARQUET, TRIALS_CSV, TRIALS_PARQUET, csv_cell, trial_table, write_tables
from dcgan_dist.settings import kinds_of, settings_in
from tests.results.made_collections import add_score, make_run, metrics_row


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    runs = tmp_path / "runs"
    add_score(make_run(runs / "a", optim__lr=1e-3), "rooms", 200, 80.0)
    make_run(runs / "b", status="diverged", reason="loss_d is nan\nat step 20", steps=20)
    return collect([str(runs)])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TRIALS_CSV).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_setting_metric_and_score_has_a_column(collection, tmp_path):
    write_tables(collection, tmp_path)
    first, second = rows_of(tmp_path)
    assert set(flatten(Config())) <= set(first)
    assert (first["trial"], first["status"], first["optim.lr"], first["final.loss_d"]) == (
        "a",
        "finished",
        "0.001",
        "1.0",
    )
    assert (first["final.step"], first["step"], first["final.images_seen"]) == ("200", "200", "12800")
    assert float(first["best.loss_g"]) == pytest.approx(1.8)
    score = {name: first[f"score.rooms.accuracy{name}"] for name in ("", "_low", "_high", "_n", "_step", "_protocol")}
    assert list(score.values()) == ["80.0", "79.0", "81.0", "100", "200", "full"]
    assert second["score.rooms.accuracy"] == ""
    assert second["reason"] == "loss_d is nan\nat step 20"
    assert second["data.cache"] == ""
    assert first["training.compile"] == "false"


def test_parquet_has_the_same_values_with_types(collection, tmp_path):
    write_tables(collection, tmp_path)
    table = pq.read_table(tmp_path / TRIALS_PARQUET)
    for row, record in zip(table.to_pylist(), rows_of(tmp_path), strict=True):
        assert list(row) == list(record)
        for name, value in row.items():
            assert record[name] == csv_cell(value), name
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    assert kinds["optim.lr"] == kinds["final.loss_d"] == kinds["score.rooms.accuracy_low"] == pa.float64()
    assert kinds["training.epochs"] == pa.float64()
    assert kinds["training.steps"] == kinds["model.image_size"] == kinds["step"] == pa.int64()
    assert kinds["training.compile"] == pa.bool_()
    assert kinds["data.path"] == kinds["reason"] == pa.string()


def test_types_do_not_depend_on_the_values(tmp_path):
    make_run(tmp_path / "a", steps=10)
    one = trial_table(collect([str(tmp_path)]))
    none = trial_table(Collection(trials=(Trial(key="x", name="x", directory="x"),)))
    for name, (kind, values) in none.items():
        assert one[name][0] == kind
        assert values == [None] or name in ("trial", "directory", "status", "reason", "verdict") or values[0] in ("", 0)
    known = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    for key, setting in settings_in(Config).items():
        assert none[key][0] == known.get(kinds_of(setting.hint)[0], pa.string())
    assert [none[key][0] for key in ("model.image_size", "optim.lr", "training.compile")] == list(known.values())
    assert none["model.generator_units"][0] == none["training.precision"][0] == pa.string()


def test_all_curves_are_in_one_file(collection, tmp_path):
    write_tables(collection, tmp_path)
    table = pq.read_table(tmp_path / METRICS_PARQUET)
    rows = table.to_pylist()
    assert [(row["trial"], row["step"]) for row in rows] == [
        *(("a", step) for step in range(10, 201, 10)),
        *(("b", step) for step in (10, 20)),
    ]
    assert rows[3] == {"trial": "a", **metrics_row(40)}
    assert table.schema.field("step").type == pa.int64()
    assert table.schema.field("loss_d").type == pa.float64()


def test_nan_is_empty_and_infinity_is_kept(tmp_path):
    run = make_run(tmp_path / "a", steps=10)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss_d": Infinity, "loss_g": 2.0}\n{"step": 2, "loss_g": NaN}\n')
    make_run(tmp_path / "b", steps=10)
    collection = collect([str(tmp_path)])
    write_tables(collection, tmp_path)
    rows = pq.read_table(tmp_path / METRICS_PARQUET).to_pylist()
    assert [row["loss_d"] for row in rows] == [math.inf, None, 1.0]
    assert [row["loss_g"] for row in rows] == [2.0, None, pytest.approx(1.99)]
    assert [row["d_real"] for row in rows] == [None, None, 0.7]  # not every run has all metrics
    assert [csv_cell(value) for value in (math.nan, math.inf, -math.inf, None, -1.5, -3)] == [
        *("", "inf", "-inf", "", "-1.5", "-3")
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_no_text_is_a_formula_in_a_spreadsheet(tmp_path, text):
    run = make_run(tmp_path / "runs" / "a", steps=10)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["path"] = text
    content["=key"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    status = json.loads((run / "status.json").read_text()) | {"reason": text}
    (run / "status.json").write_text(json.dumps(status))
    write_tables(collect([str(tmp_path)]), tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["data.path"] == row["reason"] == f"'{text}"
    assert row["'=key"] == "1"
    assert pq.read_table(tmp_path / TRIALS_PARQUET)["reason"].to_pylist() == [text]  # programs read the original text


def test_quotes_commas_and_newlines_are_read_back_unchanged(tmp_path):
    text = 'a "b", c\r\nd\re\x00\u2028' + "x" * 10_000
    run = make_run(tmp_path / "runs" / "a", steps=10)
    status = json.loads((run / "status.json").read_text()) | {"reason": text}
    (run / "status.json").write_text(json.dumps(status))
    make_run(tmp_path / "runs" / "b", steps=10)
    write_tables(collect([str(tmp_path)]), tmp_path)
    assert [row["reason"] for row in rows_of(tmp_path)] == [text, ""]


def test_values_of_another_type_are_text_in_csv_and_null_in_parquet(tmp_path):
    run = make_run(tmp_path / "runs" / "a", steps=10)
    (run / "config.yaml").write_text(
        "seed: x\nstatus: 5\noptim: {lr: fast, beta1: 1, eps: [1]}\nmodel: {ngf: 64.5, slope: true, new: {a: 1}}\n"
        f"training: {{steps: {10**30}, compile: 3}}\nfinal: {{loss_d: 7}}\n"
    )
    collection = collect([str(tmp_path)])
    write_tables(collection, tmp_path)
    (row,) = rows_of(tmp_path)
    (typed,) = pq.read_table(tmp_path / TRIALS_PARQUET).to_pylist()
    assert (row["seed"], row["optim.lr"], row["optim.eps"], row["model.ngf"]) == ("x", "fast", "[1]", "64.5")
    for name in ("seed", "optim.lr", "optim.eps", "model.ngf", "model.slope", "training.steps", "training.compile"):
        assert typed[name] is None
    assert typed["optim.beta1"] == 1.0
    assert row["model.new.a"] == typed["model.new.a"] == "1"
    # Settings with the names of our columns do not replace them.
    assert (row["status"], row["setting.status"]) == ("finished", "5")
    assert (row["final.loss_d"], row["setting.final.loss_d"]) == ("1.0", "7")


def test_a_collection_without_curves_has_tables(tmp_path):
    write_tables(Collection(trials=(Trial(key="a", name="a", directory="a"),)), tmp_path)
    assert len(rows_of(tmp_path)) == 1
    assert pq.read_table(tmp_path / METRICS_PARQUET).num_rows == 0


def test_a_table_that_cannot_be_written_keeps_the_old_one(collection, tmp_path, monkeypatch):
    write_tables(collection, tmp_path)
    before = (tmp_path / TRIALS_CSV).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv, "writer", full)
    with pytest.raises(StorageError, match="No space left"):
        write_tables(collection, tmp_path)
    assert (tmp_path / TRIALS_CSV).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_the_documentation_names_every_column():
    text = Path(__file__).parents[2].joinpath("docs", "report.md").read_text(encoding="utf-8")
    fixed = [name for name in trial_table(Collection()) if name not in flatten(Config())]
    for name in fixed:
        assert f"`{name}`" in text
    for name in ("final.NAME", "best.NAME", "score.TASK.METRIC", "_low", "_high", "_n", "_step", "_protocol"):
        assert name in text
