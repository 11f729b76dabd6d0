"""Which Ray cluster is used, and what is said where none can be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcgan_dist.errors import ClusterError
from dcgan_dist.launch import connection
from dcgan_dist.parallel import usable_cores
from tests.conftest import TINY, environment, options
from tests.launch.conftest import RayCluster, free_ports


@pytest.fixture
def server() -> Iterator[Callable[[bytes | None], str]]:
    """Starts a program that answers so to whoever connects, or with None never; its address."""
    listeners = []

    def start(answer: bytes | None) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with listener.accept()[0] as line:
                line.recv(64)
                if answer is not None:
                    line.sendall(answer)
                else:
                    line.recv(64)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", "127.0.0.1:0", "127.0.0.1:70000", ":6379"])
def test_an_address_of_another_form_is_no_address(address: str) -> None:
    assert connection._why_unusable(address) == "it is not of the form HOST:PORT"


def test_a_port_that_nothing_listens_at_another_program_and_a_silent_one_are_no_cluster(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.5)
    assert connection._why_unusable(f"127.0.0.1:{free_ports(1)[0]}") == "Connection refused"
    assert connection._why_unusable(server(b"HTTP/1.1 400 Bad Request\r\n\r\n")) == "another program answers there"
    assert connection._why_unusable(server(b"")) == "another program answers there"
    begun = time.monotonic()
    assert connection._why_unusable(server(None)) == "no answer within 0.5 s"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere.invalid:6379", "no Ray cluster answers"),
        ("head", "HOST:PORT"),
        ("ray://127.0.0.1:10001", "of Ray's client"),
        ("http://127.0.0.1:8265", "ray job submit"),
    ],
)
def test_a_useless_ray_address_is_named_with_the_way_out(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=says) as caught, connection.connected_cluster():
        pass
    assert repr(address) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dead_cluster_that_ray_start_left_behind_is_named_and_one_of_our_own_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(connection, "LONGEST_FOLDER", 200)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_ports(1)[0]}")
    assert connection._of_this_machine() == {"address": "local", "num_cpus": usable_cores()}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is dead (Connection refused)" in said
    assert str(tmp_path / "ray/ray_current_cluster") in said


@pytest.mark.parametrize("name", ["x" * 100, "a b", "ä", "nothing/there"])
def test_where_ray_cannot_keep_its_sockets_in_tmpdir_they_go_to_a_short_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").write_text("a file, where a folder would be")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    if len(name) < 100:
        monkeypatch.setattr(connection, "LONGEST_FOLDER", 200)
    folder = connection._of_this_machine()["_temp_dir"]
    assert folder == os.environ["TMPDIR"] == f"/tmp/ray-{os.getuid()}"


def test_a_ray_tmpdir_that_will_not_do_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR is '.*x'.*at most 36 plain characters"):
        connection._of_this_machine()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_elses_folder_is_left_alone() -> None:
    code = (
        "import os; os.setgid(65534); os.setuid(65534); os.environ.pop('TMPDIR', None)\n"
        "from pathlib import Path; from dcgan_dist.launch import connection\n"
        "print(connection._is_fit(Path('/usr/ray')), connection._folder_of_our_own())"
    )
    own = {"PYTHONPATH": str(Path(connection.__file__).parents[2]), "HOME": "/"}
    # Python itself may lie where nobody else may look: it is handed over as an open program.
    done = subprocess.run(
        [sys.executable, "-c", f"import ray, dcgan_dist.launch.connection\n{code}"],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False /tmp/ray-65534\n"


@pytest.mark.slow
def test_a_run_with_a_long_tmpdir_and_a_dead_cluster_of_before_trains(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    (long / "ray").mkdir(parents=True)
    (long / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_ports(1)[0]}")
    words = options({**TINY, "training.steps": 3, "run_dir": tmp_path / "run", "cluster.workers": 2})
    done = subprocess.run(
        [sys.executable, "-m", "dcgan_dist.train", *words],
        env=environment(TMPDIR=str(long)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "is dead" in done.stderr


def test_a_living_cluster_answers(ray_cluster: RayCluster) -> None:
    assert connection._why_unusable(ray_cluster.address) == ""
