"""Which Ray cluster is used, and the messages if none can be used."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from ray.core.generated.gcs_service_pb2 import CheckAliveReply

from dcgan_dist.errors import ClusterError
from dcgan_dist.launch import connection
from dcgan_dist.parallel import usable_cores
from tests.conftest import TINY, command, environment, options, wait_for_line
from tests.launch.conftest import RAY, RayCluster, descendants, free_ports

PROJECT = Path(__file__).parents[2]
PLACE = """
import ray
from dcgan_dist.launch.connection import connected_cluster
with connected_cluster():
    print(ray.get_runtime_context().gcs_address)
"""


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Return a function that starts a gRPC server which answers like a cluster's head, and returns its address."""
    with contextlib.ExitStack() as stack:

        def start(reply: CheckAliveReply | None = None, refusal: grpc.StatusCode | None = None) -> str:
            def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
                if refusal is not None:
                    context.abort(refusal, "InvalidAuthToken: Authentication token is missing or incorrect")
                return b"" if reply is None else reply.SerializeToString()

            started = grpc.server(ThreadPoolExecutor(1))
            if reply is not None or refusal is not None:
                handler = grpc.unary_unary_rpc_method_handler(answer)
                method = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": handler})
                started.add_generic_rpc_handlers((method,))
            port = started.add_insecure_port("127.0.0.1:0")
            started.start()
            stack.callback(lambda: started.stop(None).wait())
            return f"127.0.0.1:{port}"

        yield start


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as made:
        yield made


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_cluster_of_this_version_can_be_used(server: Callable[..., str]) -> None:
    assert connection._why_unusable(server(CheckAliveReply(ray_version=ray.__version__))) == ""


def test_a_head_of_another_version_or_with_a_token_is_refused_with_the_reason(server: Callable[..., str]) -> None:
    assert connection._why_unusable(server(CheckAliveReply(ray_version="2.9.0"))) == (
        f"it runs Ray 2.9.0, but this is {ray.__version__}"
    )
    assert "RAY_AUTH_TOKEN" in connection._why_unusable(server(refusal=grpc.StatusCode.UNAUTHENTICATED))


def test_a_port_that_nothing_listens_at_or_another_program_does_is_no_cluster(
    server: Callable[..., str], listener: socket.socket
) -> None:
    assert connection._why_unusable(f"127.0.0.1:{free_ports(1)[0]}") == "Connection refused"
    assert connection._why_unusable(server()) == "another program answers there"
    with ThreadPoolExecutor(1) as threads:
        reason = threads.submit(connection._why_unusable, address_of(listener))
        with listener.accept()[0] as line:
            line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert reason.result() == "another program answers there"


def test_a_host_that_takes_no_connection_and_a_program_that_never_answers_cost_seconds(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connection.ANSWER_S < 10
    monkeypatch.setattr(connection, "ANSWER_S", 0.3)
    begun = time.monotonic()
    assert connection._why_unusable(address_of(listener)) == "no answer within 0.3 s"  # the system accepts connections
    with contextlib.ExitStack() as stack:
        for _ in range(8):  # until it accepts no more
            line = stack.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex(listener.getsockname())
        assert connection._why_unusable(address_of(listener)) == "no answer within 0.3 s"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere.invalid:6379", "no Ray cluster can be used"),
        ("head", "HOST:PORT"),
        ("127.0.0.1:port", "HOST:PORT"),
        (":6379", "HOST:PORT"),
        ("auto", "no Ray cluster can be used"),
        ("ray://127.0.0.1:10001", "for Ray's client"),
        ("http://127.0.0.1:8265", "ray job submit"),
    ],
)
def test_an_unusable_ray_address_is_named_with_the_way_out(
    address: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=says) as caught, connection.connected_cluster():
        pass
    assert repr(address) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("left", ["127.0.0.1:{}", "garbage", ""])
def test_a_dead_cluster_that_ray_start_left_behind_is_named_and_none_is_used(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(left.format(free_ports(1)[0]))
    assert connection.find_cluster("") is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("(Connection refused)" if ":" in left else "(Invalid address format") in said
    assert str(tmp_path / "ray/ray_current_cluster") in said


@pytest.mark.parametrize("name", ["x" * 100, "a b", "ä", "nothing/there"])
def test_if_ray_cannot_keep_its_sockets_in_tmpdir_they_go_to_a_short_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").write_text("a file, where a folder would be")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    if len(name) < 100:
        monkeypatch.setattr(connection, "LONGEST_FOLDER", 200)
    folder = connection._of_this_machine()["_temp_dir"]
    assert folder == os.environ["TMPDIR"] == f"/tmp/ray-{os.getuid()}"


def test_if_the_disk_of_tmpdir_is_full_ray_takes_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(connection, "LONGEST_FOLDER", 200)
    assert connection._of_this_machine() == {"address": "local", "num_cpus": usable_cores()}
    monkeypatch.setattr(connection, "FREE_BYTES", 1 << 60)
    assert "_temp_dir" in connection._of_this_machine()


def test_an_unsuitable_ray_tmpdir_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR is '.*x'.*at most 36 plain characters"):
        connection._of_this_machine()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        "from dcgan_dist.launch import connection\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(*(connection._is_suitable(Path(name)) for name in sys.argv[1:]), connection._private_folder())"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as closed, tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        os.chmod(open_to_all, 0o1777)
        words = [sys.executable, "-c", code, closed, f"{closed}/ray", f"{open_to_all}/ray"]
        own = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, env=own, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "False False True /tmp/ray-65534\n"
    Path("/tmp/ray-65534").rmdir()


@pytest.mark.slow
def test_a_cluster_of_ray_start_is_used_with_its_token_and_not_when_it_was_killed(tmp_path: Path) -> None:
    port, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="dr-", dir="/tmp")  # the names of its sockets must be short
    homes = []
    for name in ("own", "other"):
        homes.append({"HOME": str(tmp_path / name)})
        (tmp_path / name / ".ray").mkdir(parents=True)
        (tmp_path / name / ".ray/auth_token").write_text(secrets.token_hex(32))
    left_out = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    shared = {name: value for name, value in environment(RAY_TMPDIR=folder).items() if name not in left_out}
    words = [RAY, "start", "--head", "--block", "--port", str(port), "--num-cpus", "2", "--disable-usage-stats"]
    words += ["--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    words += ["--ray-client-server-port", str(client), "--object-store-memory", "200000000"]
    head = subprocess.Popen(
        words, env=shared | homes[0], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def run(*words: str, home: dict[str, str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *words], env=shared | home, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    try:
        deadline = time.monotonic() + 180
        while not Path(folder, "ray/ray_current_cluster").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        found = run("-c", PLACE, home=homes[0])
        assert found.stdout.endswith(f":{port}\n")
        assert found.stderr == ""
        found = run("-c", PLACE, home=homes[1])
        assert not found.stdout.endswith(f":{port}\n")
        assert found.stderr.count("\n") == 1
        assert "needs its token" in found.stderr

        for pid in [*descendants(head.pid), head.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        settings = options({**TINY, "training.steps": 3, "run_dir": tmp_path / "run", "cluster.workers": 2})
        trained = run("-m", "dcgan_dist.train", *settings, home=homes[0])
        assert "on 2 x cpu" in trained.stdout
        assert trained.stderr.count("\n") == 1
        assert f":{port} that {folder}/ray/ray_current_cluster names cannot be used" in trained.stderr
    finally:
        for pid in descendants(head.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_run_with_a_long_tmpdir_trains(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    words = options({**TINY, "training.steps": 3, "run_dir": tmp_path / "run", "cluster.workers": 2})
    done = subprocess.run(
        [sys.executable, "-m", "dcgan_dist.train", *words],
        env=environment(TMPDIR=str(long)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.slow
def test_a_living_cluster_answers(ray_cluster: RayCluster) -> None:
    assert "needs its token" in connection._why_unusable(ray_cluster.address)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_after_a_signal_to_the_whole_group_the_cluster_runs_until_the_last_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    settings = {**TINY, "training.steps": 100_000, "cluster.workers": 2, "run_dir": tmp_path / "run"}
    own = {key: value for key, value in environment().items() if key != "RAY_ADDRESS"}
    words = [*command(), *options(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=own, text=True, start_new_session=True, **pipes) as process:
        wait_for_line(process.stdout, "step 5/")
        os.killpg(process.pid, number)  # like `timeout` and closed terminals
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.count("\n")) == (128 + number, 1), errors
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "stopped"
    assert (tmp_path / f"run/checkpoints/step-{status['step']:08d}/state.json").exists()
