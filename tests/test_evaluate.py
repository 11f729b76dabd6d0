"""The evaluate command on a real tiny run."""

import json
import os
import pickle
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import load_file, save_file

from dcgan_dist import evaluate, explore, export, report, sample
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.images import encode
from dcgan_dist.data.sources import CIFAR10_CLASSES
from dcgan_dist.evaluate import main
from dcgan_dist.evaluation.feature_files import RawPixels
from dcgan_dist.evaluation.features import DiscriminatorFeatures, load_discriminator
from dcgan_dist.evaluation.scoring import Evaluation
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.parallel import LocalPool
from dcgan_dist.prepare import main as prepare
from dcgan_dist.runs.checkpoints import read_checkpoint, write_checkpoint
from dcgan_dist.runs.run import Run
from tests.conftest import train
from tests.results.made_collections import make_run

FAST = ("--task=folder", "--data=rooms:400", "--cs=1e-3,1e-2", "--draws=3", "--choosing-draws=2", "--device=cpu")


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run(1), tmp_path / "run")
    return tmp_path / "run"


def status(capsys, *arguments):
    code = main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    # On a slow machine, progress lines are printed.
    return code, out, "".join(line for line in err.splitlines(keepends=True) if not re.search(r"%, [\d,]+/s", line))


def entries(run, task="folder"):
    return json.loads((run / "scores.json").read_text())[task]


def test_every_checkpoint_is_scored_and_the_controls_too(run, capsys):
    code, out, err = status(capsys, "--run", run, *FAST, "--step=all", "--baselines=random,pixels,knn")
    assert (code, err) == (0, "")
    found = entries(run)
    assert [(entry["step"], entry["method"]) for entry in found] == [
        (None, "knn"),
        (None, "pixels"),
        (None, "random"),
        (16, "dcgan"),
        (20, "dcgan"),
        (24, "dcgan"),
    ]
    digests = {entry["checkpoint_digest"] for entry in found[3:]}
    for step, entry in zip((16, 20, 24), found[3:], strict=True):
        state = json.loads((run / f"checkpoints/step-{step:08d}/state.json").read_text())
        assert entry["checkpoint_digest"] == state["digest"]
        accuracy = entry["metrics"]["accuracy"]
        low, high = accuracy["ci95"]
        assert low < accuracy["value"] < high
        assert accuracy["n"] == entry["split"]["test"] == 80
        assert entry["C"] in (1e-3, 1e-2)
        assert entry["seconds"] > 0
        assert entry["device"].startswith("cpu")
    assert len(digests) == 3
    assert all(entry["split"] == found[0]["split"] for entry in found)
    pixels = found[1]["metrics"]["accuracy"]
    assert pixels["value"] > 90, "the view of a room is easy to predict from its pixels"
    assert re.search(r"knn .* k \d", out)


def test_the_same_command_gives_the_same_scores_from_cached_features(run, capsys):
    assert status(capsys, "--run", run, *FAST)[0] == 0
    first = entries(run)
    assert status(capsys, "--run", run, *FAST)[0] == 0
    (again,) = entries(run)
    assert again["metrics"] == first[0]["metrics"]
    assert status(capsys, "--run", run, *FAST, "--seed=1", "--statistics=measured", "--precision=bf16")[0] == 0
    assert [entry["protocol"] for entry in entries(run)] == ["full", "full/measured/bf16/seed-1"]


def test_all_steps_continues_where_an_earlier_command_ended(run, capsys):
    words = ("--run", run, *FAST, "--step=all", "--baselines=random")
    assert status(capsys, *words)[0] == 0
    first = entries(run)
    code, out, err = status(capsys, *words)
    assert (code, err) == (0, "")
    assert "scored before, from the same data and settings: step 16, step 20, step 24, random (" in out
    assert entries(run) == first, "even the seconds"
    scores = {"folder": [entry for entry in first if entry["step"] != 20], "other": []}
    (run / "scores.json").write_text(json.dumps(scores))
    assert "settings: step 16, step 24, random (" in status(capsys, *words)[1]
    again = entries(run)
    assert [entry["metrics"] for entry in again] == [entry["metrics"] for entry in first]
    assert [before["seconds"] == after["seconds"] for before, after in zip(first, again, strict=True)].count(False) <= 1
    for change in ("--cs=1e-2", "--data=rooms:300", "--test=100"):
        assert "scored before" not in status(capsys, *words, change)[1]


def test_scores_of_an_earlier_version_are_not_computed_again(run, capsys):
    words = (run, *FAST, "--step=all", "--baselines=random", "--count=300")
    assert status(capsys, *words)[0] == 0
    scores = json.loads((run / "scores.json").read_text())
    for entry in scores["folder"]:
        assert entry["settings"]["cs"] == [1e-3, 1e-2]
        entry["settings"] |= {"cs": "1e-3,1e-2", "images": entry["settings"].pop("count")}
    (run / "scores.json").write_text(json.dumps(scores))
    code, out, err = status(capsys, *words)
    assert (code, err) == (0, "")
    assert "scored before, from the same data and settings: step 16, step 20, step 24, random (" in out


def test_no_more_images_are_used_than_asked_for(run, capsys, monkeypatch):
    seen = []
    extract = DiscriminatorFeatures.__call__

    def counting(extractor, images):
        seen.append(len(images))
        return extract(extractor, images)

    monkeypatch.setattr(DiscriminatorFeatures, "__call__", counting)
    sets = ("--data=rooms:410", "--test-data=rooms:150")  # not used by other tests, because features are cached
    words = ("--run", run, *FAST, *sets, "--baselines=kmeans", "--centroids=20", "--patches=500")
    assert status(capsys, *words, "--count=90")[0] == 0
    assert sum(seen) == 90 + 90, "of the data, and of the test set"
    fewer = entries(run)
    assert {entry["protocol"] for entry in fewer} == {"full/90-images"}
    assert {entry["features"] for entry in fewer if entry["method"] == "kmeans-20"} == {80}
    split = fewer[0]["split"]
    assert (split["train"] + split["validation"], split["test"]) == (90, 90)
    assert status(capsys, *words, "--count=90", "--keep-features=false")[0] == 0
    assert sum(seen) == 180, "the same ones again"
    assert [entry["metrics"] for entry in entries(run)] == [entry["metrics"] for entry in fewer]
    assert status(capsys, *words, "--count=100000")[0] == 0
    assert sum(seen) == 180 + 410 + 150
    whole = [entry["metrics"] for entry in entries(run) if entry["protocol"] == "full/100000-images"]
    assert status(capsys, *words)[0] == 0
    assert whole == [entry["metrics"] for entry in entries(run) if entry["protocol"] == "full"]


def test_the_images_used_are_spread_over_the_whole_data_set(run):
    config = EvaluateConfig(task="folder", data="rooms:400", count=200, device="cpu")
    model = load_discriminator(Run(run), 24).model
    evaluation = Evaluation(config, model, torch.device("cpu"), LocalPool(1))
    values, _ = evaluation.values(RawPixels(model.image_size, model.channels))
    everything = Evaluation(replace(config, count=None), model, torch.device("cpu"), LocalPool(1))
    rows, _ = everything.values(RawPixels(model.image_size, model.channels))
    number_of = {row.tobytes(): number for number, row in enumerate(rows)}
    numbers = np.array([number_of[row.tobytes()] for row in values])
    assert (np.diff(numbers) > 0).all()
    assert all(30 < count < 70 for count in np.histogram(numbers, 4, (0, 400))[0])
    labels = everything.targets[0].partition.labels
    np.testing.assert_array_equal(evaluation.targets[0].partition.labels, labels[numbers])


def test_few_labels_are_drawn_many_times(run, capsys):
    code, _, _ = status(capsys, "--run", run, *FAST, "--labels-per-class=20")
    assert code == 0
    (entry,) = entries(run)
    accuracy = entry["metrics"]["accuracy"]
    assert (entry["protocol"], accuracy["draws"]) == ("20-per-class", 3)
    assert accuracy["ci95"][1] - accuracy["value"] == pytest.approx(1.96 * accuracy["sigma"])


def test_svhn_takes_a_thousand_labels_and_shows_the_published_errors_as_accuracies(run, tmp_path, capsys):
    random = np.random.default_rng(0)
    for digit in range(2):
        (tmp_path / "digits" / str(digit)).mkdir(parents=True)
        for number in range(150):
            image = random.integers(0, 60, (16, 16, 3), dtype=np.uint8) + np.uint8(90 * digit)
            (tmp_path / "digits" / str(digit) / f"{number}.png").write_bytes(encode(image, "png"))
    words = ("--run", run, "--task=svhn", "--data", tmp_path / "digits", "--draws=3", "--choosing-draws=2")
    code, out, err = status(capsys, *words, "--validation=20", "--test=30")
    assert (code, err) == (0, "")
    (entry,) = entries(run, "svhn")
    assert entry["protocol"] == "100-per-class"
    assert "published: DCGAN + L2-SVM" in out
    assert "77.52" in out


def make_digits(path, count, seed):
    """Write digits in the format of SVHN: the position of a bright bar is the digit, 10 for 0."""
    random = np.random.default_rng(seed)
    digits = random.integers(0, 10, count)
    images = random.integers(0, 90, (32, 32, 3, count), dtype=np.uint8)
    for number, digit in enumerate(digits):
        images[:, 3 * digit : 3 * digit + 3, :, number] += 120
    scipy.io.savemat(path, {"X": images, "y": np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]})


def test_svhn_is_read_as_distributed_and_as_shards_with_the_same_score(run, tmp_path, capsys):
    folder = tmp_path / "svhn"
    folder.mkdir()
    make_digits(folder / "train_32x32.mat", 400, 0)
    make_digits(folder / "test_32x32.mat", 100, 1)
    for split in ("train", "test"):
        words = ("--source=svhn", "--input", folder, "--split", split, "--image-size=16", "--encoding=raw")
        assert prepare([str(word) for word in (*words, "--output", tmp_path / split)]) == 0
    forms = [
        (folder, folder),
        (folder / "train_32x32.mat", folder / "test_32x32.mat"),
        (tmp_path / "train", tmp_path / "test"),
    ]
    common = (
        "--run",
        run,
        "--task=svhn",
        "--labels-per-class=15",
        "--draws=2",
        "--choosing-draws=2",
        "--validation=60",
    )
    scores = []
    for data, test_data in forms:
        code, _, err = status(capsys, *common, "--cs=1e-2", "--data", data, "--test-data", test_data)
        assert (code, err) == (0, "")
        (entry,) = entries(run, "svhn")
        assert (entry["split"]["validation"], entry["split"]["test"]) == (60, 100)
        scores.append(entry["metrics"]["accuracy"])
    assert scores[0] == scores[1]
    # Shards have the same images in another order, so other labels are drawn.
    assert scores[2]["value"] == pytest.approx(scores[0]["value"], abs=15)
    assert scores[0]["value"] > 50


def test_cifar10_is_read_as_batches_folders_and_shards(run, tmp_path, capsys):
    random = np.random.default_rng(0)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name, count in (*((f"data_batch_{number}", 60) for number in range(1, 6)), ("test_batch", 50)):
        labels = random.integers(0, 10, count)
        rows = (random.integers(0, 60, (count, 3072)) + 15 * labels[:, None]).astype(np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
        for label, row in zip(labels, rows, strict=True):
            place = tmp_path / "folders" / ("test" if name == "test_batch" else "train") / CIFAR10_CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            image = np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))
            (place / f"{len(list(place.iterdir())):04d}.png").write_bytes(encode(image, "png"))
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path / "folders")
    words = ("--source=cifar10", "--input", batches, "--image-size=32", "--encoding=png")
    assert prepare([str(word) for word in (*words, "--output", tmp_path / "shards")]) == 0
    for data, test_data in ((batches, batches), (tmp_path / "folders", archive), (tmp_path / "shards", batches)):
        words = ("--run", run, "--task=cifar10", "--data", data, "--test-data", test_data, "--cs=1e-3")
        code, out, err = status(capsys, *words)
        assert (code, err) == (0, "")
        (entry,) = entries(run, "cifar10")
        assert {name: entry["split"][name] for name in ("train", "validation", "test")} == {
            "train": 270,
            "validation": 30,
            "test": 50,
        }
        assert entry["metrics"]["accuracy"]["value"] > 20, "chance is 10"
        assert "published: DCGAN + L2-SVM" in out


def test_rooms_are_scored_by_attribute(run, capsys):
    code, out, err = status(capsys, "--run", run, "--data=rooms:400", "--cs=1e-3", "--device=cpu")
    assert (code, err) == (0, "")
    (entry,) = entries(run, "rooms")
    metrics = entry["metrics"]
    assert set(metrics) == {
        *("accuracy", "window", "bed_colour", "lamp_on", "view"),
        *("wall_hue", "night", "rug", "picture"),
    }
    attributes = [about["value"] for name, about in metrics.items() if name != "accuracy"]
    assert metrics["accuracy"]["value"] == pytest.approx(np.mean(attributes))
    assert "night" in out


def test_a_conditional_generator_is_scored_by_the_classifier_that_its_samples_train(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dcgan_dist.evaluate.usable_cores", lambda: 1)  # several: `evaluation/test_one_nn.py`
    run = tmp_path / "run"
    made = train({"run_dir": run, "model.name": "cdcgan", "model.image_size": 28, "training.steps": 4})
    assert made.returncode == 0, made.stderr
    words = ("--run", run, "--task=one-nn", "--data=rooms:400", "--count=1200", "--data-count=300", "--device=cpu")
    code, out, err = status(capsys, *words)
    assert (code, err) == (0, "")
    of = {entry["method"]: entry for entry in entries(run, "one-nn")}
    generated, real, then_moved = of["cdcgan"], of["real images"], of["real images, then moved"]
    assert generated["step"] == 4
    assert generated["protocol"].startswith("1-nn/1200-images/test-")
    assert real["protocol"].startswith("1-nn/300-images/test-")
    assert list(generated["metrics"]) == ["error_at_1000", "accuracy", "error", "error_at_1200"]
    assert real["metrics"]["accuracy"]["value"] > 70
    assert then_moved["metrics"]["error_at_300"] == real["metrics"]["error"]
    for entry in (generated, real, then_moved):
        assert entry["metrics"]["accuracy"]["value"] + entry["metrics"]["error"]["value"] == pytest.approx(100)
        assert entry["metrics"]["error"]["n"] == 300
    assert "published, MNIST: DCGAN" in out
    assert "10,000,000" in out


def break_weights(run, broken):
    """Copy a run with a NaN in the second conv layer of the newest discriminator, with valid digests."""
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("checkpoints"))
    found = read_checkpoint(run / "checkpoints/step-00000024")
    tensors = load_file(found.path / "discriminator.safetensors")
    tensors["layers.1.conv.weight"][0, 0, 0, 0] = float("nan")
    state = {key: value for key, value in found.state.items() if key not in ("step", "files", "digest")}

    def write(folder):
        save_file(tensors, folder / "discriminator.safetensors")

    write_checkpoint(broken / "checkpoints", 24, write, state)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=folder", "--data=rooms:400"], "run is missing"),
        (["--run=HERE/none", "--task=folder", "--data=rooms:400"], "is no run directory"),
        (["--run=HERE/run", "--task=folder"], "data is missing: give --data PATH"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/none"], "HERE/none' does not exist"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--step=3"], "no whole checkpoint of step 3"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--step=last"], "step is 'last'"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--labels-per-class=300"], "fewer than labels_per"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--cs=0"], "cs is '0'"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--baselines=svm"], "baselines is 'svm'"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--pooling=released"], "this one has 2: take paper"),
        (["--run=HERE/run", "--task=flowers"], "task is 'flowers'"),
        (["--run=HERE/run", "--task=rooms", "--data=HERE/pictures"], "holds no procedural rooms"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/pictures"], "has no labels"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/one"], "HERE/one' has one class (cat)"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/one.zip"], "HERE/one.zip' has one class (cat)"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/one-shards"], "HERE/one-shards' has one class (cat)"),
        (["--run=HERE/run", "--task=cifar10", "--data=HERE/one"], "HERE/one' has one class (cat)"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--test-data=HERE/one"], "one' has one class (cat)"),
        (
            ["--run=HERE/run", "--task=folder", "--data=HERE/few", "--test=10", "--validation=10"],
            "has one class among the 1 images to train on",
        ),
        (
            ["--run=HERE/run", "--task=folder", "--data=HERE/two", "--test-data=HERE/three"],
            "has other classes than data",
        ),
        (["--run=HERE/run", "--task=folder", "--data=HERE/empty"], "is an empty folder"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/cut.tar.gz"], "cut.tar.gz"),
        (["--run=HERE/run", "--task=folder", "--data=HERE/shards"], "is damaged: it has"),
        (["--run=HERE/run", "--task=svhn", "--data=HERE/val_32x32.mat"], "name it train_32x32.mat, test_32x32.mat"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--count=0"], "count is 0"),
        (["--run=HERE/run", "--task=folder", "--data=rooms:400", "--count=1"], "with --count 1 has 1 labelled"),
        (["--run=HERE/nan", "--task=folder", "--data=rooms:400"], "step 24 are NaN from layer 2 of 2 on"),
        (["--run=HERE/bare", "--task=folder", "--data=rooms:400"], "HERE/bare has no checkpoint yet"),
        (["--run=HERE/grey", "--task=folder", "--data=rooms:400"], "trained on grey images"),
    ],
)
def test_bad_input_is_one_line_status_2_and_no_score(run, tmp_path, capsys, words, message):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        image = encode(np.full((9, 9, 3), number, np.uint8), "png")
        (tmp_path / "pictures" / f"{number}.png").write_bytes(image)
    (tmp_path / "empty").mkdir()
    for name, classes in {
        "one": ["cat"],
        "few": ["cat"],
        "two": ["cat", "dog"],
        "three": ["cat", "dog", "eel"],
    }.items():
        for folder in classes:
            shutil.copytree(tmp_path / "pictures", tmp_path / name / folder)
    for number in range(17):
        shutil.copy(tmp_path / "pictures" / "0.png", tmp_path / "few" / "cat" / f"more-{number}.png")
    shutil.copytree(tmp_path / "one" / "cat", tmp_path / "few" / "dog", ignore=shutil.ignore_patterns("[12].png"))
    shutil.make_archive(str(tmp_path / "one"), "zip", tmp_path / "one")
    if "HERE/one-shards" in words[-1]:
        made_of = ["--source=folder", f"--input={tmp_path / 'one'}", f"--output={tmp_path / 'one-shards'}"]
        assert prepare([*made_of, "--image-size=16", "--workers=1"]) == 0
    whole = shutil.make_archive(str(tmp_path / "cut"), "gztar", tmp_path / "pictures")
    with open(whole, "r+b") as file:
        file.truncate(150)
    if "HERE/shards" in words[-1]:
        shutil.copytree(open_dataset("rooms:400", image_size=16).cache, tmp_path / "shards")
        tar = next((tmp_path / "shards").glob("*.tar"))
        os.truncate(tar, tar.stat().st_size // 2)
    if "HERE/bare" in words[0]:
        (tmp_path / "bare").mkdir()
        shutil.copy(run / "config.yaml", tmp_path / "bare")
    if "HERE/nan" in words[0]:
        break_weights(run, tmp_path / "nan")
    if "HERE/grey" in words[0]:
        made = train({"run_dir": tmp_path / "grey", "model.channels": 1, "training.steps": 4})
        assert made.returncode == 0 or "colour" in made.stderr
        if made.returncode:
            pytest.skip("no grey rooms")
    code, _, err = status(capsys, *(word.replace("HERE", str(tmp_path)) for word in words))
    assert code == 2, err
    assert err.startswith("dcgan-dist evaluate: ")
    assert err.count("\n") == 1
    assert message.replace("HERE", str(tmp_path)) in err
    assert not list(tmp_path.rglob("scores.json"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(small_disk, capsys):
    run = str(make_run(small_disk / "run", steps=10))  # no checkpoint: loading fails otherwise
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command, words in (
        (evaluate, ["--task", "rooms", "--run", run]),
        (explore, ["walk", "--run", run]),
        (export, ["--run", run, "--output", f"{run}/generator.pt2"]),
        (sample, ["--run", run, "--output", f"{run}/samples.npz"]),
        (report, [run, "--output", f"{run}/report.html"]),
    ):
        assert command.main(words) == 2
        assert re.fullmatch(r"dcgan-dist \w+: .*cannot be written: Read-only file system.*\n", capsys.readouterr().err)
