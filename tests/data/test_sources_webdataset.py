import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from dcgan_dist.data.images import Target
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import classes_of, open_source
from dcgan_dist.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def values(source) -> list[int]:
    return [int(item.content.picture(Target(4, 3))[0][0, 0, 0]) for item in source.items()]


def test_what_webdataset_writes_is_read_with_its_labels(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "set-%06d.tar"), maxcount=7, verbose=0) as writer:
        for number in range(23):
            writer.write(
                {"__key__": f"a/{number:05d}", "png": np.full((4, 4, 3), number, np.uint8), "cls": number % 12}
            )
    source = open_source("webdataset", tmp_path)
    items = list(source.items())
    assert values(source) == list(range(23))
    classes, numbers = classes_of({item.folders for item in items}, source.classes)
    assert classes == tuple(map(str, range(12)))
    assert [numbers[item.folders] for item in items] == [number % 12 for number in range(23)]
    shares = [item.share for item in items]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1
    braces = open_source("webdataset", f"{tmp_path}/set-{{000000..000002}}.tar")
    assert values(braces) == list(range(21))
    assert values(open_source("webdataset", tmp_path / "set-000003.tar", only=("10",))) == [22]


def test_labels_of_json_and_samples_without(tmp_path):
    members = {
        "1.json": json.dumps({"label": "cat", "more": [1]}).encode(),
        "1.jpg": png(1),
        "2.PNG": png(2),
        "2.cls": b"dog\n",
        "2.json": b"{}",
        "3.png": png(3),
        "3.json": b'{"label": {"a": 1}}',
        "4.txt": b"no image",
        "dir.d/5.x.png": png(5),
    }
    items = list(open_source("webdataset", tar(tmp_path / "a.tar", members)).items())
    assert [(item.name, item.folders) for item in items] == [
        ("a.tar: 1.jpg", ("cat",)),
        ("a.tar: 2.PNG", ("dog",)),
        ("a.tar: 3.png", ()),
        ("a.tar: dir.d/5.x.png", ()),
    ]


def test_a_sample_that_is_no_use_is_one_bad_input(tmp_path):
    members = {
        "1.png": b"",
        "2.png": png(2),
        "2.json": b"{",
        "3.png": png(3),
        "3.jpg": png(3),
        "4.png": png(4),
        "4.json": b"[" * 60_000,
        "5.png": png(5),
    }
    reasons = []
    for item in open_source("webdataset", tar(tmp_path / "a.tar", members)).items():
        try:
            reasons.append(int(item.content.picture(Target(4, 3))[0][0, 0, 0]))
        except DataError as error:
            reasons.append(str(error).split()[-1])
    assert len(reasons) == 5
    assert reasons[-1] == 5
    assert all(isinstance(reason, str) for reason in reasons[:4])


def read(items) -> list[tuple[str, int]]:
    return [(item.name.split()[-1], int(item.content.picture(Target(4, 3))[0][0, 0, 0])) for item in items]


def test_the_plain_extension_is_the_image_unless_a_setting_names_another(tmp_path):
    members = {"1.png": png(1), "1.mask.png": png(9), "2.depth.webp": png(9), "2.jpg": png(2), "3.seg.png": png(3)}
    path = tar(tmp_path / "a.tar", members)
    assert read(open_source("webdataset", path).items()) == [("1.png", 1), ("2.jpg", 2), ("3.seg.png", 3)]
    chosen = open_source("webdataset", path, image_member="mask.png")
    assert read(chosen.items()) == [("1.mask.png", 9)]
    assert chosen.identity != open_source("webdataset", path).identity
    with pytest.raises(DataError, match=r"a.tar \(members .tiff\) holds no image"):
        write_shards(open_source("webdataset", path, image_member="tiff"), Recipe(image_size=16), tmp_path / "out")
    with pytest.raises(DataError, match="only webdataset has members"):
        open_source("folder", path, image_member="png")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        (["img.0001.png", "img.0002.png", "img.0003.jpg", "img.0004.png"], "(0001.png, 0002.png, 0003.jpg, …)"),
        (["1.png", "1.jpg"], "(png, jpg)"),
        (["1.left.png", "1.right.png"], "(left.png, right.png)"),
    ],
)
def test_several_images_of_a_key_are_refused_with_the_rule_of_the_first_dot(tmp_path, members, named):
    path = tar(tmp_path / "a.tar", {name: png(1) for name in members})
    with pytest.raises(DataError) as caught:
        write_shards(open_source("webdataset", path), Recipe(image_size=16), tmp_path / "out")
    for part in (named, "choose one by image_member", "the first dot of a name", "--source folder"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled_or_extracted(tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return os.system, ("touch here",)

    content = pickle.dumps(Payload())
    tar(
        tmp_path / "a.tar",
        {f"1.{end}": content for end in ("pkl", "pyd", "pickle", "npy", "pth", "cls")} | {"1.png": png(1)},
    )
    monkeypatch.chdir(tmp_path)
    assert [item.name for item in open_source("webdataset", "a.tar").items()] == ["a.tar: 1.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("name", ["../1.png", "/1.png", "a/../../1.png", "link.png", "device.png"])
def test_members_that_lead_elsewhere_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        if name in ("link.png", "device.png"):
            entry.type = tarfile.SYMTYPE if name == "link.png" else tarfile.CHRTYPE
            entry.linkname = "/etc/passwd"
            archive.addfile(entry)
        else:
            entry.size = len(png(1))
            archive.addfile(entry, io.BytesIO(png(1)))
    with pytest.raises(DataError, match=r"a\.tar has a (link|member)"):
        list(open_source("webdataset", tmp_path / "a.tar").items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_an_image_bomb_in_a_tar_is_one_bad_input(tmp_path):
    bomb = bytearray(png(1))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    first, second = open_source("webdataset", tar(tmp_path / "a.tar", {"1.png": bytes(bomb), "2.png": png(2)})).items()
    with pytest.raises(DataError):
        first.content.picture(Target(4, 3))
    assert second.content.picture(Target(4, 3))[0][0, 0, 0] == 2


def test_damage_is_an_error_not_fewer_images(tmp_path):
    path = tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(9)})
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[4 * 1024 + 3] ^= 255
    for damage, message in ((bytes(flipped), "byte 4096"), (content[:5000], "cut off"), (content[:4096], "cut off")):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=message):
            list(open_source("webdataset", path).items())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.tar", "does not exist"),
        ("set-{0..3}.tar", "set-1.tar' does not exist|set-1.tar', which does not exist"),
        ("set-{0..99999999999}.tar", "range"),
        ("set-{0.tar", "brace"),
        ("a.tar.gz", "not compressed"),
        ("images", r"holds no \.tar"),
    ],
)
def test_bad_input_is_named(tmp_path, path, message):
    tar(tmp_path / "set-0.tar", {"1.png": png(1)})
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match=message):
        open_source("webdataset", tmp_path / path)
