"""Object storage on this machine, for tests."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@pytest.fixture
def client(monkeypatch) -> Iterator[Any]:
    """Start object storage on this machine, with a bucket `images`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # they remember the address of an earlier test
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    yield client
    for entry in client.list_objects_v2(Bucket="images").get("Contents", []):  # a new server has what an old one had
        client.delete_object(Bucket="images", Key=entry["Key"])
    client.close()
    server.stop()
