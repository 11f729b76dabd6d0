"""What of a folder is taken: by content, through links, and labelled as asked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcgan_dist import prepare
from dcgan_dist.data.manifest import Manifest


def picture(path: Path, kind: str = "PNG", shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def made(source: Path, output: Path, *words: str) -> Manifest:
    given = ["--source=folder", f"--input={source}", f"--output={output}", "--image-size=16", "--workers=1"]
    assert prepare.main([*given, *words]) == 0
    return Manifest.from_json((output / "manifest.json").read_bytes(), "manifest.json")


def test_an_image_is_told_by_its_content_and_what_is_none_is_named(tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    for number, name in enumerate(["a.jfif", "b.jpeg_large", "c", "d.PNG", "e.dat"]):
        picture(pictures / name, "JPEG" if number < 3 else "PNG", number)
    picture(pictures / "f.tif", "TIFF")
    (pictures / "g.weights").write_bytes(b"something else")
    (pictures / "labels.csv").write_text("a,1")
    manifest = made(pictures, tmp_path / "out")
    assert manifest.count == 6
    assert [(entry["input"], entry["reason"]) for entry in manifest.skipped] == [("g.weights", "it is no picture")]


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
    assert "'notes' (it is no picture)" in said
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
