"""Fidelity and memorisation of a real tiny run, and the scores that need Inception."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from dcgan_dist.config import ModelConfig
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.images import fit
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.errors import ConfigError, RunDirectoryError
from dcgan_dist.evaluate import main
from dcgan_dist.evaluation.diversity import Rows, judge_copies, nearest_distances
from dcgan_dist.evaluation.extractor import RandomConv
from dcgan_dist.evaluation.feature_files import FeatureFiles, RawPixels
from dcgan_dist.evaluation.generated import sample_batches
from dcgan_dist.evaluation.inception import check_weights, inception_score, kernel_distances
from dcgan_dist.models import build_networks, initialise
from dcgan_dist.parallel import LocalPool

CPU = torch.device("cpu")


@pytest.fixture
def run(finished_run, tmp_path):
    shutil.copytree(finished_run(1), tmp_path / "run")
    return tmp_path / "run"


def status(capsys, *arguments):
    code = main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def entries(run, task):
    return json.loads((run / "scores.json").read_text())[task]


def test_samples_are_compared_with_training_images_and_real_images_are_the_control(run, capsys):
    words = ("--run", run, "--task=fidelity", "--count=100", "--device=cpu")
    code, out, err = status(capsys, *words)
    assert (code, err) == (0, "")
    real, generated = entries(run, "fidelity")
    assert (real["method"], real["step"], generated["step"]) == ("real images", None, 24)
    state = json.loads((run / "checkpoints/step-00000024/state.json").read_text())
    assert generated["checkpoint_digest"] == state["digest"]
    assert generated["protocol"] == real["protocol"] == "random-conv-v1/100-images"
    for entry in (real, generated):
        assert set(entry["metrics"]) == {
            *("precision", "recall", "density", "coverage", "sample_distance", "distance_ratio")
        }
        for metric in entry["metrics"].values():
            assert metric["n"] == 100
            assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    for name in ("recall", "coverage"):
        assert generated["metrics"][name]["ci95"][1] < real["metrics"][name]["value"], "24 steps of training"
    assert "the Fréchet distance is left out" in out
    assert "random-conv-v1/100-images" in out
    assert status(capsys, *words)[0] == 0
    assert [entry["metrics"] for entry in entries(run, "fidelity")] == [real["metrics"], generated["metrics"]]


def test_all_checkpoints_are_scored_but_none_twice(run, capsys):
    words = ("--run", run, "--task=fidelity", "--count=100", "--device=cpu", "--step=all")
    assert status(capsys, *words)[0] == 0
    first = entries(run, "fidelity")
    assert [entry["step"] for entry in first] == [None, 16, 20, 24]
    code, out, _ = status(capsys, *words)
    assert code == 0
    assert "scored before, from the same data and settings: step 16, step 20, step 24" in out
    assert entries(run, "fidelity") == first


def test_memorisation_compares_distances_to_training_images_with_those_of_other_rooms(run, capsys):
    code, out, _ = status(capsys, "--run", run, "--task=memorisation", "--count=120", "--device=cpu")
    assert code == 0
    (entry,) = entries(run, "memorisation")
    assert set(entry["metrics"]) == {
        f"{space}_{name}" for space in ("pixel", "feature") for name in ("auc", "distance_ratio", "near_copies")
    }
    assert entry["metrics"]["feature_distance_ratio"]["ci95"][0] > 1, "24 steps of training are no copies"
    assert "0.5; 1 if all are copies" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=fidelity", "--count=20"], "count is 20: the task fidelity needs at least 100"),
        (["--task=fidelity", "--count=300"], "has 256 images, fewer than count (300)"),
        (["--task=fidelity", "--count=0"], "count is 0"),
        (["--task=fidelity", "--extractor=inception"], "give --inception-weights PATH of weights-inception-2015-12-05"),
        (["--task=fidelity", "--extractor=vgg"], "extractor is 'vgg'"),
        (["--task=memorisation", "--test-data=rooms:300"], "holds images of data 'rooms:256': take others"),
        (["--task=memorisation", "--data=HERE/run/none"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_status_2_and_no_score(run, tmp_path, capsys, words, message):
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    code, _, err = status(capsys, "--run", run, "--device=cpu", *words)
    assert code == 2, err
    assert err.startswith("dcgan-dist evaluate: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (run / "scores.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_without_the_package_the_message_says_how_to_install_it(run, capsys):
    words = ("--task=fidelity", "--extractor=inception", "--inception-weights=weights.pth")
    code, _, err = status(capsys, "--run", run, *words)
    assert code == 2
    assert "pip install 'dcgan-dist[inception]', or take random-conv-v1" in err
    assert err.count("\n") == 1


def test_missing_or_wrong_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        check_weights(str(tmp_path / "weights.pth"))
    (tmp_path / "weights.pth").write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"begins with .{8}, not 6726825d"):
        check_weights(str(tmp_path / "weights.pth"))


def test_the_kernel_distance_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 5)), random.normal(0.4, 1, size=(44, 5))

    def brute(x, y):
        of_x, of_y, between = ((a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        n, m = len(x), len(y)
        same = of_x[~np.eye(n, dtype=bool)].sum() / (n * (n - 1)) + of_y[~np.eye(m, dtype=bool)].sum() / (m * (m - 1))
        return same - 2 * between.mean()

    real = Rows(x, CPU)
    values = kernel_distances(real, Rows(y, CPU, real.centre))
    assert values[-1] == pytest.approx(brute(x, y))
    assert values[0] == pytest.approx(brute(x[3:], y[2:]))


def test_the_inception_score_is_the_number_of_distinguished_classes():
    sure = 100 * torch.nn.functional.one_hot(torch.arange(1000) % 7, 20).float()
    assert inception_score(sure).value == pytest.approx(7, rel=0.01)
    assert inception_score(torch.zeros(100, 20)).value == pytest.approx(1)
    random = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    parts = []
    for part in random.double().numpy().reshape(10, 50, 20):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        parts.append(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    found = inception_score(random)
    assert found.value == pytest.approx(np.mean(parts))
    assert found.ci95[0] < found.value < found.ci95[1]


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_a_sample_depends_on_the_seed_and_its_number_alone(statistics):
    model = ModelConfig(image_size=16, channels=3, classes=0, ngf=4, z_dim=8, sample_statistics=statistics)
    generator = build_networks(model)[0]
    initialise(generator, model, 0)
    few, many, other = (
        np.concatenate(list(sample_batches(generator.eval(), model, count, seed, CPU)))
        for count, seed in ((260, 0), (500, 0), (260, 1))
    )
    assert few.shape == (260, 16, 16, 3)
    np.testing.assert_array_equal(few, many[:260])
    assert not np.array_equal(few, other)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    model = ModelConfig(image_size=16, channels=3, classes=0, ngf=4, z_dim=8)
    generator = build_networks(model)[0]
    with torch.no_grad():
        next(generator.parameters()).fill_(torch.nan)
    with pytest.raises(RunDirectoryError, match="not finite"):
        next(sample_batches(generator.eval(), model, 10, 0, CPU))


def test_chosen_rows_equal_those_of_all_rows_and_have_an_entry_of_their_own(tmp_path):
    dataset = open_dataset("rooms:2300", image_size=16)
    assert len(dataset.sizes) > 1
    files = FeatureFiles(tmp_path)
    every = files.get(RawPixels(16, 3), dataset, LocalPool(1))
    chosen = np.sort(np.random.default_rng(0).permutation(2300)[:700])
    made = files.made_images
    rows = files.get(RawPixels(16, 3), dataset, LocalPool(1), chosen=chosen)
    np.testing.assert_array_equal(rows, every[chosen])
    assert files.made_images == made + 700


def test_copies_of_rooms_are_distinguished_from_new_rooms_in_pixels_and_in_features():
    rooms = np.stack([fit(draw_room(0, number)[0], 32, 3) for number in range(260)])
    training, held_out, new = rooms[:140], rooms[140:200], rooms[200:]
    noise = np.random.default_rng(0).normal(0, 3, training[:60].shape)
    copies = (training[:60] + noise).round().clip(0, 255).astype(np.uint8)
    for extract in (RawPixels(32, 3), RandomConv()):
        among = extract(training)
        far, new_ones, copied = (nearest_distances(extract(x), among, CPU) for x in (held_out, new, copies))
        metrics = judge_copies(copied, far, 0)
        assert metrics["auc"].value > 0.99
        assert metrics["near_copies"].value > 0.9
        assert judge_copies(new_ones, far, 0)["auc"].ci95[0] < 0.5 < judge_copies(new_ones, far, 0)["auc"].ci95[1]
