import functools
import http.server
import os
import shutil
import tempfile
import threading
from contextlib import contextmanager

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import DataError, Unreachable
from dcgan_dist.storage import remote as remote_module
from dcgan_dist.storage.cache import _cache_without_home, cache_directory, file_digest
from dcgan_dist.storage.remote import join_url
from tests.data.fetching import fetch
from tests.data.shard_sets import make_set


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts requests, and can fail the first ones."""

    asked: list[str]
    failures: list[int]

    def do_GET(self):
        self.asked.append(self.path)
        if self.failures:
            self.send_error(self.failures.pop())
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, failures=()):
    """Serve a folder on the loopback interface; yield its URL and the list of requested paths."""
    handler = type("OfThisTest", (Handler,), {"asked": [], "failures": list(failures)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(remote_module, "FIRST_PATIENCE_S", 0.3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "set", [20, 11, 9], encoding="png")


def labels(dataset, batches=8, **settings):
    with ImageStream(dataset, seed=1, batch_size=10, **settings).iterate(0, batches) as found:
        return [batch.labels.tolist() for batch in found]


def test_shards_on_a_web_server_are_downloaded_once_and_then_read_without_it(shards, tmp_path):
    cache = tmp_path / "cache"
    with served(shards.folder) as (url, asked):
        remote = open_dataset(url, cache=cache)
        assert labels(remote) == labels(open_dataset(shards.folder))
        assert remote.digest == open_dataset(shards.folder).digest
        assert sorted(path for path in asked if path.endswith(".tar")) == [f"/{tar.name}" for tar in shards.tars]
        assert labels(open_dataset(url, cache=cache)) == labels(remote)
        assert sum(path.endswith(".tar") for path in asked) == 3
    again = open_dataset(url, cache=cache)
    assert labels(again) == labels(open_dataset(shards.folder))
    assert not list((cache / "shards").glob("*.part"))


def test_worker_processes_read_remote_shards(shards, tmp_path):
    with served(shards.folder) as (url, asked):
        remote = open_dataset(url, cache=tmp_path / "cache")
        assert labels(remote, workers=1) == labels(open_dataset(shards.folder))
        assert sum(path.endswith(".tar") for path in asked) == 3


def test_tars_without_a_manifest_are_read_from_a_web_server_and_then_without_it(shards, tmp_path):
    pattern = "set-{000000..000002}.tar"
    local = open_dataset(f"{shards.folder}/{pattern}", cache=tmp_path / "other")
    with served(shards.folder) as (url, _):
        remote = open_dataset(f"{url}/{pattern}", cache=tmp_path / "cache")
        assert labels(remote) == labels(local)
        assert remote.digest == local.digest
    assert labels(open_dataset(f"{url}/{pattern}", cache=tmp_path / "cache")) == labels(local)


def test_shards_in_s3_are_read(shards, tmp_path, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of the servers of other tests
        client = boto3.client("s3")
        client.create_bucket(Bucket="images")
        for file in shards.folder.iterdir():
            client.upload_file(str(file), "images", f"rooms/{file.name}")
        remote = open_dataset("s3://images/rooms", cache=tmp_path / "cache")
        assert labels(remote) == labels(open_dataset(shards.folder))
        with pytest.raises(DataError, match=r"there is no file 's3://images/nothing/manifest\.json'"):
            open_dataset("s3://images/nothing", cache=tmp_path / "cache")
    finally:
        server.stop()
    assert labels(open_dataset("s3://images/rooms", cache=tmp_path / "cache")) == labels(remote)


def test_a_failing_server_is_tried_again(shards, tmp_path):
    with served(shards.folder, failures=[500, 503, 502]) as (url, asked):
        file = shards.tars[0]
        found = fetch(f"{url}/{file.name}", tmp_path / "copy", tmp_path, digest=file_digest(file))
    assert found.read_bytes() == file.read_bytes()
    assert len(asked) == 4


def test_what_is_not_there_is_one_line_at_once(shards, tmp_path):
    with served(shards.folder) as (url, asked):
        with pytest.raises(DataError, match=r"there is no file 'http://.*/other/manifest\.json'") as error:
            open_dataset(f"{url}/other", cache=tmp_path)
        assert len(asked) == 1
    assert "\n" not in str(error.value)


def test_a_server_that_is_gone_is_one_line(tmp_path):
    with served(tmp_path) as (url, _):
        pass
    with pytest.raises(Unreachable, match=r"manifest\.json' cannot be read .*is its server up") as error:
        open_dataset(url, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_shard_damaged_at_its_source_gives_its_good_records_and_no_finished_download(shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards.folder, copy)
    record = shards.record(0, 4)
    content = bytearray((copy / "set-000000.tar").read_bytes())
    content[int(record["offset"]) + 20] ^= 1
    (copy / "set-000000.tar").write_bytes(content)
    with served(copy) as (url, _):
        remote = open_dataset(url, cache=tmp_path / "cache")
        batch = ImageStream(remote, seed=0, batch_size=40).read(0)
    assert len(batch.images) == 39
    assert [(damage.shard, damage.record) for damage in batch.damage] == [("set-000000.tar", 4)]
    assert not (tmp_path / "cache" / "shards" / f"{shards.manifest.shards[0].digest}-{len(content)}.tar").exists()


def test_an_unfinished_download_is_not_taken_for_a_file(shards, tmp_path):
    file = shards.tars[0]
    (tmp_path / "copy.part").write_bytes(b"the beginning")
    with served(shards.folder) as (url, _):
        found = fetch(f"{url}/{file.name}", tmp_path / "copy", tmp_path)
    assert found.read_bytes() == file.read_bytes()


def test_the_query_of_a_url_stays_at_its_end():
    assert join_url("https://host/a/b/?token=1", "x.tar") == "https://host/a/b/x.tar?token=1"
    assert join_url("s3://bucket", "x.tar") == "s3://bucket/x.tar"


@pytest.mark.parametrize("url", ["nonsense://a/b", "simplecache::s3://a/b", "reference://a/b", "pipe:cat http://a/b"])
def test_unknown_and_indirect_schemes_are_refused(url, tmp_path):
    with pytest.raises(DataError, match="which cannot be read") as error:
        open_dataset(url, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_the_cache_is_where_it_is_set_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "by variable"))
    assert cache_directory() == tmp_path / "by variable"
    assert cache_directory(tmp_path / "chosen") == tmp_path / "chosen"
    assert (tmp_path / "chosen").is_dir()


def test_without_a_home_that_can_be_written_the_cache_is_this_users_own_folder_for_temporary_files(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("DCGAN_DIST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _cache_without_home.cache_clear()
    own = tmp_path / f"dcgan_dist-{os.getuid()}"
    assert cache_directory() == cache_directory() == own
    assert own.stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"using '{own}'; data.cache or DCGAN_DIST_CACHE names another" in said
    # A folder that another user has created there first is not used.
    _cache_without_home.cache_clear()
    own.rmdir()
    own.symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"is another user's: set data\.cache"):
        cache_directory()


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data\.cache"):
        cache_directory(tmp_path / "file" / "cache")
    assert os.listdir(tmp_path) == ["file"]
