import os
import pickle

import numpy as np
import pytest
import scipy.io

from dcgan_dist.data.images import Target
from dcgan_dist.data.sources import classes_of, open_source
from dcgan_dist.errors import DataError


def make(path, count=25, *, compressed=True, **changes):
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
    labels = (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]  # 1 … 10, as distributed
    scipy.io.savemat(path, {"X": images, "y": labels} | changes, do_compression=compressed)
    return images, labels


@pytest.mark.parametrize("compressed", [True, False])
def test_digits_are_read_and_ten_is_zero(tmp_path, compressed):
    images, labels = make(tmp_path / "train_32x32.mat", compressed=compressed)
    source = open_source("svhn", tmp_path)
    assert (source.image_size, source.channels, source.count) == (32, 3, 25)
    items = list(source.items())
    np.testing.assert_array_equal(
        [item.content.picture(Target(32, 3))[0] for item in items], images.transpose(3, 0, 1, 2)
    )
    assert [item.folders for item in items] == [(str(label % 10),) for label in labels.ravel()]
    classes, numbers = classes_of({item.folders for item in items}, source.classes)
    assert classes == tuple("0123456789")
    assert numbers["0",] == 0
    assert len(list(open_source("svhn", tmp_path, only=("0", "3")).items())) == 5


def test_each_split_has_its_file(tmp_path):
    for count, split in enumerate(("train", "test", "extra"), 3):
        make(tmp_path / f"{split}_32x32.mat", count)
        assert open_source("svhn", tmp_path, split=split).count == count
    assert open_source("svhn", tmp_path / "extra_32x32.mat", split="extra").count == 5
    with pytest.raises(DataError, match="not of the split train"):
        open_source("svhn", tmp_path / "extra_32x32.mat")
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"holds no test_32x32.mat"):
        open_source("svhn", tmp_path, split="test")


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "train_32x32.mat"
    make(path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 255
    damages = [content[:size] for size in (1, 100, 127, 128, 130, 200, 5000, len(content) - 60)]
    damages += [bytes(flipped), os.urandom(1000), b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600)]
    damages += [pickle.dumps([1, 2]), b"\x89HDF\r\n\x1a\n" + bytes(600)]
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"train_32x32.mat is damaged or no file") as error:
            list(open_source("svhn", path).items())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"X": np.zeros((32, 32, 3, 25))},
        {"X": np.zeros((28, 28, 3, 25), np.uint8)},
        {"X": np.zeros((32, 32, 3, 24), np.uint8)},
        {"y": np.full((25, 1), 11, np.uint8)},
        {"y": "text"},
        {"X": {"a": 1}},
    ],
)
def test_other_contents_are_refused(tmp_path, changes):
    make(tmp_path / "train_32x32.mat", **changes)
    with pytest.raises(DataError, match="no file of SVHN"):
        list(open_source("svhn", tmp_path).items())
