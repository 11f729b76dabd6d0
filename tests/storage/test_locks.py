"""A lock ends with its file; without locks there is one warning, and work continues."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from dcgan_dist.storage import locks


def test_a_lock_is_held_against_others_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _ in range(2))
    locks.lock(first, path)
    with pytest.raises(BlockingIOError):
        locks.lock(second, path)
    os.close(first)
    locks.lock(second, path, shared=True)
    os.close(second)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_file_locks_one_warning_is_printed_and_work_continues(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_words: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no such file system can be mounted here
    locks._warn.cache_clear()
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3):
        locks.lock(folder, tmp_path)
        locks.unlock(folder)
    os.close(folder)
    assert capsys.readouterr().err.count("\n") == 1


def test_other_faults_of_a_lock_are_raised(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    os.close(folder)
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.lock(folder, tmp_path)
