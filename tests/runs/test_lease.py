from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dcgan_dist.errors import RunDirectoryError
from dcgan_dist.runs import lease
from dcgan_dist.runs.lease import STALE_SECONDS, is_alive, mark_run
from dcgan_dist.runs.run import Run
from dcgan_dist.runs.writer import open_run
from dcgan_dist.storage.folder import RemoteFolder
from tests.runs.conftest import StartWriter

HOLD = """
run = open_run(sys.argv[1], session=sys.argv[2] if len(sys.argv) > 2 else "")
run.set_status("running", step=7)
print("open", flush=True)
time.sleep(60)
"""


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def change_status(folder: str, **changes: object) -> None:
    path = Path(folder) / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_second_live_writer_is_refused_with_host_and_pid(location: str, start_writer: StartWriter) -> None:
    writer = start_writer(HOLD, location)
    wait_for(writer, "open")
    with pytest.raises(RunDirectoryError, match=rf"in use by process {writer.pid} on host {os.uname().nodename}"):
        open_run(location)
    found = Run(location).status
    assert found is not None
    assert found["pid"] == writer.pid
    assert is_alive(found)


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_killed_writers_lock_is_taken_over_at_once(location: str, start_writer: StartWriter) -> None:
    writer = start_writer(HOLD, location)
    wait_for(writer, "open")
    writer.kill()  # not waited for: a zombie still has its pid, but does not write any more
    time.sleep(0.1)
    begin = time.monotonic()
    with open_run(location) as run:
        assert time.monotonic() - begin < STALE_SECONDS / 2
        assert run.previous is not None
        assert (run.previous["status"], run.previous["pid"]) == ("running", writer.pid)


def test_stopped_process_counts_as_alive(tmp_path: Path, start_writer: StartWriter) -> None:
    writer = start_writer(HOLD, tmp_path)
    wait_for(writer, "open")
    writer.send_signal(signal.SIGSTOP)
    change_status(str(tmp_path), heartbeat=time.time() - 1000)
    with pytest.raises(RunDirectoryError, match=f"process {writer.pid}"):
        open_run(str(tmp_path))


def test_process_that_reuses_the_pid_is_not_taken_for_the_writer(tmp_path: Path, start_writer: StartWriter) -> None:
    writer = start_writer(HOLD, tmp_path)
    wait_for(writer, "open")
    writer.kill()
    writer.wait()
    change_status(str(tmp_path), pid=os.getpid())  # this process lives, but started at another time
    open_run(str(tmp_path)).close()


def test_forked_child_of_a_killed_writer_holds_no_lock(tmp_path: Path, start_writer: StartWriter) -> None:
    forking = """
run = open_run(sys.argv[1])
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""
    writer = start_writer(forking, tmp_path)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        writer.kill()
        writer.wait()
        open_run(str(tmp_path)).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_simultaneous_starters_exactly_one_wins(tmp_path: Path, start_writer: StartWriter) -> None:
    starters, rounds = 4, 12
    with open_run(str(tmp_path / "dead")) as run:
        run.set_status("running")
    left_behind = (tmp_path / "dead" / "status.json").read_text()
    for number in range(0, rounds, 2):  # half of the directories are new, half were left by a dead process
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "status.json").write_text(left_behind)
        change_status(str(tmp_path / str(number)), status="running", locked=True, process_start="1")
    race = """
print("ready", flush=True)
go = Path(sys.argv[1]) / "go"
while not go.exists():
    time.sleep(0.005)
begin = float(go.read_text())
won = []
for number in range(int(sys.argv[2])):
    while time.time() < begin + 0.1 * number:
        pass
    try:
        won.append((number, open_run(f"{sys.argv[1]}/{number}")))
    except DcganDistError as error:
        assert "in use by process" in str(error), error
print(*[number for number, run in won], flush=True)
time.sleep(60)
"""
    processes = [start_writer(race, tmp_path, rounds) for _ in range(starters)]
    for process in processes:
        wait_for(process, "ready")
    (tmp_path / ".go").write_text(str(time.time() + 0.3))
    (tmp_path / ".go").rename(tmp_path / "go")
    lines = [process.stdout.readline() for process in processes if process.stdout]
    winners = [int(number) for line in lines for number in line.split()]
    assert sorted(winners) == list(range(rounds))


@pytest.mark.slow
def test_one_of_several_writers_at_once_on_object_storage_wins(s3_server: object, start_writer: StartWriter) -> None:
    race = """
while time.time() < float(sys.argv[2]):
    pass
try:
    run = open_run(sys.argv[1])
    print("won", flush=True)
except DcganDistError as error:
    print(error, flush=True)
time.sleep(60)
"""
    begin = time.time() + 2.5
    processes = [start_writer(race, "s3://results/race", begin) for _ in range(3)]
    lines = [process.stdout.readline() for process in processes if process.stdout]
    assert [line.strip() for line in lines].count("won") == 1
    assert sum("in use by process" in line for line in lines) == 2


@pytest.mark.slow
def test_a_writer_is_refused_if_another_one_writes_between_its_read_and_its_write(s3_server: object) -> None:
    """On object storage, which has no locks, the write itself is conditional."""
    url = "s3://results/forestalled"
    second = lease.Lease(RemoteFolder(url), "")
    looks: list[bytes | None] = []

    class Forestalled(RemoteFolder):
        def read_version(self, name: str) -> tuple[bytes | None, str | None]:
            found = super().read_version(name)
            looks.append(found[0])
            if len(looks) == 1:  # the read before the first write
                second.take()
            return found

    with pytest.raises(RunDirectoryError, match="in use by process"):
        lease.Lease(Forestalled(url), "").take()
    assert looks[0] is None
    assert looks[1] is not None
    second.confirm()
    second.renew()
    second.release()


def test_writer_of_another_machine_is_judged_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    monkeypatch.setattr("dcgan_dist.runs.lease.HEARTBEAT_SECONDS", 0.1)
    with open_run(folder):
        pass
    change_status(folder, status="running", locked=True, machine="elsewhere", host="far", heartbeat=time.time() - 5)
    with pytest.raises(RunDirectoryError, match=r"on host far .* or wait 30 s"):
        open_run(folder)
    change_status(folder, heartbeat=time.time() - 31)
    open_run(folder).close()


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_clock_that_jumped_neither_ends_the_lease_of_a_living_writer_nor_keeps_that_of_a_dead_one(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path)
    monkeypatch.setattr("dcgan_dist.runs.lease.HEARTBEAT_SECONDS", 0.2)
    with open_run(folder):
        pass
    elsewhere = {"status": "running", "locked": True, "machine": "elsewhere", "host": "far"}
    change_status(folder, **elsewhere, heartbeat=time.time() + jump)
    beat = threading.Timer(0.1, lambda: change_status(folder, heartbeat=time.time() + jump))
    beat.start()
    with pytest.raises(RunDirectoryError, match=r"in use by process .* on host far"):
        open_run(folder)
    beat.join()
    open_run(folder).close()  # no other heartbeat came


def test_same_launch_takes_over_from_its_living_writer_which_then_writes_no_more(tmp_path: Path) -> None:
    folder = str(tmp_path)
    old = open_run(folder, session="launch 1")
    old.commit_checkpoint(1, lambda folder: None, {})
    with pytest.raises(RunDirectoryError, match="in use"):
        open_run(folder, session="launch 2")
    new = open_run(folder, session="launch 1")
    for call in (
        lambda: old.commit_checkpoint(2, lambda folder: None, {}),
        lambda: old.set_status("finished"),
        lambda: old.rewind(0),
        old.close,
    ):
        with pytest.raises(RunDirectoryError, match="took it over"):
            call()
    assert new.newest_checkpoint().step == 1  # type: ignore[union-attr]
    new.set_status("finished", step=2)
    new.close()
    assert Run(folder).status["status"] == "finished"  # type: ignore[index]


def test_the_heartbeat_continues_and_never_restores_an_earlier_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with open_run(str(tmp_path)) as run:
        begin = time.time()
        run.set_status("running", step=5)
        time.sleep(0.1)
        seen = Run(tmp_path).status
        assert seen is not None
        assert seen["heartbeat"] > begin + 0.03
        run.set_status("diverged", "loss_d is not finite at step 6")
        for _ in range(20):
            time.sleep(0.01)
            seen = Run(tmp_path).status
            assert seen is not None
            assert (seen["status"], seen["step"]) == ("diverged", 5)
    closed = (tmp_path / "status.json").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "status.json").read_bytes() == closed
    assert not is_alive(json.loads(closed))


def test_a_writer_whose_directory_was_removed_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    run = open_run(str(tmp_path))
    (tmp_path / "status.json").unlink()
    time.sleep(0.1)
    with pytest.raises(RunDirectoryError, match="was removed"):
        run.append_metrics({"step": 1})
    run.close()
    assert not (tmp_path / "status.json").exists()


def test_opening_a_finished_run_without_running_it_leaves_its_status(tmp_path: Path) -> None:
    with open_run(str(tmp_path)) as run:
        run.set_status("finished", "all steps done", step=100)
    with open_run(str(tmp_path)) as run:
        assert run.previous is not None
        assert run.previous["status"] == "finished"
    after = Run(tmp_path).status
    assert after is not None
    assert (after["status"], after["reason"], after["step"], after["locked"]) == (
        "finished",
        "all steps done",
        100,
        False,
    )


def test_launcher_records_the_end_of_its_killed_writer_and_of_no_other_run(
    tmp_path: Path, start_writer: StartWriter
) -> None:
    writer = start_writer(HOLD, tmp_path, "launch 1")
    wait_for(writer, "open")
    writer.kill()
    writer.wait()
    assert not mark_run(str(tmp_path), "failed", "worker 0 died", session="launch 2")
    assert mark_run(str(tmp_path), "failed", "worker 0 died", session="launch 1")
    found = Run(tmp_path).status
    assert found is not None
    assert (found["status"], found["reason"], found["step"], found["locked"]) == ("failed", "worker 0 died", 7, False)
    assert not mark_run(str(tmp_path), "stopped", "again", session="launch 1")


def test_start_time_is_that_of_the_process_table() -> None:
    own = Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(") ", 1)[1].split()
    assert lease.process_start(os.getpid()) == own[22 - 3]
    with subprocess.Popen(["sleep", "60"]) as child:
        assert lease.process_start(child.pid) is not None
        child.kill()
        child.wait()
        assert lease.process_start(child.pid) is None
