"""scores.json: merged by key, replaced atomically."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from moto.server import ThreadedMotoServer

from dcgan_dist.errors import DataError, RunDirectoryError, StorageError
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.scores import add_each
from dcgan_dist.storage.folder import RemoteFolder, folder_at
from tests.conftest import fill


def entry(step, value, method="dcgan", protocol="full"):
    metrics = {"accuracy": {"value": value, "ci95": [value - 1, value + 1], "n": 100}}
    return {"step": step, "method": method, "protocol": protocol, "checkpoint_digest": "d", "metrics": metrics}


def test_a_score_replaces_the_one_of_the_same_step_method_and_protocol_only(tmp_path):
    run = str(tmp_path)
    Run(run).add_scores("cifar10", [entry(200, 50.0), entry(100, 40.0), entry(None, 30.0, "random")])
    Run(run).add_scores("cifar10", [entry(100, 41.0), entry(100, 35.0, protocol="400-per-class")])
    Run(run).add_scores("rooms", [entry(100, 90.0)])
    scores = Run(run).entries()
    found = [(e["step"], e["method"], e["protocol"], e["metrics"]["accuracy"]["value"]) for e in scores["cifar10"]]
    assert found == [
        (None, "random", "full", 30.0),
        (100, "dcgan", "400-per-class", 35.0),
        (100, "dcgan", "full", 41.0),
        (200, "dcgan", "full", 50.0),
    ]
    assert len(scores["rooms"]) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["scores.json"]


def test_what_json_cannot_hold_becomes_null(tmp_path):
    Run(tmp_path).add_scores("rooms", [entry(1, math.nan)])
    text = (tmp_path / "scores.json").read_text()
    assert json.loads(text)["rooms"][0]["metrics"]["accuracy"]["value"] is None
    assert "NaN" not in text


@pytest.mark.parametrize("content", ["{", "[]", '{"rooms": 3}'])
def test_a_damaged_file_is_reported_and_not_changed(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"scores.json is damaged"):
        Run(tmp_path).add_scores("rooms", [entry(1, 2.0)])
    assert (tmp_path / "scores.json").read_text() == content


def test_commands_at_the_same_time_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: Run(tmp_path).add_scores("rooms", [entry(step, 1.0)]), range(30)))
    assert [e["step"] for e in Run(tmp_path).entries()["rooms"]] == list(range(30))


def test_object_storage_holds_scores_too():
    Run("memory://runs/scored").add_scores("rooms", [entry(1, 2.0)])
    Run("memory://runs/scored").add_scores("rooms", [entry(2, 2.0)])
    assert [e["step"] for e in Run("memory://runs/scored").entries()["rooms"]] == [1, 2]


def test_concurrent_commands_lose_nothing_on_object_storage_either(s3_server: ThreadedMotoServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: Run("s3://results/run").add_scores("rooms", [entry(step, 1.0)]), range(12)))
    assert [e["step"] for e in Run("s3://results/run").entries()["rooms"]] == list(range(12))


def test_conditional_write_is_refused_where_another_came_first(s3_server: ThreadedMotoServer) -> None:
    folder = RemoteFolder("s3://results/run")
    assert folder.read_version("a") == (None, None)
    assert folder.swap("a", b"1", None)
    assert not folder.swap("a", b"2", None)
    content, version = folder.read_version("a")
    assert content == b"1"
    assert folder.swap("a", b"3", version)
    assert not folder.swap("a", b"4", version)
    assert folder.get("a") == b"3"
    with pytest.raises(DataError, match="does the bucket exist"):
        RemoteFolder("s3://no-such-bucket/run", patience=0).swap("a", b"1", None)


def test_scores_are_shown_even_if_they_cannot_be_written(small_disk):
    fill(small_disk)
    shown = []
    made = entry(1, 2.0, protocol="p" * 9000)
    with pytest.raises(StorageError, match="No space left"):
        add_each(folder_at(small_disk), "rooms", [made], [], shown.append, print)
    assert shown == [[made]]
    assert Run(small_disk).entries() == {}
