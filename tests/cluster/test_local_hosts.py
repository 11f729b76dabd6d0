"""Several hosts on one machine, and a run over two of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY, options

PROJECT = Path(__file__).parents[2]


def why_not() -> str:
    """Return why network namespaces cannot be created here; "" if they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "several hosts need Linux and root"
    if any(shutil.which(tool) is None for tool in ("ip", "nsenter", "unshare", "setsid")):
        return "several hosts need iproute2 and util-linux"
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "this machine makes no network namespaces"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    make_bridge = ["unshare", "--net", "ip", "link", "add", "b0", "type", "bridge"]
    bridge = subprocess.run(make_bridge, capture_output=True, check=False)
    return "this machine makes no bridges" if bridge.returncode else ""


class Hosts:
    """Two hosts for this test only."""

    def __init__(self, checkout: Path = PROJECT, python: Path | str = sys.executable) -> None:
        self.name = f"dcgan-test-{uuid.uuid4().hex[:8]}"
        self.checkout, self.python = checkout, python

    def __call__(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOSTS_NAME": self.name, "PYTHON": str(self.python)}
        done = subprocess.run(
            [self.checkout / "cluster/local_hosts.sh", *map(str, words)],
            env=environment,
            cwd=self.checkout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def left(self) -> list[str]:
        """Return what is left of the hosts."""
        spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        folder = Path("/tmp", self.name)
        return [line for line in spaces.splitlines() if self.name in line] + [str(folder)] * folder.exists()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    made = Hosts()
    made("up", 2)
    yield made
    made("down")
    assert made.left() == []


def test_hosts_share_nothing_but_a_disk_to_read(hosts: Hosts) -> None:
    hosts("run-on", 1, "bash", "-c", "echo mine >/tmp/note; echo mine >/dev/shm/note; echo mine >$HOME/note")
    for path in ("/tmp/note", "/dev/shm/note", "$HOME/note", f"/tmp/{hosts.name}"):
        assert hosts("run-on", 2, "bash", "-c", f"test ! -e {path}").returncode == 0
    assert hosts("run-on", 2, "touch", PROJECT / "note", check=False).returncode != 0
    assert hosts("run-on", 1, "cat", PROJECT / "pyproject.toml").stdout == (PROJECT / "pyproject.toml").read_text()
    processes = hosts("run-on", 2, "ps", "-eo", "args").stdout
    assert "raylet" in processes
    assert "gcs_server" not in processes  # of host 1
    assert "127.0.1.1" in hosts("run-on", 2, "bash", "-c", "getent hosts $(hostname)").stdout


def test_training_runs_over_two_hosts_and_a_store(hosts: Hosts) -> None:
    settings = {**TINY, "name": "two", "cluster.workers": 2, "cluster.storage": "s3://runs", "training.steps": 20}
    command = ["python", "-m", "dcgan_dist.train", *options(settings)]
    log = hosts("run", "ray", "job", "submit", "--working-dir", ".", "--", *command).stdout
    assert "on 2 x cpu" in log
    assert "step 20/20" in log
    read = "import s3fs; print(s3fs.S3FileSystem().cat('runs/two/status.json').decode())"
    status = json.loads(hosts("run-on", 2, "python", "-c", read).stdout)
    assert (status["status"], status["step"], status["images_seen"]) == ("finished", 20, 20 * 8)
    assert hosts("run", "bash", "-c", "ls -d ~/.cache/dcgan_dist")  # each made its own rooms
    assert hosts("run-on", 2, "bash", "-c", "ls -d ~/.cache/dcgan_dist")


def test_cable_can_be_pulled_and_plugged_in_again(hosts: Hosts) -> None:
    reach = ["bash", "-c", "exec 3<>/dev/tcp/10.77.0.1/6379"]
    hosts("run-on", 2, "timeout", 5, *reach)
    hosts("cut", 2)
    assert hosts("run-on", 2, "timeout", 1, *reach, check=False).returncode != 0
    hosts("join", 2)
    hosts("run-on", 2, "timeout", 5, *reach)
    assert "raylet" in hosts("run-on", 2, "ps", "-eo", "args").stdout


def test_mistakes_are_one_line(hosts: Hosts) -> None:
    for words, says in ((("up", 2), "are up already"), (("run-on", 9, "true"), "no host 9"), (("up", "x"), "up x")):
        done = hosts(*words, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert says in done.stderr


def test_a_checkout_and_an_environment_below_tmp_are_seen_there_and_cannot_be_written(hosts: Hosts) -> None:
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("this environment lies below /tmp itself, so that every other test here shows it")
    with (
        tempfile.TemporaryDirectory(prefix="check out ", dir="/tmp") as name,
        tempfile.TemporaryDirectory(prefix="environment ", dir="/tmp") as environment,
    ):
        shutil.copytree(PROJECT / "cluster", Path(name, "cluster"))
        programs = Path(environment, "bin")
        programs.mkdir()
        Path(name, ".venv").symlink_to(environment)
        for program in ("python", "ray", "moto_server"):
            text = f'#!/bin/sh\nexec "{Path(sys.executable).with_name(program)}" "$@"\n'
            programs.joinpath(program).write_text(text)
            programs.joinpath(program).chmod(0o755)
        own = Hosts(Path(name), Path(name, ".venv/bin/python"))
        try:
            own("up", 1)
            assert "slurm.sh" in own("run", "ls", "cluster").stdout
            assert own("run", "python", "-c", "import ray; print(ray.__version__)").returncode == 0
            assert "Read-only" in own("run", "touch", "cluster/new", check=False).stderr
        finally:
            own("down")
        assert own.left() == []
        assert Path(name, "cluster/slurm.sh").exists()
