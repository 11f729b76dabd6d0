"""Inputs of `prepare` on object storage and web servers give the same images as a copy on this host."""

import functools
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcgan_dist.data.images import encode
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import open_source
from dcgan_dist.errors import DataError
from dcgan_dist.parallel import LocalPool
from dcgan_dist.prepare import main
from tests.object_storage import client

__all__ = ["client"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A folder of pictures, archives of it, and WebDataset tars."""
    folder = tmp_path / "inputs"
    for number in range(30):
        path = folder / "photos" / ("cats", "my dogs", "50% #1")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((16, 16, 3), number, np.uint8), "png"))
    (folder / "photos" / ".DS_Store").write_text("x")
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "photos"), kind, folder / "photos")
    for number in range(2):
        (folder / "tars").mkdir(exist_ok=True)
        with tarfile.open(folder / "tars" / f"w-{number:06d}.tar", "w") as tar:
            for image in sorted((folder / "photos" / "cats").iterdir()):
                tar.add(image, f"{number}{image.name}")
    return folder


@pytest.fixture
def server(inputs) -> Iterator[str]:
    """A web server with the inputs, which serves whole files only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(inputs))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def upload(client, folder: Path) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "images", str(path.relative_to(folder)))
    return "s3://images"


def made(kind: str, place: str, out: Path) -> dict[str, bytes]:
    """The shards of a source, without the manifest, which names the input."""
    source = open_source(kind, place)
    write_shards(source, Recipe(image_size=16, shard_size=7, encoding="raw"), out)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}


INPUTS = [
    ("folder", "photos"),
    ("folder", "photos.zip"),
    ("folder", "photos.tar"),
    ("folder", "photos.tar.gz"),
    ("webdataset", "tars"),
    ("webdataset", "tars/w-{000000..000001}.tar"),
    ("webdataset", "tars/w-000001.tar"),
]


@pytest.mark.parametrize(("kind", "name"), INPUTS)
def test_object_storage_gives_the_images_of_a_copy_here(tmp_path, inputs, client, kind, name):
    expected = made(kind, f"{inputs}/{name}", tmp_path / "here")
    assert made(kind, f"{upload(client, inputs)}/{name}", tmp_path / "there") == expected


@pytest.mark.parametrize(("kind", "name"), [entry for entry in INPUTS if entry[1] != "tars"])
def test_a_web_server_gives_the_images_of_a_copy_here(tmp_path, inputs, server, kind, name):
    expected = made(kind, f"{inputs}/{name}", tmp_path / "here")
    assert made(kind, f"{server}/{name}{'/' * (name == 'photos')}", tmp_path / "there") == expected


@pytest.mark.parametrize(("kind", "name"), INPUTS[:4])
def test_an_interrupted_run_continues_and_a_replaced_object_is_noticed(tmp_path, inputs, client, kind, name):
    url = f"{upload(client, inputs)}/{name}"
    source, recipe = open_source(kind, url), Recipe(image_size=16, shard_size=7, encoding="raw")

    def stop(done: int, share: float, bad: int, found: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, recipe, tmp_path / "out", report=stop)
    found: list[int] = []
    report = lambda *now: found.append(now[3])  # noqa: E731
    write_shards(open_source(kind, url), recipe, tmp_path / "out", pool=LocalPool(1), report=report)
    assert found[-1] > 0
    changed = encode(np.full((16, 16, 3), 99, np.uint8), "png")
    key = "photos/cats/0.png" if name == "photos" else name
    client.put_object(Bucket="images", Key=key, Body=changed)
    with pytest.raises(DataError, match="made with other settings"):
        write_shards(open_source(kind, url), recipe, tmp_path / "out")


def test_the_command_takes_a_url_and_does_nothing_the_second_time(tmp_path, inputs, client, capsys):
    words = ["--source=folder", f"--input={upload(client, inputs)}/photos", "--image-size=16", "--workers=1"]
    for told in ("30 colour images of 16x16, 3 classes", "nothing to do"):
        assert main([*words, f"--output={tmp_path / 'out'}"]) == 0
        assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source=folder --input=s3://images/none", "'s3://images/none' does not exist, or holds no files"),
        ("--source=folder --input=s3://images/none.zip", "there is no file 's3://images/none.zip'"),
        ("--source=folder --input=s3://images/tars/w-000000.zip", "is damaged, cut short or no zip"),
        ("--source=webdataset --input=s3://images/none/", "holds no .tar"),
        ("--source=webdataset --input=s3://images/none.tar", "there is no file 's3://images/none.tar'"),
        ("--source=cifar10 --input=s3://images/photos.zip", "copy the files of cifar10 to this host first"),
        ("--source=lsun --input=s3://images/photos", "copy the files of lsun to this host first"),
        ("--source=folder --input=what://images/photos", "has the scheme 'what', which cannot be read"),
        ("--source=folder --input=s3://images/photos --only=birds", "holds no image of birds"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, inputs, client, capsys, words, message):
    upload(client, inputs)
    client.put_object(Bucket="images", Key="tars/w-000000.zip", Body=b"no zip")
    assert main([*words.split(), f"--output={tmp_path / 'out'}", "--image-size=16", "--workers=1"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not {"out", ".out.unfinished"} & {path.name for path in tmp_path.iterdir()}
