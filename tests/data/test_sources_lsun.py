import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from dcgan_dist.data.images import Target
from dcgan_dist.data.sources import open_source
from dcgan_dist.errors import DataError


def encoded(value: int, kind: str = "WEBP") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def make(folder: Path, values: dict[bytes, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(folder), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    return folder


def keys(count: int) -> list[bytes]:
    digits = np.random.default_rng(3).integers(0, 16, (count, 40))
    return sorted({"".join(f"{digit:x}" for digit in row).encode() for row in digits})


@pytest.fixture
def bedroom(tmp_path):
    kinds = ("WEBP", "JPEG", "PNG")
    values = {key: encoded(number % 256, kinds[number % 3]) for number, key in enumerate(keys(101))}
    return make(tmp_path / "bedroom_train_lmdb", values)


def test_all_values_are_read_in_the_order_of_keys_whatever_their_format(bedroom):
    source = open_source("lsun", bedroom)
    items = list(source.items())
    assert source.count == len(items) == 101
    assert [item.name.encode() for item in items] == keys(101)
    assert {item.folders for item in items} == set(source.all_folders()) == {("bedroom",)}
    for number, item in enumerate(items):
        assert np.abs(item.content.picture(Target(8, 3))[0].astype(int) - number).max() <= 1
    assert items[-1].share == 1
    assert {path.name for path in bedroom.iterdir()} <= {"data.mdb", "lock.mdb"}


@pytest.mark.parametrize("count", [None, 7, 30])
def test_parts_are_ranges_of_keys_that_together_are_the_source(bedroom, count):
    source = open_source("lsun", bedroom)
    parts = pickle.loads(pickle.dumps(source.parts(10, 5, count)))
    assert [part.count for part in parts] == {None: [10] * 10 + [1], 7: [7], 30: [10, 10, 10]}[count]
    whole = list(enumerate(source.items()))[:count]
    found = [pair for part in parts for pair in part.items()]
    assert [(number, item.name, item.content) for number, item in found] == [
        (number, item.name, item.content) for number, item in whole
    ]
    assert [item.share for _, item in parts[0].items()][-1] == 1


def test_several_readers_share_an_environment_in_one_process(bedroom):
    source = open_source("lsun", bedroom)
    first, second = source.items(), source.parts(10, 0)[3].items()
    names = [next(first).name, next(second)[1].name]
    assert len(list(first)) == 100
    assert names == [keys(101)[0].decode(), keys(101)[30].decode()]
    assert len(list(second)) == 9


def test_an_environment_that_another_process_holds_open_for_writing_is_read(bedroom):
    script = (
        "import lmdb, sys; e = lmdb.open(sys.argv[1], map_size=1 << 26); t = e.begin(write=True); print(1, flush=1)"
    )
    held = [sys.executable, "-c", script + "; sys.stdin.read()", str(bedroom)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"1\n"
        assert len(list(open_source("lsun", bedroom).items())) == 101
        writer.stdin.close()


def test_a_read_only_environment_without_a_lock_file_is_read(bedroom):
    (bedroom / "lock.mdb").unlink()
    (bedroom / "data.mdb").chmod(0o444)
    bedroom.chmod(0o555)
    assert len(list(open_source("lsun", bedroom).items())) == 101
    bedroom.chmod(0o755)
    assert not (bedroom / "lock.mdb").exists()


def test_values_that_are_no_images_are_bad_inputs_with_the_names_of_their_keys(tmp_path):
    values = {b"a": encoded(1), b"b": b"", b"c": b"no image", b"d": encoded(2)[:30], b"e\xff": encoded(3)}
    items = list(open_source("lsun", make(tmp_path / "x_lmdb", values)).items())
    bad = {}
    for item in items:
        try:
            item.content.picture(Target(8, 3))
        except DataError as error:
            bad[item.name] = str(error)
    assert bad.keys() == {"b", "c", "d"}
    assert "empty" in bad["b"]
    assert items[-1].name == "e\\xff"


def test_a_pickle_as_value_is_not_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/here",)

    (item,) = open_source("lsun", make(tmp_path / "x_lmdb", {b"k": pickle.dumps(Payload())})).items()
    with pytest.raises(DataError, match="no readable image"):
        item.content.picture(Target(8, 3))
    assert not (tmp_path / "here").exists()


def test_the_identity_of_an_environment_depends_on_its_content_not_on_its_location(tmp_path):
    values = {key: encoded(number) for number, key in enumerate(keys(50))}
    same = [open_source("lsun", make(tmp_path / name / "x_lmdb", values)).identity for name in "ab"]
    assert same[0] == same[1]
    for number, key in enumerate(list(values)[:: len(values) - 1]):
        other = values | {key: encoded(200)}
        assert open_source("lsun", make(tmp_path / f"c{number}" / "x_lmdb", other)).identity != same[0]
    fewer = dict(list(values.items())[:-1])
    assert open_source("lsun", make(tmp_path / "d" / "x_lmdb", fewer)).identity != same[0]


def test_the_only_category_in_a_folder_is_taken_and_several_are_named(bedroom):
    assert open_source("lsun", bedroom.parent).count == 101
    make(bedroom.parent / "church_train_lmdb", {b"1": encoded(1)})
    with pytest.raises(DataError, match="bedroom_train_lmdb, church_train_lmdb") as error:
        open_source("lsun", bedroom.parent)
    assert f"--input {bedroom}" in str(error.value)


def test_an_environment_cut_short_is_an_error_before_it_is_read(bedroom):
    data = bedroom / "data.mdb"
    content = data.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 3 * 4096, 8192, 5000, 100):
        data.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"cut short|damaged"):
            open_source("lsun", bedroom)


def test_an_environment_that_loses_keys_while_it_is_read_is_an_error(bedroom):
    source = open_source("lsun", bedroom)
    parts = source.parts(10, 0)
    environment = lmdb.open(str(bedroom), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        transaction.delete(keys(101)[20])
        transaction.delete(keys(101)[99])
    environment.close()
    for number, part in enumerate(parts):
        if number in (2, 9):
            with pytest.raises(DataError, match="changed"):
                list(part.items())
        else:
            assert len(list(part.items())) == part.count


def test_what_is_no_environment_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(os.urandom(1 << 16))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "data.mdb").touch()
    (tmp_path / "place" / "data.mdb").mkdir(parents=True)
    make(tmp_path / "empty_lmdb", {})
    for name, message in (
        ("file", "takes the folder"),
        ("folder", "holds no data.mdb"),
        ("garbage", "no LMDB"),
        ("nothing", "no LMDB"),
        ("place", "cannot be read"),
        ("empty_lmdb", "holds no images"),
    ):
        with pytest.raises(DataError, match=message) as error:
            open_source("lsun", tmp_path / name)
        assert "\n" not in str(error.value)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(DataError, match="one category"):
        open_source("lsun", tmp_path / "empty_lmdb", only=("bedroom",))
