import gzip
import hashlib
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from dcgan_dist.config import override
from dcgan_dist.data import downloads
from dcgan_dist.data.downloads import download
from dcgan_dist.data.preparation import prepare
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.data.sources import open_source
from dcgan_dist.errors import ConfigError, DataError
from dcgan_dist.parallel import LocalPool
from dcgan_dist.storage import remote
from tests.flaky_server import FlakyServer


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Small files instead of MNIST's test images, in a mirror's folders, with known sizes and checksums."""
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    contents = (gzip.compress(idx(images)), gzip.compress(idx(np.arange(300, dtype=np.uint8) % 10)))
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    folder = tmp_path / "mirror" / "mnist"
    folder.mkdir(parents=True)
    files = []
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
        files.append(downloads._File(name, len(content), hashlib.md5(content).hexdigest()))
    origin = downloads._Origin("http://127.0.0.1:1/mnist", {"test": tuple(files)})
    monkeypatch.setitem(downloads._ORIGINS, "mnist", origin)
    monkeypatch.setattr(remote, "PATIENCE_S", 1.0)
    return tmp_path / "mirror"


@pytest.fixture
def server(official):
    server = FlakyServer(official)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "downloads").rglob("*") if path.is_file())


def test_what_was_downloaded_is_what_the_source_takes_and_is_not_asked_for_again(server, cache):
    place = download("mnist", "test", cache, base=server.url)
    assert len(list(open_source("mnist", place, split="test").items())) == 300
    assert place == cache / "downloads" / "mnist"
    asked = len(server.asked)
    assert download("mnist", "test", cache, base=server.url) == place
    assert len(server.asked) == asked


def test_a_server_that_breaks_off_and_fails_costs_retries_alone(server, cache):
    server.drop, server.first_failures = 0.9, [500, 503]
    download("mnist", "test", cache, base=server.url)
    assert len(left(cache)) == 2
    assert any(part for _, _, part in server.asked)  # it continued where it had stopped


def test_a_mirror_can_be_named_by_the_environment(server, cache, monkeypatch):
    monkeypatch.setenv(downloads.MIRROR_VARIABLE, server.url)
    assert download("mnist", "test", cache).is_dir()


def test_a_file_of_another_content_is_refused_and_not_kept(server, official, cache):
    path = official / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    for other in (content[:-1] + b"x", content[:-1], content + b"more"):
        path.write_bytes(other)
        with pytest.raises(DataError, match=r"by hand to .*/t10k-labels-idx1-ubyte.gz, or give --input") as error:
            download("mnist", "test", cache, base=server.url)
        assert server.url in str(error.value)
        assert "\n" not in str(error.value)
        assert left(cache) == ["t10k-images-idx3-ubyte.gz"]
    path.write_bytes(content)
    download("mnist", "test", cache, base=server.url)
    assert len(left(cache)) == 2


def test_a_damaged_file_in_the_cache_is_replaced_and_one_put_there_by_hand_is_used(server, official, cache):
    place = download("mnist", "test", cache, base=server.url)
    images = place / "t10k-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:100])
    download("mnist", "test", cache, base=server.url)
    assert images.read_bytes() == whole
    server.down = True
    download("mnist", "test", cache, base=server.url)


def test_an_address_out_of_reach_is_one_line_that_names_it_and_the_way_out(official, server, cache):
    for base in (None, server.url):
        server.down = True
        with pytest.raises(DataError, match="give --input") as error:
            download("mnist", "test", cache, base=base)
        address = "http://127.0.0.1:1/mnist/t10k-images" if base is None else f"{server.url}/mnist/t10k-images"
        assert address in str(error.value)
        assert "\n" not in str(error.value)
        assert left(cache) == []


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [("lsun", "train", "can be downloaded"), ("cifar10", "extra", "train and test"), ("rooms", "test", "--input")],
)
def test_what_cannot_be_downloaded_is_named(cache, kind, split, message):
    with pytest.raises(DataError, match=message):
        download(kind, split, cache)
    assert not any(cache.iterdir())


def test_every_official_file_has_an_address_a_length_and_a_checksum():
    for origin in downloads._ORIGINS.values():
        assert origin.url.startswith(("https://", "http://"))
        for files in origin.splits.values():
            for file in files:
                assert len(bytes.fromhex(file.md5)) == 16
                assert file.size > 1000
                assert os.path.basename(file.name) == file.name


def test_prepare_downloads_its_source(server, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(cache))
    monkeypatch.setenv(downloads.MIRROR_VARIABLE, server.url)
    config = PrepareConfig(source="mnist", split="test", download=True, output=str(tmp_path / "shards"))
    prepare(config, LocalPool(1))
    assert "300 grey images of 28x28, 10 classes" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give one of them"):
        prepare(override(config, {"input": str(cache)}), LocalPool(1))
