"""Real processes that write runs, and a real object store on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from dcgan_dist.storage import folder

PREAMBLE = """
import os, sys, time
from pathlib import Path
import numpy as np
from dcgan_dist.errors import DcganDistError
from dcgan_dist.runs.writer import open_run
"""

StartWriter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_writer() -> Iterator[StartWriter]:
    """Return a function that runs Python code in another process, with a readable standard output."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def s3_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThreadedMotoServer]:
    """Start an S3 server, and configure this process and its children to use it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    scratch = str(tmp_path_factory.mktemp("scratch"))
    monkeypatch.setenv("TMPDIR", scratch)
    monkeypatch.setattr(tempfile, "tempdir", scratch)
    monkeypatch.setattr(folder, "PATIENCE_S", 0.3)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    # The servers of one process share their objects.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    boto3.client("s3").create_bucket(Bucket="results")
    yield server
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a new location: a folder with a space in its name, or, with the parameter `s3`, a URL."""
    if getattr(request, "param", "local") == "local":
        return str(tmp_path / "my run")
    request.getfixturevalue("s3_server")
    return f"s3://results/runs/{os.urandom(4).hex()}"
