"""The forms of written samples: the same images in all, and only complete outputs."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dcgan_dist import sample
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import read_records
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.generation import writing
from dcgan_dist.generation.samples import BLOCK, Samples, open_samples
from dcgan_dist.generation.writing import Output, in_class_rows, output_of, refuse_existing, write_samples
from dcgan_dist.parallel import LocalPool
from dcgan_dist.runs.run import Run


def write(samples, count, path, *, form=None, workers=1, **options):
    reports = []
    output = output_of(str(path), form)
    write_samples(samples, count, output, pool=LocalPool(workers), report=lambda *told: reports.append(told), **options)
    return reports


def images(samples: Samples, count: int) -> np.ndarray:
    return np.concatenate([part for part, _ in samples.images(0, count)])


@pytest.mark.parametrize(
    ("path", "form", "expected"),
    [
        ("a/b.png", None, Output("grid", "a/b.png")),
        ("a/B.NPZ", None, Output("npz", "a/B.NPZ")),
        ("a/b", None, Output("folder", "a/b")),
        ("a/b/", None, Output("folder", "a/b/")),
        ("a/b", "shards", Output("shards", "a/b")),
        ("s3://bucket/set", "shards", Output("shards", "s3://bucket/set")),
        ("a/fake-%06d.tar", None, Output("shards", "a", "fake")),
        ("a/fake.tar", None, Output("shards", "a", "fake")),
        ("fours/%06d.tar", None, Output("shards", "fours", "samples")),
        ("a/x.v2/", None, Output("folder", "a/x.v2/")),
        ("100%/50%.png", None, Output("grid", "100%/50%.png")),
        ("/fake-000000.tar", "shards", Output("shards", "/", "fake")),
        ("fakes.tar", None, Output("shards", ".", "fakes")),
        ("s3://bucket/grid.png", None, Output("grid", "s3://bucket/grid.png")),
    ],
)
def test_the_path_determines_the_form_of_the_output(path, form, expected):
    assert output_of(path, form) == expected


@pytest.mark.parametrize(
    ("path", "form", "message"),
    [
        *(
            (path, None, f"output is {path!r}: name FILE.png for a grid, FILE.npz for arrays, DIR/NAME-%06d.tar")
            for path in ("out/x.jpg", "x.zip", "x.txt", "x.jpeg", "a/x.v2", "x%d.png", "x%s", "x%06d.npz", "x-%d.tar")
        ),
        ("x%d%d.tar", None, "DIR/NAME-%06d.tar for shards in a folder of their own"),
        ("", None, "output is ''"),
        ("x.txt", "folder", "one with a suffix: NAME.SUFFIX/"),
        ("a.png", "shards", "output is 'a.png' and format is 'shards'"),
        ("a", "npz", "name a file that ends in .npz"),
        ("a", "grid", "name a file that ends in .png"),
        ("s3://bucket/images", None, "a folder of images on remote storage"),
    ],
)
def test_a_path_that_contradicts_the_format_is_refused(path, form, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        output_of(path, form)


@pytest.mark.parametrize("name", ["gan", "cgan"])
def test_every_form_holds_the_same_images_and_labels(trained, tmp_path, name):
    count = 2 * BLOCK + 7
    samples = open_samples(Run(trained(name)), seed=2)
    expected, labels = images(samples, count), samples.labels(0, count)

    write(samples, count, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["images"], expected)
        assert sorted(archive) == (["classes", "images", "labels", "z"] if name == "cgan" else ["images", "z"])
        first = np.concatenate((samples.z(0, BLOCK), samples.z(BLOCK, BLOCK + 9)))
        np.testing.assert_array_equal(archive["z"][: len(first)], first)
        if name == "cgan":
            np.testing.assert_array_equal(archive["labels"], labels)
            assert archive["classes"].tolist() == ["left", "right"]

    write(samples, count, tmp_path / "folder")
    files = sorted((tmp_path / "folder").rglob("*.png"), key=lambda path: path.name)
    assert [path.stem for path in files] == [f"{number:08d}" for number in range(count)]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in files]), expected)
    if name == "cgan":
        assert [path.parent.name for path in files] == [("left", "right")[label] for label in labels]

    write(samples, count, tmp_path / "shards" / "fake-%06d.tar")
    dataset = open_dataset(str(tmp_path / "shards"))
    assert (dataset.count, dataset.classes) == (count, ("left", "right") if name == "cgan" else ())
    stored, _ = read_records(dataset, 0, 0, count)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(dataset.labels(), labels)
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == ["fake-000000.tar"]
    assert not list(tmp_path.glob(".*")), "nothing is left beside the outputs"


@pytest.mark.slow
def test_several_processes_and_one_write_the_same_bytes(trained, tmp_path):
    samples = open_samples(Run(trained("dcgan", "batch")), seed=2)
    for workers in (1, 2):
        write(samples, 600, tmp_path / f"{workers}.npz", workers=workers)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_progress_is_reported_up_to_the_end(trained, tmp_path):
    reports = write(open_samples(Run(trained("gan"))), 600, tmp_path / "x.npz")
    assert [done for done, *_ in reports] == [256, 512, 600]
    assert reports[-1][1] == 1


def test_the_grid_of_a_conditional_run_has_one_class_a_row(trained, tmp_path):
    samples = open_samples(Run(trained("cgan")))
    write(samples, 16, tmp_path / "grid.png")
    grid, each = np.asarray(Image.open(tmp_path / "grid.png")), images(samples, 16)
    assert grid.shape == (4 * 18 - 2, 4 * 18 - 2, 3)
    for row, first in enumerate((0, 1, 8, 9)):  # left, right, left, right
        for column in range(4):
            cell = grid[18 * row : 18 * row + 16, 18 * column : 18 * column + 16]
            np.testing.assert_array_equal(cell, each[first + 2 * column])
    write(open_samples(Run(trained("cgan")), label="right"), 4, tmp_path / "right.png")
    assert Image.open(tmp_path / "right.png").size == (34, 34)


def test_a_grid_of_fewer_images_than_two_a_class_is_a_plain_one(trained, tmp_path):
    write(open_samples(Run(trained("cgan"))), 3, tmp_path / "three.png")
    assert Image.open(tmp_path / "three.png").size == (2 * 18 - 2, 2 * 18 - 2)


def test_the_samples_of_an_archive_are_drawn_again_from_its_z(trained, tmp_path):
    samples = open_samples(Run(trained("cgan")), seed=3)
    write(samples, 70, tmp_path / "x.npz")
    again = open_samples(Run(trained("cgan")), seed=4, z_file=str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(images(again, 70), images(samples, 70))


def test_a_slash_at_the_end_replaces_no_file(trained, tmp_path):
    write(open_samples(Run(trained("gan"))), 4, tmp_path / "x.png")
    with pytest.raises(ConfigError, match="exists"):
        refuse_existing(output_of(f"{tmp_path}/x.png/"), overwrite=False)


def test_rows_of_classes_keep_the_order_and_leave_cells_blank():
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    assert in_class_rows(labels, 2).reshape(-1, 2).tolist() == [[0, 3], [1, 4], [2, 5], [6, -1]]
    assert in_class_rows(np.array([1, 1, 1]), 2).reshape(-1, 2).tolist() == [[0, 1], [2, -1]]


def test_a_grid_too_large_to_be_looked_at_is_refused_before_anything_is_computed(trained, tmp_path):
    with pytest.raises(
        ConfigError, match=re.escape("count is 10000000: a grid of images of 16 pixels has at most 308,641")
    ):
        write(open_samples(Run(trained("gan"))), 10_000_000, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.png", "x.npz", "folder", "set/x.tar"])
def test_an_output_that_exists_is_refused_and_replaced_when_asked(trained, tmp_path, name):
    samples = open_samples(Run(trained("gan")))
    path = tmp_path / name
    write(samples, 5, path)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(ConfigError, match="exists: name another one, or give --overwrite"):
        write(open_samples(Run(trained("gan")), seed=1), 5, path)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
    write(open_samples(Run(trained("gan")), seed=1), 4, path, overwrite=True)
    after = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    assert after != before
    assert not [each for each in tmp_path.rglob(".*") if each.name.startswith(".")]


KILLED = """
import os, signal, sys
from pathlib import Path
from dcgan_dist.sample import main
original, calls = Path.rename, []

def rename(self, target):
    calls.append(target)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    return original(self, target)

Path.rename = rename
if sys.argv[1] == "3":
    import shutil
    shutil.rmtree = lambda folder, **_: os.kill(os.getpid(), signal.Signals[sys.argv[2]])
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("moment", [1, 2, 3])  # before the old folder is moved, before the new one is, and after that
def test_a_replacement_of_a_folder_by_a_killed_process_is_finished_or_undone(trained, tmp_path, moment, ends, capsys):
    run, path = str(trained("gan")), tmp_path / "x"
    assert sample.main([f"--run={run}", "--count=3", f"--output={path}"]) == 0
    words = [f"--run={run}", "--count=4", f"--output={path}", "--overwrite"]
    done = subprocess.run([sys.executable, "-c", KILLED, str(moment), ends, *words], capture_output=True, check=False)
    number = signal.Signals[ends]
    assert done.returncode == (-number if ends == "SIGKILL" else 128 + number), done.stderr
    capsys.readouterr()
    assert sample.main([f"--run={run}", "--count=5", f"--output={path}"]) == 2
    assert "exists: name another one, or give --overwrite" in capsys.readouterr().err
    assert len(list(path.iterdir())) == (4 if moment == 3 else 3)
    assert sample.main([f"--run={run}", "--count=5", f"--output={path}", "--overwrite"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert len(list(path.iterdir())) == 5


def test_a_hidden_folder_with_other_files_does_not_count_as_a_backup(trained, tmp_path):
    write(open_samples(Run(trained("gan"))), 4, tmp_path / "x")
    (tmp_path / ".x.former").mkdir()
    (tmp_path / ".x.former" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"\.x\.former' holds other files, such as 'letter.txt'"):
        write(open_samples(Run(trained("gan"))), 5, tmp_path / "x", overwrite=True)
    assert (tmp_path / ".x.former" / "letter.txt").read_text() == "dear"


def test_a_folder_with_other_files_is_never_overwritten(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for path, form in ((tmp_path / "mine", None), (tmp_path / "mine", "shards"), (tmp_path / "mine" / "x.tar", None)):
        with pytest.raises(ConfigError, match=r"holds other files, such as 'letter.txt'"):
            write(open_samples(Run(trained("gan"))), 5, path, form=form, overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_shards_without_a_folder_of_their_own_are_refused_with_the_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("t.tar", "./t-%06d.tar", str(tmp_path / "t.tar")):
        with pytest.raises(ConfigError, match=r"exists: .*DIR/NAME-%06d.tar for shards in a folder of their own"):
            refuse_existing(output_of(path), overwrite=False)


@pytest.mark.parametrize("name", ["x", "x.png", "x.npz"])
def test_files_that_others_add_to_the_output_in_the_meantime_are_not_replaced(trained, tmp_path, name):
    samples, path = open_samples(Run(trained("gan"))), tmp_path / name

    def come(done: int, share: float, bad: int, found: int) -> None:
        (path / "mine").mkdir(parents=True) if name == "x" else path.write_text("mine")

    with pytest.raises(ConfigError, match="exists: name another one"):
        write_samples(samples, 8, output_of(str(path)), pool=LocalPool(1), report=come)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert (path / "mine").is_dir() if name == "x" else path.read_text() == "mine"


def test_the_unfinished_work_of_prepare_of_the_same_name_stays(trained, tmp_path):
    work = tmp_path / ".x.unfinished"
    work.mkdir()
    (work / "rooms-000000.tar").write_bytes(b"work")
    write(open_samples(Run(trained("gan"))), 8, tmp_path / "x")
    assert (work / "rooms-000000.tar").read_bytes() == b"work"


@pytest.mark.parametrize("name", ["x.png", "x.npz", "folder"])
def test_an_interrupted_output_leaves_nothing(trained, tmp_path, name, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    samples = open_samples(Run(trained("gan")))
    with pytest.raises(KeyboardInterrupt):
        write_samples(samples, 600, output_of(str(tmp_path / name)), pool=LocalPool(1), report=fail)
    assert not list(tmp_path.iterdir())


def test_interrupted_shards_continue_from_the_finished_ones(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_SIZE", BLOCK)
    samples = open_samples(Run(trained("gan")))

    def stop(done: int, *_: object) -> None:
        if done > BLOCK:
            raise KeyboardInterrupt

    output = output_of(str(tmp_path / "set"), "shards")
    with pytest.raises(KeyboardInterrupt):
        write_samples(samples, 4 * BLOCK, output, pool=LocalPool(1), report=stop)
    assert not (tmp_path / "set").exists()
    reports = write(samples, 4 * BLOCK, tmp_path / "set", form="shards")
    assert reports[0][3] > 0, "found"
    dataset = open_dataset(str(tmp_path / "set"))
    stored = [read_records(dataset, shard, 0, BLOCK)[0] for shard in range(4)]
    np.testing.assert_array_equal(np.concatenate(stored), images(samples, 4 * BLOCK))


def test_two_at_work_on_one_folder_do_not_disturb_each_other(trained, tmp_path):
    samples = open_samples(Run(trained("gan")))

    def second(*_: object) -> None:
        with pytest.raises(DataError, match="is being made by another process"):
            write(samples, 5, tmp_path / "folder")

    write_samples(samples, 5, output_of(str(tmp_path / "folder")), pool=LocalPool(1), report=second)
    assert len(list((tmp_path / "folder").iterdir())) == 5
