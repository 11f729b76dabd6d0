"""Public and private buckets: requests with and without credentials."""

import http.server
import threading
import time
from collections.abc import Iterator

import fsspec.config
import pytest
import s3fs

from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.sources import open_source
from dcgan_dist.errors import StorageError, Unreachable
from dcgan_dist.prepare import main as prepare
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.storage.remote import list_tree, list_url, persist, read_url
from tests.object_storage import client

__all__ = ["client"]


@pytest.fixture
def without_credentials(client, monkeypatch, tmp_path):
    """Make this host have no credentials."""

    def forget() -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "cache"))
        s3fs.S3FileSystem.clear_instance_cache()

    return forget


def test_a_public_bucket_is_read_without_credentials(client, without_credentials, tmp_path):
    assert (
        prepare(["--source=rooms", "--count=20", "--image-size=16", "--workers=1", f"--output={tmp_path / 'a'}"]) == 0
    )
    for path in (tmp_path / "a").iterdir():
        client.put_object(Bucket="images", Key=f"set/{path.name}", Body=path.read_bytes(), ACL="public-read")
    client.put_bucket_acl(Bucket="images", ACL="public-read")
    without_credentials()
    dataset = open_dataset("s3://images/set")
    assert dataset.count == len(dataset.labels()) == 20
    assert len(list_tree("s3://images/set")) == len(list_url("s3://images/set")) == 3
    assert folder_at("s3://images/set").read("manifest.json") == (tmp_path / "a" / "manifest.json").read_bytes()
    assert len(folder_at("s3://images/set").names()) == len(folder_at("s3://images/set").versions()) == 3
    assert sum(1 for _ in open_source("webdataset", "s3://images/set").items()) == 20


def test_a_bucket_that_is_not_public_names_the_credentials_that_are_missing(client, without_credentials):
    client.put_bucket_acl(Bucket="images", ACL="private")
    client.put_object(Bucket="images", Key="mine.txt", Body=b"mine")
    without_credentials()
    for error, read in (
        (Unreachable, lambda: read_url("s3://images/mine.txt")),
        (StorageError, lambda: folder_at("s3://images").get("mine.txt")),
    ):
        with pytest.raises(error, match="asked without credentials, so set AWS_ACCESS_KEY_ID") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.fixture
def unsigned_only(monkeypatch) -> Iterator[None]:
    """A bucket that refuses the credentials of this host, and needs none."""

    class Bucket(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"" if self.headers.get("Authorization") else b"hello"
            self.send_response(200 if body else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815 the name of the method

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        server.shutdown()
        thread.join()


def test_a_public_bucket_that_refuses_the_credentials_can_be_read_as_the_message_advises(unsigned_only, monkeypatch):
    with pytest.raises(Unreachable, match=r"without any where FSSPEC_S3_ANON=true is set$"):
        read_url("s3://images/a.txt")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    fsspec.config.set_conf_env(fsspec.config.conf)  # as at the start of a process
    assert read_url("s3://images/a.txt") == b"hello"


@pytest.mark.parametrize(("tries", "works"), [(4, True), (3, False)])
def test_what_takes_longer_to_fail_than_the_patience_is_tried_again_all_the_same(tries, works):
    calls = []

    def upload(_storage, path):
        calls.append(path)
        time.sleep(0.15)
        if len(calls) < 4:
            raise ConnectionError("it broke off")
        return "sent"

    if works:
        assert persist("memory://bucket/large", upload, 0.1, tries=tries) == "sent"
        assert len(calls) == 4
    else:
        with pytest.raises(Unreachable, match="it broke off"):
            persist("memory://bucket/large", upload, 0.1, tries=tries)
        assert len(calls) == 3
