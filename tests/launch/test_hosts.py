"""`doctor` on a real cluster, and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcgan_dist import doctor
from tests.launch.conftest import RAY, RayCluster, descendants

DOCTOR = [sys.executable, "-m", "dcgan_dist.doctor"]


def ask(cluster: RayCluster, *options: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address}
    return subprocess.run([*DOCTOR, *options], env=own, capture_output=True, text=True, timeout=100, check=False)


def test_every_host_of_a_cluster_examines_itself_and_a_frozen_one_is_named(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    words = [RAY, "start", "--address", ray_cluster.address, "--block", "--num-cpus", "999", "--disable-usage-stats"]
    words += ["--node-ip-address", "127.0.0.2", "--object-store-memory", "100000000"]
    own = {**os.environ, **ray_cluster.environment}
    second = subprocess.Popen(words, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        hosts: dict[str, list[dict[str, str]]] = {}
        while len(hosts) < 2:  # until the second has joined
            done = ask(ray_cluster, "--json", "--storage", str(tmp_path))
            assert done.returncode == 0, done.stderr
            hosts = json.loads(done.stdout)["hosts"]
        cores = [finding["found"] for found in hosts.values() for finding in found if finding["name"] == "cores"]
        assert sorted("Ray offers 999" in found for found in cores) == [False, True]

        raylets = [pid for pid in descendants(second.pid) if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
        os.kill(*raylets, signal.SIGSTOP)
        took: list[float] = []
        while len(took) < 3 and min(took, default=99) >= 15:  # a busy machine sometimes needs longer
            began = time.monotonic()
            done = ask(ray_cluster)
            took.append(time.monotonic() - began)
        assert min(took) < 15, took
        assert done.returncode == 1
        assert "fail  host  does not answer" in done.stdout
        assert done.stderr == "dcgan-dist doctor: will fail: host\n"
    finally:
        for pid in descendants(second.pid):
            os.kill(pid, signal.SIGKILL)
        second.kill()
        second.wait()
    while len(hosts) > 1:  # other tests need a cluster of one host
        hosts = json.loads(ask(ray_cluster, "--json").stdout)["hosts"]


def test_ray_is_not_started_if_it_could_not_open_its_files() -> None:
    code = "from dcgan_dist.command_line import run; from dcgan_dist.launch.connection import connected_cluster as c\n"
    code += "import sys; sys.exit(run(lambda _: c().__enter__(), 'test', []))"
    words = ["sh", "-c", 'ulimit -n 100; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("test: at most 100 open files: Ray needs 256 or more")
    assert done.stderr.endswith("; `python -m dcgan_dist doctor` says more\n")


def test_an_address_where_no_cluster_answers_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert doctor.main([]) == 1
    shown = capsys.readouterr()
    assert "fail  Ray cluster" in shown.out
    assert "127.0.0.1:9" in shown.out
    assert "will fail: Ray cluster" in shown.err


def test_the_address_file_of_a_dead_cluster_is_a_warning_that_says_how_to_remove_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:9\n")
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert "warn  Ray cluster" in shown
    assert f"`ray stop` removes {note}" in shown
