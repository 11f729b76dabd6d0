"""The commands `sample` and `export`: their files, their output, and their refusals in one line."""

import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.export import main as export
from dcgan_dist.sample import main as sample
from dcgan_dist.train import main as train
from tests.conftest import environment
from tests.generation.conftest import trained

__all__ = ["trained"]


def status(capsys, command, *words):
    code = command([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_label_draws_the_given_number_of_samples(trained, tmp_path, capsys):
    run, output = trained("cgan"), tmp_path / "right.png"
    code, out, err = status(capsys, sample, "--run", run, "--label", 1, "--count", 25, "--output", output)
    assert (code, err) == (0, "")
    assert f"{output}: 25 images of 16x16, 'right', from step 3 of {run}, made in " in out
    assert Image.open(output).size == (5 * 18 - 2, 5 * 18 - 2)


def test_shards_of_samples_can_be_sampled_in_processes_and_trained_on(trained, tmp_path, capsys):
    words = ("--run", trained("cgan"), "--count", 600, "--workers", 2, "--output", tmp_path / "set" / "fake.tar")
    code, _, err = status(capsys, sample, *words)
    assert code == 0, err
    dataset = open_dataset(str(tmp_path / "set"), image_size=16)
    assert (dataset.count, dataset.classes) == (600, ("left", "right"))
    assert np.bincount(dataset.labels()).tolist() == [300, 300]


def test_all_rows_of_a_file_of_z_are_used_by_default(trained, tmp_path, capsys):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).standard_normal((70, 8)))
    for count, words in ((70, ()), (5, ("--count", 5))):
        output = tmp_path / f"{count}.npz"
        code, _, err = status(
            capsys, sample, "--run", trained("gan"), "--z", tmp_path / "z.npy", "--output", output, *words
        )
        assert (code, err) == (0, "")
        assert np.load(output)["images"].shape == (count, 16, 16, 3)


def as_an_earlier_version_wrote_it(run, folder):
    """Copy a run that samples with the statistics of each batch, with the config.yaml of an earlier version."""
    shutil.copytree(run, folder)
    text = (folder / "config.yaml").read_text()
    assert "  sample_statistics: batch\n" in text
    (folder / "config.yaml").write_text(text.replace("sample_statistics: batch", "sample_statistics: released"))
    return folder


def test_a_run_of_an_earlier_version_is_sampled_and_resumes_without_warnings(trained, tmp_path, capsys):
    run = trained("dcgan", "batch")
    earlier = as_an_earlier_version_wrote_it(run, tmp_path / "run")
    for place, name in ((run, "a.npz"), (earlier, "b.npz")):
        assert status(capsys, sample, place, "--count", 9, "--output", tmp_path / name)[::2] == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["images"], np.load(tmp_path / "b.npz")["images"])
    settings = ("--config", earlier / "config.yaml", "--run-dir", earlier, "--training.steps", 5)
    code, out, err = status(capsys, train, *settings)
    assert (code, err) == (0, "")
    assert "step 5/5" in out
    assert "  sample_statistics: batch\n" in (earlier / "config.yaml").read_text()


def test_export_prints_how_close_the_program_is_to_the_original(trained, tmp_path, capsys):
    output = tmp_path / "g.pt2"
    code, out, err = status(capsys, export, "--run", trained("gan"), "--output", output)
    assert (code, err) == (0, "")
    assert "from z to images; run by torch.export, they differ from the original's by at most" in out
    assert output.stat().st_size > 0
    code, _, err = status(capsys, export, "--run", trained("gan"), "--output", output)
    assert code == 2
    assert "exists: name another one, or give --overwrite" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output=HERE/x.png"], "run is missing: give RUN or --run RUN"),
        (["--run=CGAN"], "output is missing: give --output"),
        (
            ["--run=CGAN", "--output=HERE/x.png", "--label=2"],
            "label is '2', but CGAN has 2 classes: take one of 0 left, 1",
        ),
        (["--run=CGAN", "--output=HERE/x.png", "--label=-1"], "label is '-1'"),
        (["--run=CGAN", "--output=HERE/x.png", "--label=up"], "label is 'up'"),
        (["--run=GAN", "--output=HERE/x.png", "--label=1"], "label is '1', but GAN is an unconditional run (gan)"),
        (["--run=GAN", "--output=HERE/x.png", "--z=HERE/z.npy"], "an array of shape (3, 5): the run takes (n, 8)"),
        (["--run=GAN", "--output=HERE/x.png", "--z=HERE/none.npy"], "which cannot be read"),
        (["--run=GAN", "--output=HERE/x.png", "--z=HERE/good.npy", "--count=4"], "z 'HERE/good.npy' has 3 rows"),
        (["--run=GAN", "--output=HERE/x.png", "--z=HERE/good.npy", "--truncation=1"], "give one of them"),
        (["--run=GAN", "--output=HERE/there.png"], "output 'HERE/there.png' exists: name another one"),
        (["--run=GAN", "--output=HERE/x.png", "--format=npz"], "format is 'npz'"),
        (["--run=GAN", "--output=HERE/x.png", "--step=9"], "no whole checkpoint of step 9"),
        (["--run=GAN", "--output=HERE/x.png", "--step=all"], "step is 'all'"),
        (["--run=GAN", "--output=HERE/x.png", "--truncation=0"], "truncation is 0.0"),
        (["--run=GAN", "--output=HERE/x.png", "--truncation=2"], "since z is uniform"),
        (["--run=GAN", "--output=HERE/x.png", "--count=0"], "count is 0"),
        (["--run=HERE/none", "--output=HERE/x.png"], "HERE/none is no run directory"),
        (["--run=GAN", "--output=/proc/none/x.png"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_written(trained, tmp_path, capsys, words, message):
    np.save(tmp_path / "z.npy", np.zeros((3, 5), np.float32))
    np.save(tmp_path / "good.npy", np.zeros((3, 8), np.float32))
    (tmp_path / "there.png").write_text("mine")
    before = sorted(tmp_path.iterdir())
    places = {"HERE": str(tmp_path), "CGAN": str(trained("cgan")), "GAN": str(trained("gan"))}

    def placed(text: str) -> str:
        return re.sub("HERE|CGAN|GAN", lambda found: places[found[0]], text)

    code, _, err = status(capsys, sample, *map(placed, words))
    assert code == 2, err
    assert err.startswith("dcgan-dist sample: ")
    assert err.count("\n") == 1
    assert placed(message) in err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.png").read_text() == "mine"


def test_a_label_for_training_data_without_labels_is_refused_before_the_run_begins(tmp_path, capsys):
    from dcgan_dist.prepare import main as prepare
    from dcgan_dist.train import main as train

    (tmp_path / "images").mkdir()
    for number in range(16):
        Image.new("L", (16, 16), number).save(tmp_path / "images" / f"{number}.png")
    words = ("--source=folder", "--image-size=16", "--input", tmp_path / "images", "--output", tmp_path / "shards")
    assert status(capsys, prepare, *words)[0] == 0
    words = ("--data.path", tmp_path / "shards", "--training.batch-size=4", "--run-dir", tmp_path / "run")
    code, _, err = status(capsys, train, "--model.name=cgan", *words)
    assert code == 2
    assert "model.name is 'cgan', but " in err
    assert "has no labels: take dcgan or gan" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    words = ("--data.path=rooms:64", "--model.image_size=16", "--training.batch-size=4", "--run-dir", tmp_path / "run")
    code, _, err = status(capsys, train, "--model.name=cgan", "--model.classes=10", *words)
    assert (code, "model.classes is 10, but rooms:64 has 2 classes" in err) == (2, True), err


def test_a_signal_ends_sampling_with_its_status_and_leaves_nothing(trained, tmp_path):
    words = ["--run", trained("dcgan"), "--count", 2_000_000, "--workers", 1, "--output", tmp_path / "out" / "x.npz"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dcgan_dist.sample", *map(str, words)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "ended by a signal" in err
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
