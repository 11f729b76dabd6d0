"""Each check of a machine, with the problem that it shall find: small limits, full disks, missing programs."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dcgan_dist import machine
from dcgan_dist.command_line import build_settings
from dcgan_dist.doctor import DoctorConfig
from dcgan_dist.errors import DataError
from dcgan_dist.machine import Finding, examine
from tests.runs.conftest import s3_server  # noqa: F401 - a fixture


def test_findings_come_in_the_order_of_the_checks_and_a_stuck_one_is_not_waited_for() -> None:
    def slow() -> Finding:
        time.sleep(0.1)
        return Finding("slow", "ok", "here")

    def broken() -> Finding:
        raise OSError(errno.EIO, "the disk\nis broken")

    began = time.monotonic()
    checks: dict[str, Callable[[], Finding]] = {
        "slow": slow, "stuck": lambda: threading.Event().wait() and slow(), "broken": broken, "quick": machine.cores,
    }  # fmt: skip
    slow_one, stuck, failed, quick = examine(checks, 0.5)
    assert time.monotonic() - began < 2
    assert (slow_one.found, quick.status) == ("here", "ok")
    assert (stuck.status, stuck.found) == ("fail", "no answer within 0.5 s")
    assert (failed.status, "\n" in failed.found) == ("fail", False)


def test_a_program_that_hangs_is_ended_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", script(tmp_path / "g++", "exec sleep 60"))
    monkeypatch.setattr(machine, "PROGRAM_S", 0.2)
    (found,) = examine({"compiler": machine.compiler}, 5)
    assert (found.status, found.found) == ("warn", f"the C++ compiler '{tmp_path}/g++' took longer than 0.2 s")


def test_all_is_well_on_a_machine_that_passes_these_tests(tmp_path: Path) -> None:
    config = build_settings(DoctorConfig, {"run_dir": str(tmp_path / "runs")}).train
    found = examine(machine.checks_of_machine(config, str(tmp_path / "runs"), 0), 60)
    assert [finding for finding in found if finding.status == "fail"] == []
    assert not list(tmp_path.iterdir())  # nothing was written


def test_more_cpus_given_to_ray_than_there_are_cores_is_a_warning() -> None:
    assert machine.cores(ray_cpus=1).status == "ok"
    found = machine.cores(ray_cpus=4096)
    assert found.status == "warn"
    assert "Ray offers 4096" in found.found


@pytest.mark.parametrize(
    ("own", "files", "shown"),
    [
        ("0::/\n", {"memory.max": "1073741824\n"}, "of 1.0 GiB"),
        ("0::/a/b\n", {"memory.max": "max\n", "a/memory.max": "536870912\n", "a/b/memory.max": "max\n"}, "of 512 MiB"),
        ("0::/not/seen\n", {"memory.max": "1073741824\n"}, "of 1.0 GiB"),
        ("4:memory:/c\n1:cpu:/\n", {"memory/c/memory.limit_in_bytes": "268435456\n"}, "of 256 MiB"),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "268435456\n"}, "of 256 MiB"),
    ],
)
def test_the_memory_limit_of_a_container_counts(tmp_path: Path, own: str, files: dict[str, str], shown: str) -> None:
    found = machine.memory(*groups(tmp_path, own, files))
    assert found.status == "warn"
    assert shown in found.found


def test_limits_above_the_machines_memory_are_none(tmp_path: Path) -> None:
    found = machine.memory(*groups(tmp_path, "4:memory:/\n", {"memory/memory.limit_in_bytes": f"{1 << 62}\n"}))
    assert "container" not in found.found
    assert machine.memory(tmp_path, tmp_path / "none") == found


def test_the_limit_of_processes_of_a_container_counts(tmp_path: Path) -> None:
    assert machine.processes(*groups(tmp_path, "0::/\n", {"pids.max": "100\n"})).status == "warn"
    assert machine.processes(*groups(tmp_path, "0::/\n", {"pids.max": "max\n"})).status == "ok"
    assert machine.processes(*groups(tmp_path, "7:pids:/\n", {"pids/pids.max": "100\n"})).status == "warn"


def test_few_open_files_are_found_and_fail_where_ray_may_not_raise_them() -> None:
    code = "from dcgan_dist.machine import open_files; print(open_files())"
    for limits, status in (("-n 4096", "ok"), ("-Sn 128", "warn"), ("-n 1024", "warn"), ("-n 128", "fail")):
        words = ["sh", "-c", f'ulimit {limits}; exec "$0" -c "$1"', sys.executable, code]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert f"status='{status}'" in shown
        assert status == "ok" or "`ulimit -n`" in shown


def test_a_gpu_that_pytorch_does_not_see_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.gpus(tmp_path).status == "ok"
    assert machine.gpus(tmp_path, needed=True).status == "fail"
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(machine, "PROGRAM_S", 60)
    found = machine.gpus(tmp_path)
    assert (found.status, "but PyTorch" in found.found) == ("warn", True)


@pytest.mark.parametrize(
    ("script_of", "found"),
    [
        (None, "no C++ compiler '/nowhere/g++'"),
        ("echo 'no headers' >&2; exit 3", "(no headers)"),
        ("exit 3", "(exit status 3)"),
    ],
)
def test_a_compiler_that_is_missing_or_fails_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script_of: str | None, found: str
) -> None:
    monkeypatch.setenv("CXX", script(tmp_path / "g++", script_of) if script_of else "/nowhere/g++")
    assert machine.compiler().status == "warn"
    assert machine.compiler(needed=True).status == "fail"
    assert found in machine.compiler().found


def test_full_shared_memory_and_full_disks_are_found(small_disk: Path) -> None:
    assert machine.shared_memory(small_disk).status == "warn"
    assert machine.folder("cache", small_disk / "new").status == "warn"
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "much").write_bytes(bytes(4 << 20))
    assert machine.shared_memory(small_disk).status == "fail"
    assert machine.shared_memory(small_disk / "gone").status == "warn"


def test_a_disk_without_free_inodes_is_full(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=3", small_disk], check=True)
    (small_disk / "one").touch()
    (small_disk / "two").touch()
    found = machine.folder("run directory", small_disk)
    assert (found.status, "No space left" in found.found) == ("fail", True)


def test_a_folder_that_cannot_be_made_is_found_with_the_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, way_out in (("temporary files", "TMPDIR"), ("run directory", "--run-dir")):
        found = machine.folder(name, tmp_path / "file" / "below")
        assert found.status == "fail"
        assert way_out in found.way_out
    (found,) = examine({"cache": lambda: machine.cache(str(tmp_path / "file" / "below"))}, 5)
    assert (found.status, "set data.cache" in found.found) == ("fail", True)


def test_a_file_system_without_locks_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.folder("run directory", tmp_path).found.endswith(", with locks")

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = machine.folder("run directory", tmp_path / "runs")
    assert (found.status, "without locks (Function not implemented)" in found.found) == ("warn", True)


def test_a_token_that_ray_will_ask_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert machine.ray_and_token().status == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    found = machine.ray_and_token()
    assert (found.status, str(tmp_path / "token") in found.found) == ("fail", True)
    (tmp_path / "token").write_text("secret")
    assert machine.ray_and_token().status == "ok"
    assert "secret" not in str(machine.ray_and_token())


@pytest.mark.usefixtures("s3_server")
def test_object_storage_is_tried_and_left_as_it_was() -> None:
    import boto3

    assert machine.object_storage("s3://results/runs") == Finding(
        "storage", "ok", "s3://results/runs can be written, and supports conditional writes"
    )
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="results")
    (found,) = examine({"storage": lambda: machine.object_storage("s3://no-such-bucket/runs")}, 20)
    assert (found.status, "does the bucket exist?" in found.found) == ("fail", True)


def test_storage_without_conditional_writes_is_a_warning_and_no_storage_an_error() -> None:
    assert machine.object_storage("memory://runs").status == "warn"
    with pytest.raises(DataError, match="cannot be read: take a path"):
        machine.object_storage("nothing://runs")


def test_packages_that_are_missing_or_out_of_range_are_found(tmp_path: Path) -> None:
    assert machine.versions().status == "ok"
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["numpy>=2.0", "no-such-package>=1", "torch<2"]\n')
    found = machine.versions(tmp_path)
    assert found.status == "fail"
    assert found.found.startswith("no-such-package is missing; torch is ")
    project.write_text('[project]\ndependencies = ["numpy>=2.0"]\n')
    (tmp_path / "constraints.txt").write_text("# as tested\nnumpy==1.0.0\nno-such-package==3\n")
    found = machine.versions(tmp_path)
    assert (found.status, found.found.rpartition(": ")[2]) == ("ok", "numpy==1.0.0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_is_found() -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    # The first call loads what that user cannot read.
    code = "from dcgan_dist.machine import names; import os; names(); os.setuid(54321); print(names().found)"
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout == "user 54321 has no name\n"


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Make control groups, and the file that names those of a process."""
    for name, content in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(content)
    (folder / "own").write_text(own)
    return folder / "groups", folder / "own"
