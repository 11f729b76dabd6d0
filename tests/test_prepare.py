import hashlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from dcgan_dist.data.images import encode
from dcgan_dist.data.progress import describe
from dcgan_dist.data.shards import Recipe, read_manifest, write_shards
from dcgan_dist.data.sources import Source, open_source, room_source
from dcgan_dist.errors import DataError
from dcgan_dist.prepare import main
from tests.object_storage import client

__all__ = ["client"]


def status(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_prepare_makes_shards_names_the_folder_and_does_nothing_the_second_time(tmp_path, capsys):
    words = ("--source", "rooms", "--output", tmp_path / "out", "--image-size", 16, "--count", 50, "--shard_size", 20)
    code, out, err = status(capsys, *words, "--workers", 1)
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'out'}: 50 colour images of 16x16, 2 classes, in 3 shards" in out
    code, out, err = status(capsys, *words, "--workers", 2)
    assert (code, err) == (0, "")
    assert "nothing to do" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == ["manifest.json", "rooms-000000.index"]


def test_each_source_has_its_own_size_and_colours(tmp_path, capsys):
    for number in range(4):
        path = tmp_path / "in" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((9, 9, 3), number, np.uint8), "png"))
    status(capsys, "--source", "rooms", "--output", tmp_path / "r", "--count", 2)
    status(capsys, "--source", "folder", "--input", tmp_path / "in", "--output", tmp_path / "f", "--grey")
    status(capsys, "--source", "cifar10", "--input", tmp_path / "in", "--output", tmp_path / "c", "--only=b")
    made = [read_manifest(tmp_path / name) for name in "rfc"]
    assert [(m.image_size, m.channels, m.count, m.classes) for m in made] == [
        (64, 3, 2, ("left", "right")),
        (64, 1, 4, ("a", "b")),
        (32, 3, 2, ()),
    ]


def test_unreadable_inputs_are_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8), "png"))
    words = ("--source", "folder", "--input", tmp_path / "in", "--output", tmp_path / "out", "--workers=1")
    code, out, err = status(capsys, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"dcgan-dist prepare: 1 of the first 4 images .*'bad.jpg' .*max_bad.*\n", err)
    code, out, err = status(capsys, *words, "--max-bad=0.3")
    assert code == 0
    assert err.count("\n") == 1
    assert "left out 1 inputs ('bad.jpg': it is no readable image" in err


def stored(client: Any) -> dict[str, str]:
    """Return name and MD5 of all objects in the bucket."""
    found = client.list_objects_v2(Bucket="images").get("Contents", [])
    return {entry["Key"].rpartition("/")[2]: entry["ETag"].strip('"') for entry in found}


def local(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_shards_are_sent_to_object_storage_and_found_there(tmp_path, capsys, client):
    words = ("--source=rooms", "--image-size=16", "--count=20", "--shard-size=10", "--workers=1")
    code, out, err = status(capsys, *words, "--output=s3://images/rooms")
    assert (code, err) == (0, "")
    assert "s3://images/rooms: 20 colour images of 16x16, 2 classes, in 2 shards" in out
    status(capsys, *words, "--output", tmp_path / "local")
    assert stored(client) == local(tmp_path / "local")
    code, out, _ = status(capsys, *words, "--output=s3://images/rooms")
    assert (code, "nothing to do" in out) == (0, True)
    code, _, err = status(capsys, *words, "--seed=1", "--output=s3://images/rooms")
    assert code == 2
    assert "seed there 0, now 1" in err
    code, _, err = status(capsys, *words, "--output=s3://no-bucket/rooms")
    assert (code, err.count("\n")) == (2, 1)
    client.put_object(Bucket="images", Key="thesis/chapter.txt", Body=b"1")
    code, _, err = status(capsys, *words, "--output=s3://images/thesis")
    assert (code, "holds other files" in err) == (2, True)


def test_shards_on_object_storage_are_checked_there(tmp_path, capsys, client):
    words = ("--source=rooms", "--image-size=16", "--count=20", "--shard-size=10", "--workers=1")
    status(capsys, *words, "--output=s3://images/rooms")
    verify = ("--verify=s3://images/rooms", "--workers=1")
    assert status(capsys, *verify) == (0, "s3://images/rooms: 20 images in 2 shards are intact\n", "")
    tar = bytearray(client.get_object(Bucket="images", Key="rooms/rooms-000001.tar")["Body"].read())
    tar[600] ^= 1
    client.put_object(Bucket="images", Key="rooms/rooms-000001.tar", Body=bytes(tar))
    client.delete_object(Bucket="images", Key="rooms/rooms-000000.index")
    code, out, err = status(capsys, *verify)
    assert code == 1
    assert [line.split(" (")[0] for line in out.splitlines()] == [
        "rooms-000000.index: it cannot be read",
        "rooms-000001.tar: byte 512: image 0",
    ]
    assert "is damaged (2 findings)" in err


@pytest.mark.parametrize("kind", ["rooms", "archive"])
def test_an_interrupted_set_on_object_storage_continues_from_the_finished_shards(tmp_path, client, kind):
    source: Source = room_source(50)
    if kind == "archive":
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for number in range(50):
                archive.writestr(f"{number}.png", encode(np.full((16, 16, 3), number, np.uint8), "png"))
        source = open_source("folder", tmp_path / "in.zip")
    recipe, url = Recipe(image_size=16, shard_size=10, name="set"), "s3://images/set"
    write_shards(source, recipe, tmp_path / "whole")

    def stop(done: int, share: float, bad: int, found: int) -> None:
        if len([name for name in stored(client) if re.fullmatch(r"set-\d+\.json", name)]) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, recipe, url, report=stop)
    assert "manifest.json" not in stored(client)
    before = stored(client)
    client.put_object(Bucket="images", Key="set/set-000001.tar", Body=b"half")
    found: list[int] = []
    write_shards(source, recipe, url, report=lambda *now: found.append(now[3]))
    assert found[-1] == (20 if kind == "rooms" else 50)
    assert stored(client) == local(tmp_path / "whole")
    assert before["set-000001.tar"] == stored(client)["set-000001.tar"]


def test_unfinished_work_on_object_storage_of_other_settings_is_refused_and_kept(tmp_path, client):
    def stop(done: int, share: float, bad: int, found: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(room_source(30), Recipe(image_size=16, shard_size=10, name="old"), "s3://images/set", report=stop)
    before = stored(client)
    assert "old-000000.tar" in before
    with pytest.raises(DataError, match=r"is unfinished \(name there 'old', now 'new'.* remove 's3://images/set'"):
        write_shards(room_source(30), Recipe(image_size=16, name="new"), "s3://images/set")
    assert stored(client) == before


def picture_of(number: int) -> bytes:
    """Return an encoded image; the images of all numbers have the same length."""
    return encode(np.full((8, 8, 3), number, np.uint8), "png").ljust(200, b"\0")


def archive_of(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def lmdb_of(folder: Path, images: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for name, content in images.items():
            transaction.put(name.encode(), content)


def folder_of(folder: Path, images: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


CHANGES = {
    "replaced": lambda images: images | {"b/7.png": picture_of(99)},
    "swapped": lambda images: images | {"a/2.png": images["b/7.png"], "b/7.png": images["a/2.png"]},
    "renamed": lambda images: {name.replace("b/7", "b/8"): content for name, content in images.items()},
    "added": lambda images: images | {"b/9.png": picture_of(9)},
    "removed": lambda images: {name: content for name, content in images.items() if name != "b/7.png"},
    "label renamed": lambda images: {name.replace("b/", "c/"): content for name, content in images.items()},
}


@pytest.mark.parametrize("kind", ["folder", "tar", "webdataset", "lsun"])
def test_a_changed_input_is_noticed_and_a_copy_of_an_input_is_the_same(tmp_path, capsys, kind):
    write = {"folder": folder_of, "lsun": lmdb_of}.get(kind, archive_of)
    name = "in.tar" if write is archive_of else "in"
    source = "folder" if kind == "tar" else kind
    images = {f"{'ab'[number % 2]}/{number}.png": picture_of(number) for number in range(1, 8)}
    given, out = tmp_path / name, tmp_path / "out"
    write(given, images)
    words = ("--source", source, "--output", out, "--image-size=16", "--workers=1")
    assert status(capsys, *words, "--input", given)[0] == 0
    copy = tmp_path / "elsewhere" / name
    copy.parent.mkdir()
    (shutil.copytree if given.is_dir() else shutil.copy)(given, copy)
    for path in (copy, *copy.rglob("*")):
        os.utime(path, (1, 1))
    if kind == "folder":
        (copy / ".DS_Store").write_text("x")
    assert "nothing to do" in status(capsys, *words, "--input", copy)[1]
    for change, changed in CHANGES.items():
        write(given, changed(images))
        code, _, err = status(capsys, *words, "--input", given)
        assert (change, code, err.count("\n")) == (change, 2, 1)
        assert ("the content of the input has changed" in err) or change in ("added", "removed")
    assert read_manifest(out).count == 7


def test_verify_reports_an_intact_set_or_lists_the_damage(tmp_path, capsys):
    out = tmp_path / "out"
    status(capsys, "--source", "rooms", "--output", out, "--image-size", 16, "--count", 20, "--workers=1")
    assert status(capsys, "--verify", out, "--workers=1") == (0, f"{out}: 20 images in 1 shards are intact\n", "")
    tar = out / "rooms-000000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    code, listed, err = status(capsys, "--verify", out, "--workers=1")
    assert code == 1
    assert listed.startswith("rooms-000000.tar: byte 512: image 0 (")
    assert listed.count("\n") == 1
    assert "is damaged (1 findings)" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source is missing"),
        (["--source", "rooms"], "output is missing"),
        (["--source", "pictures", "--output", "HERE/out"], "source is 'pictures'"),
        (["--source", "folder", "--output", "HERE/out"], "input is missing"),
        (["--source", "folder", "--input", "HERE/none", "--output", "HERE/out"], "HERE/none' does not exist"),
        (["--source", "folder", "--input", "HERE/empty", "--output", "HERE/out"], "HERE/empty' is an empty folder"),
        (["--source", "folder", "--input", "HERE/text", "--output", "HERE/out"], "unknown kind"),
        (["--source", "mnist", "--input", "HERE/empty", "--output", "HERE/out"], "is an empty folder"),
        (["--source", "rooms", "--output", "HERE/out", "--image-size", "48"], "expected one of 16, 28, 32"),
        (["--source", "rooms", "--output", "HERE/out", "--encoding", "tiff"], "encoding is 'tiff'"),
        (["--source", "rooms", "--output", "HERE/out", "--count", "0"], "count is 0"),
        (["--source", "rooms", "--output", "HERE/text/out", "--count", "5"], "cannot be written"),
        (["--source", "rooms", "--output", "/proc/out", "--count", "5"], "cannot be written"),
        (["--source", "rooms", "--output", "HERE/text", "--count", "5"], "is a file"),
        (["--source", "rooms", "--output", "HERE", "--count", "5"], "holds other files"),
        (["--source", "rooms", "--output", "nonsense://out"], "has the scheme 'nonsense'"),
        (["--source", "rooms", "--output", "HERE/out", "--name", "a/b"], "expected a plain file name"),
        (["--source", "rooms", "--outputs", "HERE/out"], "did you mean output?"),
        (["--verify", "HERE/none"], "there is no such folder"),
        (["--verify", "HERE/empty"], "holds no finished shards"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = status(capsys, *(word.replace("HERE", str(tmp_path)) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("dcgan-dist prepare: ")
    assert err.count("\n") == 1
    assert message.replace("HERE", str(tmp_path)) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_has_rate_share_and_time_left():
    assert describe("rooms", 4200, 0.21, 0, 2.0) == "rooms: 4,200 images, 21%, 2,100/s, 0:08 left"
    assert describe("rooms", 5200, 0.26, 0, 2.0, found=1000) == "rooms: 5,200 images, 26%, 2,100/s, 0:07 left"
    assert describe("folder", 10, 0.001, 2, 10.0) == "folder: 10 images, 0%, 1/s, 2:46:30 left, 2 unreadable"


def test_on_a_terminal_the_progress_is_one_line(tmp_path):
    leader, follower = pty.openpty()
    words = ["--source=rooms", f"--output={tmp_path / 'out'}", "--count=2000", "--shard-size=200", "--workers=1"]
    command = [sys.executable, "-m", "dcgan_dist.prepare", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, text=True, check=True)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert re.search(r"\rrooms: [\d,]+ images, \d+%, [\d,]+/s, 0:\d\d left", shown)
    assert "\n" not in shown
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif("DCGAN_DIST_DATA" not in os.environ, reason="DCGAN_DIST_DATA names no folder of real images")
def test_only_takes_the_images_of_a_folder_of_a_real_archive(tmp_path, capsys):
    rooms = Path(os.environ["DCGAN_DIST_DATA"], "rooms_128.tar.gz")
    words = ("--source=folder", f"--input={rooms}", f"--output={tmp_path / 'out'}", "--count=30", "--workers=1")
    assert status(capsys, *words, "--only", "bedroom")[0] == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.count, manifest.classes, manifest.made_with["only"]) == (30, (), "bedroom")
    assert status(capsys, *words, "--only", "garden")[0] == 2


def test_missing_and_truncated_shards_are_made_again_and_the_others_stay(tmp_path, capsys):
    arguments = ["--source", "rooms", "--count", "30", "--shard_size", "10", "--image_size", "16", "--workers", "1"]
    out = tmp_path / "out"
    assert main([*arguments, "--output", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    untouched = (out / "rooms-000001.tar").stat().st_mtime_ns
    (out / "rooms-000000.tar").unlink()
    (out / "rooms-000002.tar").write_bytes(before["rooms-000002.tar"][:5000])
    capsys.readouterr()
    assert main([*arguments, "--output", str(out)]) == 0
    assert "made 2 missing or cut shards again" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "rooms-000001.tar").stat().st_mtime_ns == untouched


def test_shards_that_their_source_no_longer_has_are_not_repaired_and_stay(tmp_path, capsys):
    arguments = ["--source", "rooms", "--count", "20", "--shard_size", "10", "--image_size", "16", "--workers", "1"]
    out = tmp_path / "out"
    assert main([*arguments, "--output", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0]["digest"] = "0" * 16
    (out / "manifest.json").write_text(json.dumps(manifest))
    cut = (out / "rooms-000000.tar").read_bytes()[:5000]
    (out / "rooms-000000.tar").write_bytes(cut)
    names = set(os.listdir(out))
    assert main([*arguments, "--output", str(out)]) == 2
    assert "does not give the images of rooms-000000.tar any more" in capsys.readouterr().err
    assert (out / "rooms-000000.tar").read_bytes() == cut
    assert set(os.listdir(out)) == names


def test_deduplicated_shards_are_not_a_webdataset_source(tmp_path, capsys):
    out = tmp_path / "out"
    made = ["--source", "rooms", "--count", "20", "--image_size", "16", "--workers", "1", "--output", str(out)]
    assert main(made) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["keep"] = {"file": "keep.bits", "count": 19, "digest": "0" * 16}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(["--source", "webdataset", "--input", str(out), "--output", str(tmp_path / "again")]) == 2
    assert "de-duplicated set, whose keep-list would be lost" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
