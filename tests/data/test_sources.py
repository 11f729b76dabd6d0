import gzip
import io
import os
import pickle
import resource
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcgan_dist.data.images import Target
from dcgan_dist.data.sources import (
    CIFAR10_CLASSES,
    EncodedImage,
    Unreadable,
    classes_of,
    open_source,
    read_cifar_batch,
    room_source,
)
from dcgan_dist.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "train/cat/1.png": png(1),
    "train/cat/2.PNG": png(2),
    "train/dog/3.png": png(3),
    "train/.hidden/4.png": png(4),
    "__MACOSX/train/cat/._1.png": b"resource fork",
    "wnids.txt": b"cat dog",
}


def make(place: Path, files: dict[str, bytes]) -> Path:
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif place.suffix in (".tar", ".gz", ".tgz"):
        with tarfile.open(place, "w" if place.suffix == ".tar" else "w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    return place


def values(source) -> list[int]:
    return [int(item.content.picture(Target(4, 3))[0][0, 0, 0]) for item in source.items() if item.content is not None]


@pytest.mark.parametrize("name", ["folder", "a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_folders_and_archives_give_the_same_images_and_labels(tmp_path, name):
    source = open_source("folder", make(tmp_path / name, FILES))
    items = list(source.items())
    assert [item.name for item in items] == ["train/cat/1.png", "train/cat/2.PNG", "train/dog/3.png"]
    assert values(source) == [1, 2, 3]
    assert items[-1].share <= 1
    classes, numbers = classes_of({item.folders for item in items}, source.classes)
    assert classes == ("cat", "dog")
    assert [numbers[item.folders] for item in items] == [0, 0, 1]
    assert values(open_source("folder", tmp_path / name, only=("dog",))) == [3]


@pytest.mark.parametrize(
    ("folders", "classes", "numbers"),
    [
        ([("train", "cat"), ("train", "dog")], ("cat", "dog"), [0, 1]),
        ([("t", "n01", "images"), ("t", "n02", "images")], ("n01", "n02"), [0, 1]),
        ([("train", "cat"), ("test", "cat"), ("test", "dog")], ("cat", "dog"), [0, 0, 1]),
        ([()], (), [-1]),
        ([("all",)], (), [-1]),
        ([(), ("cat",), ("dog",)], ("cat", "dog"), [-1, 0, 1]),
        ([("a", "x"), ("b", "x")], ("a", "b"), [0, 1]),
    ],
)
def test_the_last_folder_that_differs_between_images_is_the_class(folders, classes, numbers):
    names, found = classes_of(folders, None)
    assert (names, [found[path] for path in folders]) == (classes, numbers)


def test_archive_members_that_are_not_regular_files_are_left_out_and_reported(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, kind in (
            ("../up.png", tarfile.REGTYPE),
            ("/root.png", tarfile.REGTYPE),
            ("a/../../b.png", tarfile.REGTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("device.png", tarfile.CHRTYPE),
            ("good.png", tarfile.REGTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            entry.size = len(png(7)) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(png(7)))
    before = sorted(tmp_path.rglob("*"))
    items = list(open_source("folder", tmp_path / "evil.tar").items())
    assert [item.name for item in items if isinstance(item.content, EncodedImage)] == ["good.png"]
    reasons = [item.content.reason for item in items if isinstance(item.content, Unreadable)]
    assert [reason.split()[-1] for reason in reasons] == ["archive", "archive", "archive", "link", "link", "file"]
    assert sorted(tmp_path.rglob("*")) == before  # nothing is extracted

    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../up.png", png(7))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.png", png(7))
    items = list(open_source("folder", tmp_path / "evil.zip").items())
    assert [(item.name, isinstance(item.content, Unreadable)) for item in items] == [
        ("../up.png", True),
        ("link.png", True),
        ("good.png", False),
    ]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_an_archive_cut_short_is_an_error_not_fewer_images(tmp_path, name, where):
    whole = make(tmp_path / name, {f"{number}.png": os.urandom(700) for number in range(40)})
    content = whole.read_bytes()
    for size in (int(len(content) * where), int(len(content) * where) // 512 * 512):
        whole.write_bytes(content[:size])
        with pytest.raises(DataError, match="cut short"):
            list(open_source("folder", whole).items())


def test_a_damaged_tar_header_is_an_error_not_the_end(tmp_path):
    whole = make(tmp_path / "a.tar", {f"{number}.png": bytes(700) for number in range(40)})
    content = bytearray(whole.read_bytes())
    content[20 * 1536 + 5] ^= 255
    whole.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        list(open_source("folder", whole).items())


def test_a_damaged_zip_member_is_one_bad_input(tmp_path):
    whole = make(tmp_path / "a.zip", {"1.png": png(1), "2.png": png(2), "3.png": png(3)})
    content = bytearray(whole.read_bytes())
    content[content.index(png(2)) + 50] ^= 255
    whole.write_bytes(content)
    items = list(open_source("folder", whole).items())
    assert len(items) == 3
    with pytest.raises(DataError, match="CRC"):
        items[1].content.picture(Target(4, 3))
    assert items[2].content.picture(Target(4, 3))[0][0, 0, 0] == 3


def test_a_large_compressed_archive_is_read_once_and_in_bounded_memory(tmp_path):
    """20,000 members of 4 KiB, 80 MB in all, must not raise the memory in use by more than a few MB."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(20_000):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = 4096
            archive.addfile(entry, io.BytesIO(bytes(4096)))
    source = open_source("folder", tmp_path / "a.tar.gz")
    shares = []
    for item in source.items():
        shares.append(item.share)
        if len(shares) == 2000:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(shares) == 20_000
    assert shares == sorted(shares)
    assert shares[-1] > 0.99
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB


def batch(count: int, protocol: int = 2, seed: int = 0) -> tuple[bytes, np.ndarray, list[int]]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = [number % 10 for number in range(count)]
    return pickle.dumps({"data": images.reshape(count, -1), "labels": labels}, protocol), images, labels


def official_batch(count: int) -> tuple[bytes, np.ndarray]:
    """A batch as Python 2 wrote it: text as byte strings, numpy.core, protocol 2 (put together by hand)."""
    images = np.random.default_rng(1).integers(0, 256, (count, 3072), dtype=np.uint8)
    raw = images.tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + b"(M" + struct.pack("<H", count) + b"M\x00\x0ct" + dtype + b"\x89"
    state += b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([number % 10]) for number in range(count)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + labels + b"u.", images


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_cifar_batches_of_any_protocol_are_read(protocol):
    content, images, labels = batch(7, protocol)
    read, read_labels = read_cifar_batch(content, "batch")
    np.testing.assert_array_equal(read, images.transpose(0, 2, 3, 1))
    assert read_labels == labels


def test_a_cifar_batch_of_python_2_is_read():
    content, images = official_batch(300)
    assert pickle.loads(content, encoding="bytes")[b"data"].tolist() == images.tolist()  # it is what NumPy reads
    read, labels = read_cifar_batch(content, "batch")
    np.testing.assert_array_equal(read, images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels == [number % 10 for number in range(300)]


class Payload:
    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "payload",
    [
        Payload(os.system, "touch HERE"),
        Payload(eval, "open('HERE', 'w')"),
        Payload(np.load, "HERE"),
        Payload(np.save, "HERE", 1),
        Payload(getattr, "text", "upper"),
        Payload(np.memmap, "HERE", "u1", "w+", 0, (4,)),
        Payload(os.open, "HERE", os.O_CREAT),
    ],
    ids=["system", "eval", "np.load", "np.save", "getattr", "memmap", "open"],
)
def test_a_malicious_batch_runs_nothing(tmp_path, monkeypatch, payload, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"data": payload, "labels": [payload]}, protocol)
    with pytest.raises(DataError, match="which no batch needs"):
        read_cifar_batch(content, "data_batch_1")
    assert not list(tmp_path.iterdir())


def test_batches_that_are_none_are_refused():
    good = np.zeros((2, 3072), np.uint8)
    for content in (
        {"data": good, "labels": [1]},
        {"data": good, "labels": [1, 10]},
        {"data": good[:, :100], "labels": [1, 1]},
        {"data": good.astype(object), "labels": [1, 1]},
        {"data": good.astype(float), "labels": [1, 1]},
        {"data": b"", "labels": []},
        {"labels": []},
        [good],
    ):
        with pytest.raises(DataError, match="no CIFAR-10 batch"):
            read_cifar_batch(pickle.dumps(content), "batch")
    for content in (b"", b"\x80\x04.", b"garbage", pickle.dumps({"data": good, "labels": [1, 1]})[:-300]):
        with pytest.raises(DataError, match="no CIFAR-10 batch"):
            read_cifar_batch(content, "batch")


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_cifar_is_read_as_it_is_distributed(tmp_path, form):
    files, expected = {"cifar-10-batches-py/batches.meta": b"not read"}, []
    for number in range(1, 6):
        content, images, _ = batch(3, seed=number)
        files[f"cifar-10-batches-py/data_batch_{number}"] = content
        expected.append(images.transpose(0, 2, 3, 1))
    files["cifar-10-batches-py/test_batch"], test, _ = batch(2, 4, seed=9)
    for key in list(files)[1:6]:
        files[key] = pickle.dumps(pickle.loads(files[key]), 4)
    place = make(tmp_path / f"cifar.{form}" if form != "folder" else tmp_path / "cifar", files)
    items = list(open_source("cifar10", place).items())
    np.testing.assert_array_equal([item.content.picture(Target(32, 3))[0] for item in items], np.concatenate(expected))
    assert items[1].folders == ("automobile",)
    held_out = list(open_source("cifar10", place, split="test").items())
    np.testing.assert_array_equal([item.content.values for item in held_out], test.transpose(0, 2, 3, 1))


def test_cifar_as_a_tree_of_class_folders_keeps_the_order_of_classes(tmp_path):
    place = make(tmp_path / "c", {"train/dog/1.png": png(1), "train/cat/2.png": png(2), "test/cat/3.png": png(3)})
    source = open_source("cifar10", place)
    items = list(source.items())
    classes, numbers = classes_of({item.folders for item in items}, source.classes)
    assert classes == CIFAR10_CLASSES
    assert [numbers[item.folders] for item in items] == [3, 5]


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("end", [".gz", ""])
def test_mnist_is_read(tmp_path, end):
    pack = gzip.compress if end else bytes
    images = np.random.default_rng(0).integers(0, 256, (1503, 28, 28), dtype=np.uint8)
    labels = (np.arange(1503) % 10).astype(np.uint8)
    for part, size in (("train", 1503), ("t10k", 4)):
        (tmp_path / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(images[:size])))
        (tmp_path / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels[:size])))
    source = open_source("mnist", tmp_path)
    assert (source.image_size, source.channels, source.count) == (28, 1, 1503)
    items = list(source.items())
    np.testing.assert_array_equal([item.content.picture(Target(28, 1))[0][..., 0] for item in items], images)
    assert [item.folders for item in items] == [(str(label),) for label in labels]
    assert len(list(open_source("mnist", tmp_path, split="test").items())) == 4
    assert len(list(open_source("mnist", tmp_path, only=("3", "4")).items())) == 300
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut short"):
        list(open_source("mnist", tmp_path).items())


def test_the_identity_of_a_source_depends_on_its_content_not_on_its_location_or_dates(tmp_path):
    first, second = make(tmp_path / "a" / "x", FILES), make(tmp_path / "b" / "x", FILES)
    os.utime(second / "wnids.txt", (1, 1))
    assert open_source("folder", first).identity == open_source("folder", second).identity
    (second / "train/cat/1.png").write_bytes(png(1) + b"more")
    assert open_source("folder", first).identity != open_source("folder", second).identity


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("folder", None, "input is missing"),
        ("folder", "nowhere", "does not exist"),
        ("folder", "empty", "empty folder"),
        ("folder", "empty.zip", "empty file"),
        ("folder", "image.png", "unknown kind"),
        ("mnist", "folder", "holds no train-images"),
        ("rooms", "folder", "leave it out"),
    ],
)
def test_bad_input_is_named(tmp_path, kind, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.zip").touch()
    (tmp_path / "image.png").write_bytes(png(1))
    make(tmp_path / "folder", FILES)
    with pytest.raises(DataError, match=message):
        open_source(kind, None if path is None else tmp_path / path)


@pytest.mark.parametrize("name", ["no.zip", "no.tar", "no.tar.gz"])
def test_what_is_no_archive_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an archive, whatever its name" * 50)
    with pytest.raises(DataError, match="damaged"):
        list(open_source("folder", tmp_path / name).items())


@pytest.mark.skipif("DCGAN_DIST_DATA" not in os.environ, reason="DCGAN_DIST_DATA names no folder of real images")
@pytest.mark.parametrize(
    ("kind", "name", "classes"),
    [
        ("cifar10", "cifar10_train.tar.gz", "airplane"),
        ("folder", "tiny_imagenet_20k.tar.gz", "n"),
        ("folder", "faces_64.tar.gz", "0"),
        ("folder", "rooms_128.tar.gz", "b"),
        ("mnist", "fashion_mnist", "9"),
        ("fashion_mnist", "fashion_mnist", "Ankle boot"),
    ],
)
def test_real_archives_are_read(kind, name, classes):
    source = open_source(kind, Path(os.environ["DCGAN_DIST_DATA"], name))
    for item, _ in zip(source.items(), range(20), strict=False):
        image = item.content.picture(Target(32, source.channels))[0]
        assert image.std() > 5
        assert item.folders[-1]
    first = next(iter(source.items()))
    assert first.folders[-1].startswith(classes)
    assert sys.getsizeof(first) < 1000


@pytest.mark.parametrize("kind", ["rooms", "folder"])
@pytest.mark.parametrize("count", [None, 11])
def test_parts_hold_every_input_once_under_its_number_in_an_order_of_the_seed_alone(tmp_path, kind, count):
    for number in range(23):
        make(tmp_path, {f"{number % 3}/{number:02d}.png": png(number)})
    source = room_source(23) if kind == "rooms" else open_source("folder", tmp_path)
    whole = dict(enumerate(source.items()))
    orders = []
    for size, seed in ((5, 0), (4, 0), (5, 1)):
        parts = source.parts(size, seed, count)
        assert [part.count for part in parts][:-1] == [size] * (len(parts) - 1)
        found = [pair for part in pickle.loads(pickle.dumps(parts)) for pair in part.items()]
        assert {number: (item.name, item.folders, item.content) for number, item in found} == {
            number: (whole[number].name, whole[number].folders, whole[number].content)
            for number in range(count or len(whole))
        }
        orders.append([number for number, _ in found])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    assert set(source.all_folders()) == {item.folders for item in whole.values()}


def test_an_archive_has_no_parts(tmp_path):
    source = open_source("folder", make(tmp_path / "a.tar", FILES))
    assert source.parts(10, 0) is None
    assert source.all_folders() is None


def test_imagenet_is_read_in_32_pixels_with_its_folders_as_classes(tmp_path):
    files = {f"{part}/n0{number % 3}/{number}.JPEG": png(number) for part in ("train", "val") for number in range(7)}
    make(tmp_path / "ILSVRC", files)
    for place, split in ((tmp_path / "ILSVRC", "train"), (tmp_path / "ILSVRC" / "train", "train")):
        source = open_source("imagenet", place, split=split)
        assert source.image_size == 32
        assert sum(part.count for part in source.parts(4, 0)) == 7
        classes, numbers = classes_of(source.all_folders(), source.classes)
        assert classes == ("n00", "n01", "n02")
        assert sorted(numbers.values()) == [0, 1, 2]
    assert open_source("imagenet", tmp_path / "ILSVRC", split="test").where.endswith("val")
    assert len(list(open_source("imagenet", tmp_path / "ILSVRC", only=("n00",)).items())) == 3
    make(tmp_path / "flat", {"1.png": png(1)})
    make(tmp_path / "a.zip", {"1.png": png(1)})
    for name, message in (("flat", "no class folders"), ("a.zip", "takes a folder")):
        with pytest.raises(DataError, match=message):
            open_source("imagenet", tmp_path / name)


@pytest.mark.parametrize(("kind", "shoe"), [("mnist", "9"), ("fashion_mnist", "Ankle boot")])
def test_fashion_mnist_has_names_for_its_classes(tmp_path, kind, shoe):
    images = np.zeros((10, 28, 28), np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(10, dtype=np.uint8)))
    source = open_source(kind, tmp_path, split="test")
    items = list(source.items())
    assert (source.name, items[9].folders) == (kind, (shoe,))
    numbers = classes_of({item.folders for item in items}, source.classes)[1]
    assert [numbers[item.folders] for item in items] == list(range(10))


@pytest.mark.parametrize("kind", ["lsun", "folder", "imagenet", "cifar10", "mnist", "fashion_mnist", "webdataset"])
def test_only_svhn_has_an_extra_split(tmp_path, kind):
    make(tmp_path, FILES)
    with pytest.raises(DataError, match="only svhn"):
        open_source(kind, tmp_path, split="extra")


def test_classes_named_by_numbers_keep_the_order_of_numbers():
    assert classes_of([(str(number),) for number in range(12)], None)[0] == tuple(map(str, range(12)))
