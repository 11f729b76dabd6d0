"""The images of a folder: found by content, through links, and labelled as requested."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcgan_dist import prepare, train
from dcgan_dist.data import images, spool
from dcgan_dist.data.manifest import Manifest
from dcgan_dist.data.sources import base


def picture(path: Path, kind: str = "PNG", shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def made(source: Path, output: Path, *words: str) -> Manifest:
    given = ["--source=folder", f"--input={source}", f"--output={output}", "--image-size=16", "--workers=1"]
    assert prepare.main([*given, *words]) == 0
    return Manifest.from_json((output / "manifest.json").read_bytes(), "manifest.json")


def test_the_content_decides_what_is_an_image_and_other_files_are_named(tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    for number, name in enumerate(["a.jfif", "b.jpeg_large", "c", "d.PNG", "e.dat"]):
        picture(pictures / name, "JPEG" if number < 3 else "PNG", number)
    picture(pictures / "f.tif", "TIFF")
    (pictures / "g.weights").write_bytes(b"something else")
    (pictures / "labels.csv").write_text("a,1")
    manifest = made(pictures, tmp_path / "out")
    assert manifest.count == 6
    assert [(entry["input"], entry["reason"]) for entry in manifest.skipped] == [("g.weights", "it is not an image")]


def test_links_to_folders_and_files_are_followed_and_loops_are_named(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"real/{'cat' if number < 2 else 'dog'}/{number}.png", shade=number)
    subset = tmp_path / "subset"
    subset.mkdir()
    for name in ("cat", "dog"):
        (subset / name).symlink_to(tmp_path / "real" / name)
    (subset / "cat/again").symlink_to(subset)
    (tmp_path / "real/dog/up").symlink_to(tmp_path / "real/cat")
    (tmp_path / "real/cat/down").symlink_to(tmp_path / "real/dog")
    manifest = made(subset, tmp_path / "out", "--max-bad=1")
    assert manifest.count >= 4
    assert {"cat", "dog"} <= set(manifest.classes)
    assert any("link back" in entry["reason"] for entry in manifest.skipped)


def test_a_folder_of_which_nothing_can_be_taken_is_no_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes").write_text("no picture")
    words = ["--source=folder", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--workers=1"]
    assert prepare.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'notes' (it is not an image)" in said
    assert not (tmp_path / "out").exists()


def test_labels_are_the_first_folder_the_last_or_none_and_hashes_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(["bed/0/2", "bed/1/f", "chair/a/3", "chair/0/f"]):
        picture(tmp_path / f"in/{name}/x.png", shade=number)
    assert made(tmp_path / "in", tmp_path / "last").classes == ("2", "3", "f")
    assert "--labels none" in capsys.readouterr().err
    assert made(tmp_path / "in", tmp_path / "first", "--labels=first").classes == ("bed", "chair")
    assert made(tmp_path / "in", tmp_path / "none", "--labels=none").classes == ()
    assert "--labels" not in capsys.readouterr().err
    given = ["--source=folder", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'none'}", "--image-size=16"]
    assert prepare.main([*given, "--labels=first"]) == 2  # made with other settings
    assert prepare.main([*given, "--labels=middle"]) == 2


def test_the_last_line_says_what_was_used_left_out_and_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        Image.fromarray(np.full((60, 200, 3), number, np.uint8)).save(tmp_path / f"in/{number}.png")
    for name in ("notes.txt", "more.txt", "nested.zip", "thing.weights"):
        (tmp_path / "in" / name).write_text("no picture")
    made(tmp_path / "in", tmp_path / "out")
    (line,) = capsys.readouterr().out.splitlines()
    assert ": 4 colour images of 16x16, 0 classes, in 1 shards, made in " in line
    assert "; left out 3 (not images by their names: 2 .txt, 1 .zip), 1 (it is not an image); " in line
    assert line.endswith("; 70.0% of each cut off on average to make it square (--fit pad or stretch keeps all)")
    for fit in ("pad", "stretch"):
        made(tmp_path / "in", tmp_path / fit, f"--fit={fit}")
        assert capsys.readouterr().out.endswith("; nothing cut off\n")
    given = ["--source=folder", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'pad'}", "--image-size=16"]
    assert prepare.main(given) == 2
    assert "(fit there 'pad', now None)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "in.tar.gz", "in.zip"])
def test_how_much_is_cut_off_and_dark_is_known_after_an_interruption(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(np.full((20, 40), 100 * number, np.uint16)).save(folder / f"{number}.png")
    source = folder if kind == "folder" else tmp_path / kind
    archive(folder, source)
    words = ["--source=folder", f"--input={source}", f"--output={tmp_path / 'out'}", "--image-size=16", "--workers=1"]
    decoded, whole = [], images.decode_fitted

    def stop_at_the_eighth(content: bytes, target: images.Target):
        decoded.append(content)
        if len(decoded) == 8:
            raise KeyboardInterrupt
        return whole(content, target)

    with monkeypatch.context() as patch:
        patch.setattr(base, "decode_fitted", stop_at_the_eighth)
        patch.setattr(spool, "_BLOCK_ITEMS", 3)
        patch.setattr(spool, "_CHUNK_ITEMS", 3)
        assert prepare.main([*words, "--shard-size=3", "--grey"]) == 130
    manifest = made(source, tmp_path / "out", "--shard-size=3", "--grey")
    assert len(decoded) == 8
    assert manifest.remarks == {"cut": 6_000_000, "profiles": 0, "deep": 12, "highest": 1100, "over": 0}
    assert manifest == made(source, tmp_path / "again", "--shard-size=3", "--grey")


def archive(folder: Path, target: Path) -> None:
    """Pack the files of a folder as the target's name says; a folder stays as it is."""
    if target.suffix in (".zip", ".dat"):
        with zipfile.ZipFile(target, "w") as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, path.name)
    elif target != folder:
        mode = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(target.suffix, "w")
        with tarfile.open(target, mode) as packed:
            for path in sorted(folder.iterdir()):
                packed.add(path, path.name)


def test_dark_pictures_of_16_bits_are_pointed_out_with_the_setting_that_lights_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(np.full((20, 20), 4095 - number, np.uint16)).save(tmp_path / f"in/{number}.png")
    made(tmp_path / "in", tmp_path / "dark", "--grey")
    assert "3 images of 16 bits are dark: their highest value is 4,095 of 65,535; --white-value 4095 makes" in (
        capsys.readouterr().err
    )
    made(tmp_path / "in", tmp_path / "light", "--grey", "--white-value=4095")
    assert capsys.readouterr().err == ""
    made(tmp_path / "in", tmp_path / "over", "--grey", "--white-value=4094")
    assert "1 images have values above white_value, up to 4,095, which became white too" in capsys.readouterr().err
    for bad in ("0", "-5", "nan", "inf", "much"):
        given = ["--source=folder", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'bad'}"]
        assert prepare.main([*given, f"--white-value={bad}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "white" in said
        assert not (tmp_path / "bad").exists()


def test_profiles_that_cannot_be_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        shade = Image.fromarray(np.full((20, 20, 3), number, np.uint8))
        shade.save(tmp_path / f"in/{number}.png", icc_profile=b"x" * 200 if number else None)
    made(tmp_path / "in", tmp_path / "out")
    assert "2 images have a colour profile that cannot be used: their colours are taken as sRGB" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["a", "a.dat", "a.tar", "a.gz", "a.bz2", "a.xz", "a.jpg"])
def test_the_content_decides_the_kind_of_an_archive_not_its_name(tmp_path: Path, name: str) -> None:
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", shade=number)
    target = tmp_path / name
    archive(tmp_path / "in", target)
    assert made(target, tmp_path / "out").count == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "is a 7z archive, which is not read: extract it, and name the folder"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(600), "is a RAR archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed with zstd"),
        (b"something else", "is of an unknown kind: take a folder, .zip, .tar, .tar.gz"),
    ],
)
def test_an_archive_that_is_not_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "in").write_bytes(content)
    given = ["--source=folder", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    assert prepare.main(given) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line


def test_members_of_a_zip_with_a_password_or_an_unknown_compression_are_named_in_plain_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", shade=number)
    archive(tmp_path / "in", tmp_path / "in.zip")
    whole = (tmp_path / "in.zip").read_bytes()
    # In a member's header its flags stand 6 bytes in and its method 8; in the directory 8 and 10.
    for name, at, value in (("locked", 0, 1), ("odd", 2, 93)):
        content = bytearray(whole)
        for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            place = content.index(magic) + flags + at
            content[place : place + 2] = value.to_bytes(2, "little")
        (tmp_path / f"{name}.zip").write_bytes(content)
        manifest = made(tmp_path / f"{name}.zip", tmp_path / name, "--max-bad=0.5")
        assert manifest.count == 2
        (entry,) = manifest.skipped
        assert entry["input"] == "0.png"
        expected = (
            "it has a password: extract the zip" if name == "locked" else "in a way (method 93) that is not known"
        )
        assert expected in entry["reason"]


def test_links_in_archives_count_as_lost_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        picture(tmp_path / f"in/{number}.png", shade=number)
    (tmp_path / "in/4.png").symlink_to("0.png")
    (tmp_path / "in/readme.txt").symlink_to("0.png")  # no picture by its name
    archive(tmp_path / "in", tmp_path / "in.tar")
    given = ["--source=folder", f"--input={tmp_path / 'in.tar'}", f"--output={tmp_path / 'out'}", "--image-size=16"]
    assert prepare.main(given) == 2
    assert "such as '4.png' (it is a link): more than max_bad (0.01) allows" in capsys.readouterr().err
    manifest = made(tmp_path / "in.tar", tmp_path / "out", "--max-bad=0.2")
    assert (manifest.count, len(manifest.skipped)) == (4, 1)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_called_so_where_samples_are_read_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    picture(tmp_path / "0.png")
    with tarfile.open(tmp_path / "set.tar", mode) as packed:
        packed.add(tmp_path / "0.png", "0.png")
    tool = {"w:gz": "gunzip", "w:bz2": "bunzip2", "w:xz": "unxz"}[mode]
    given = [f"--input={tmp_path / 'set.tar'}", f"--output={tmp_path / 'out'}"]
    settings = [f"--data.path={tmp_path / 'set.tar'}", f"--run-dir={tmp_path / 'run'}", "--training.steps=1"]
    assert prepare.main(["--source=webdataset", *given]) == 2
    first = capsys.readouterr().err
    assert train.main([*settings, "--training.device=cpu"]) == 2
    for line in (first, capsys.readouterr().err):
        assert line.count("\n") == 1
        assert "is compressed (" in line
        assert f"run `{tool}` on it" in line
