"""Atomic replacement of files, also on file systems with fewer functions."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dcgan_dist.errors import StorageError
from dcgan_dist.storage.files import sync_path, write_atomically


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_folders_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_atomically(tmp_path / "file", b"content")
    sync_path(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_disk_that_fails_is_an_error_for_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        write_atomically(tmp_path / "file", b"content")
    with pytest.raises(OSError, match="Input/output error"):
        sync_path(tmp_path)
