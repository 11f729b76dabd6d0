"""A folder has the same interface on a disk, on S3, and on other object storage."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.storage.folder import Folder, check_writable, folder_at
from tests.runs.conftest import s3_server

__all__ = ["s3_server"]


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        (tmp_path / "a folder").mkdir()
        return folder_at(tmp_path / "a folder")
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return folder_at(f"s3://results/{os.urandom(4).hex()}")
    return folder_at(f"memory://{os.urandom(4).hex()}/folder")


def test_what_is_written_is_read(folder: Folder, tmp_path: Path) -> None:
    folder.write("a.json", b"1")
    folder.write("sub/b.bin", b"22")
    with folder.new("c.bin") as file:
        file.write(b"333")
    (tmp_path / "source").write_bytes(b"4444")
    folder.put("sub/d.bin", tmp_path / "source")
    contents = {name: folder.read(name) for name in ("a.json", "sub/b.bin", "c.bin", "sub/d.bin")}
    assert list(contents.values()) == [b"1", b"22", b"333", b"4444"]
    assert folder.names() == {"a.json", "c.bin", "sub"}
    assert list(folder.versions()) == ["a.json", "c.bin", "sub/b.bin", "sub/d.bin"]
    assert list(folder.versions("sub")) == ["sub/b.bin", "sub/d.bin"]
    with folder.open("sub/d.bin") as memory:
        assert bytes(memory) == b"4444"
    assert folder.fetch("sub/d.bin", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"4444"


def test_a_missing_file_is_reported_as_missing(folder: Folder, tmp_path: Path) -> None:
    assert folder.get("none") is None
    assert not folder.fetch("none", tmp_path / "target")
    assert folder.names() == set()
    assert folder.versions() == folder.versions("sub") == {}
    with pytest.raises(DataError, match="there is no file"):
        folder.read("none")
    with pytest.raises(DataError, match="there is no file"), folder.open("none"):
        pass
    folder.remove("none")


def test_a_version_changes_when_the_file_does(folder: Folder) -> None:
    folder.write("a", b"1")
    before = folder.versions()["a"]
    folder.write("a", b"22")
    assert folder.versions()["a"] != before


def test_files_are_renamed_and_removed(folder: Folder) -> None:
    folder.write("a", b"1")
    folder.rename("a", "b")
    assert (folder.get("a"), folder.get("b")) == (None, b"1")
    folder.remove("b", "a")
    assert folder.get("b") is None


def test_an_incompletely_written_file_does_not_appear(folder: Folder) -> None:
    def fail(name: str) -> None:
        with folder.new(name) as file:
            file.write(b"half")
            raise ZeroDivisionError

    folder.write("a", b"old")
    for name in ("a", "b"):
        with pytest.raises(ZeroDivisionError):
            fail(name)
    assert (folder.read("a"), folder.names()) == (b"old", {"a"})


def test_an_update_that_is_refused_changes_nothing(folder: Folder) -> None:
    folder.write("a", b"old")

    def refuse(content: bytes | None) -> bytes:
        raise DataError(f"no, there is {content!r}")

    with pytest.raises(DataError, match="no, there is b'old'"):
        folder.update("a", refuse)
    assert folder.read("a") == b"old"


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_of_updates_at_the_same_time_none_is_lost(folder: Folder) -> None:
    def add(number: int) -> None:
        folder.update("numbers", lambda content: (content or b"") + b"%d " % number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    assert sorted(map(int, folder.read("numbers").split())) == list(range(20))


def test_another_process_can_use_it(folder: Folder) -> None:
    again = pickle.loads(pickle.dumps(folder))
    assert (again, hash(again), again.location, again.path) == (folder, hash(folder), folder.location, folder.path)


def test_no_pipe_is_waited_for_and_nothing_too_large_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    folder = folder_at(tmp_path)
    found: list[str] = []

    def read() -> None:
        for name, most in (("pipe", None), ("large", 4)):
            with pytest.raises(StorageError) as caught:
                folder.get(name, most)
            found.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert ["is not a regular file" in found[0], "has 5 bytes, more than the 4" in found[1]] == [True, True]


def test_paths_and_file_urls_are_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_at("x") == folder_at(tmp_path / "x") == folder_at(f"file://{tmp_path}/x") == folder_at("y/../x")


@pytest.mark.parametrize("url", ["nothing://x", "zip::s3://a/b", "reference://x"])
def test_schemes_that_cannot_be_used_are_named(url: str) -> None:
    with pytest.raises(DataError, match="cannot be read: take a path"):
        folder_at(url)


def test_a_bucket_that_is_not_there_is_bad_input_whatever_is_done(s3_server: object) -> None:
    folder = folder_at("s3://no-such-bucket/run", patience=0)
    actions = (folder.names, folder.versions, lambda: folder.get("a"), lambda: folder.write("a", b""))
    for action in actions:
        with pytest.raises(DataError, match="does the bucket exist"):
            action()


def test_a_server_that_is_down_is_tried_again_and_then_a_failure(
    s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=r"cannot be written \(.*is its server up"):
        folder_at("s3://results/run", patience=0.3).write("a", b"1")
    with pytest.raises(StorageError, match="cannot be written"):
        check_writable("s3://results/run")
