import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest

from dcgan_dist.data import downloading as downloading_module
from dcgan_dist.data import loading as loading_module
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import DataError, StorageError, Unreachable
from dcgan_dist.storage import cache as cache_module
from dcgan_dist.storage import remote as remote_module
from dcgan_dist.storage.cache import COPIES, file_digest, open_copy
from dcgan_dist.storage.remote import shown
from tests.data.fetching import fetch
from tests.data.shard_sets import make_set
from tests.flaky_server import flaky, flaky_process

KIB = 1 << 10


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(remote_module, "LONGEST_DELAY_S", 0.1)
    monkeypatch.setattr(remote_module, "STALL_S", 0.4)
    monkeypatch.setattr(remote_module, "PATIENCE_S", 3.0)
    monkeypatch.setattr(remote_module, "FIRST_PATIENCE_S", 0.3)
    cache_module._warn_once.cache_clear()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve files of 100 KiB: NUMBER.bin."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(12):
        content = np.random.default_rng(number).bytes(100 * KIB)
        (folder / f"{number}.bin").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """96 shards of 8 images each: more than are read at a time."""
    return make_set(tmp_path_factory.mktemp("sets") / "set", [8] * 96, size=32)


def get(server, files, cache, number=0, **settings):
    file = files / f"{number}.bin"
    known = {"size": file.stat().st_size, "digest": file_digest(file)} | settings
    found = fetch(f"{server.url}/{file.name}", cache / COPIES / file.name, cache, **known)
    assert found.read_bytes() == file.read_bytes()
    return found


def labels(dataset, batches=12, start=0, **settings):
    with ImageStream(dataset, seed=1, batch_size=64, **settings).iterate(start, start + batches) as found:
        return [batch.labels.tolist() for batch in found]


# Downloads


def test_a_download_continues_where_the_connection_was_lost(files, tmp_path):
    with flaky(files, drop=1) as server:
        get(server, files, tmp_path)
        starts = [int(part[6:-1]) if part else 0 for _, _, part in server.asked]
    assert len(starts) > 2
    assert starts == sorted(set(starts))  # each continues after the one before; nothing is sent twice


@pytest.mark.parametrize("without", ["ranges", "lengths", "digest"])
def test_broken_downloads_end_well_without(without, files, tmp_path):
    known = {"digest": None} if without == "digest" else {}
    behaviour = {} if without == "digest" else {without: False}
    with flaky(files, drop=0.5, **behaviour) as server:
        for number in range(6):
            get(server, files, tmp_path, number, **known)


def test_a_stalled_connection_is_given_up_and_the_download_continues(files, tmp_path):
    with flaky(files, stall=0.5) as server:
        start = time.monotonic()
        for number in range(4):
            get(server, files, tmp_path, number)
        assert len(server.asked) > 4
    assert time.monotonic() - start < 0.6 * len(server.asked)


@pytest.mark.parametrize(
    ("status", "kind", "asked"), [(404, remote_module.MissingFile, 1), (403, Unreachable, 1), (500, None, 4)]
)
def test_only_what_may_pass_is_tried_again(status, kind, asked, files, tmp_path):
    with flaky(files, first_failures=[status] * 3) as server:
        if kind is None:
            get(server, files, tmp_path)
        else:
            with pytest.raises(kind) as error:
                get(server, files, tmp_path)
            assert type(error.value) is kind
        assert len(server.asked) == asked


def test_a_file_that_changed_on_the_server_is_not_put_together_from_two(files, tmp_path):
    copy = tmp_path / "files"
    copy.mkdir()
    (copy / "0.bin").write_bytes(bytes(100 * KIB))
    shutil.copy(files / "1.bin", tmp_path / "later.bin")
    with flaky(copy, stall=1, stall_s=0.2) as server:

        def change():
            while not server.asked:
                time.sleep(0.01)
            time.sleep(0.1)
            server.stall = 0
            os.replace(tmp_path / "later.bin", copy / "0.bin")

        changing = threading.Thread(target=change)
        changing.start()
        found = fetch(f"{server.url}/0.bin", tmp_path / "found.bin", tmp_path, size=100 * KIB)
        changing.join()
        assert len(server.asked) >= 2
    assert found.read_bytes() == (files / "1.bin").read_bytes()


def test_a_wrong_file_is_asked_for_three_times_and_then_kept_as_damaged(files, tmp_path):
    with flaky(files) as server:
        for _ in range(2):
            with open_copy(f"{server.url}/0.bin", tmp_path / "copy", tmp_path, size=100 * KIB, digest="0" * 16) as copy:
                assert str(copy.name).endswith("copy.damaged")
        assert len(server.asked) == 3
    assert not (tmp_path / "copy").exists()


def test_other_storage_is_read_too(files, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/somewhere/0.bin", (files / "0.bin").read_bytes())
    digest = file_digest(files / "0.bin")
    found = fetch("memory://somewhere/0.bin", tmp_path / "copy", tmp_path, size=100 * KIB, digest=digest)
    assert found.read_bytes() == (files / "0.bin").read_bytes()
    with pytest.raises(DataError, match="there is no file 'memory://somewhere/1"):
        fetch("memory://somewhere/1.bin", tmp_path / "other", tmp_path)


def test_messages_show_no_credentials(files, tmp_path):
    secret = "http://someone:password@127.0.0.1:9/set?token=password"
    with pytest.raises(Unreachable) as error:
        open_dataset(secret, cache=tmp_path)
    assert "password" not in str(error.value)
    with flaky(files) as server:
        host = server.url.removeprefix("http://")
        with pytest.raises(DataError) as error:
            open_dataset(f"http://someone:password@{host}/set?token=password", cache=tmp_path)
    assert "password" not in str(error.value)
    assert "no file" in str(error.value)
    assert shown(f"why? see '{secret}'") == "why? see 'http://127.0.0.1:9/set'"


# Crashes and several processes

FETCH = (
    "import sys\n"
    "from pathlib import Path\n"
    "from tests.data.fetching import fetch\n"
    "url, target, size, digest = sys.argv[1:]\n"
    "fetch(url, Path(target), Path(target).parent, size=int(size), digest=digest)\n"
)


def test_a_download_continues_after_a_kill_and_never_counts_as_complete(files, tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    content = np.random.default_rng(0).bytes(4 << 20)
    (big / "0.bin").write_bytes(content)
    target, digest = tmp_path / "copy", file_digest(big / "0.bin")
    part = target.with_name("copy.part")
    with flaky(big, bytes_per_s=4 << 20) as server:
        words = [f"{server.url}/0.bin", str(target), str(len(content)), digest]
        process = subprocess.Popen([sys.executable, "-c", FETCH, *words])
        while not part.exists() or part.stat().st_size < 1 << 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists()
        server.bytes_per_s, kept = 0, part.stat().st_size
        fetch(words[0], target, tmp_path, size=len(content), digest=digest)
        assert server.asked[-1][2] == f"bytes={kept}-"
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert not part.exists()


READ = (
    "import sys\n"
    "from dcgan_dist.data.dataset import open_dataset\n"
    "from dcgan_dist.data.stream import ImageStream\n"
    "dataset = open_dataset(sys.argv[1], cache=sys.argv[2])\n"
    "print(sum(sum(ImageStream(dataset, seed=1, batch_size=64).read(k).labels.tolist()) for k in range(12)))\n"
)


@pytest.mark.slow
def test_processes_that_share_a_cache_download_each_shard_once(shards, tmp_path):
    with flaky(shards.folder, latency_s=0.005) as server:
        words = [sys.executable, "-c", READ, server.url, str(tmp_path)]
        other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        while not server.whole():  # until it has begun
            time.sleep(0.001)
        here = labels(open_dataset(server.url, cache=tmp_path))
        assert sum(map(sum, here)) == int(other.communicate(timeout=60)[0]) == sum(range(96 * 8))
        assert sorted(server.whole()) == sorted(f"/{tar.name}" for tar in shards.tars)
        assert len(set(server.whole(".index"))) == len(server.whole(".index")) == 96


# The cache's limit


def used(cache):
    return sum(file.stat().st_size for file in (cache / COPIES).iterdir())


def test_the_least_recently_used_copies_are_removed_and_open_ones_stay(files, tmp_path):
    limit = 450 * KIB
    with flaky(files) as server:
        file = files / "0.bin"
        known = {"size": 100 * KIB, "digest": file_digest(file), "limit": limit}
        with open_copy(f"{server.url}/0.bin", tmp_path / COPIES / "0.bin", tmp_path, **known) as held:
            for number in range(1, 12):
                get(server, files, tmp_path, number, limit=limit)
                get(server, files, tmp_path, 1, limit=limit)  # used repeatedly
                assert used(tmp_path) <= limit
            assert sorted(os.listdir(tmp_path / COPIES))[:2] == ["0.bin", "1.bin"]
            assert (tmp_path / COPIES / "11.bin").exists()
            assert held.readall() == file.read_bytes()
        assert len(server.asked) == 12  # files in use were never downloaded twice
        get(server, files, tmp_path, 2, limit=limit)  # had been removed
        assert len(server.asked) == 13


def test_a_copy_in_use_by_another_process_stays(files, tmp_path):
    hold = "import sys, fcntl; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); input()"
    with flaky(files) as server:
        first = get(server, files, tmp_path, 0, limit=250 * KIB)
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        holder.stdout.readline()
        for number in range(1, 6):
            get(server, files, tmp_path, number, limit=250 * KIB)
        assert first.exists()
        holder.kill()
        holder.wait()
        for number in range(6, 12):
            get(server, files, tmp_path, number, limit=250 * KIB)
        assert not first.exists()


def test_without_a_limit_a_tenth_of_the_disk_stays_free(files, tmp_path, monkeypatch):
    total = 10_000 * KIB

    def disk(_):
        return shutil._ntuple_diskusage(total, 0, total * 11 // 100 + 300 * KIB - used(tmp_path))

    monkeypatch.setattr(cache_module.shutil, "disk_usage", disk)
    with flaky(files) as server:
        for number in range(12):
            get(server, files, tmp_path, number)
            assert disk(None).free >= total // 10
    assert used(tmp_path) > 0


def test_freeing_space_is_cheap_with_ten_thousand_copies(files, tmp_path):
    folder = tmp_path / COPIES
    folder.mkdir()
    for number in range(10_000):
        with (folder / f"{number:05d}.tar").open("wb") as file:
            file.truncate(1 << 20)
    limit = 10_000 << 20
    cache_module._free_space(tmp_path, limit, 0)
    start = time.process_time()
    for _ in range(500):
        cache_module._free_space(tmp_path, limit, 1 << 20)
    assert time.process_time() - start < 0.5  # 1 ms each, the removal of every 20th copy in it
    assert len(os.listdir(folder)) < 10_000


def test_a_cache_smaller_than_the_files_in_use_works_with_one_warning(shards, tmp_path, caplog):
    small = 20 * shards.tars[0].stat().st_size / 2**30
    with flaky(shards.folder) as server, caplog.at_level(logging.WARNING):
        remote = open_dataset(server.url, cache=tmp_path, cache_gib=small)
        assert labels(remote, 30) == labels(open_dataset(shards.folder), 30)
    warnings = [record.getMessage() for record in caplog.records if "cache_gib" in record.getMessage()]
    assert len(warnings) == 1
    assert "\n" not in warnings[0]


def gets(server):
    return sum(method == "GET" for method, _, _ in server.asked)


def test_tars_without_a_manifest_are_copies_like_others(shards, tmp_path):
    pattern, limit = "set-{000000..000095}.tar", 70 * shards.tars[0].stat().st_size
    settings = {"cache": tmp_path / "cache", "cache_gib": limit / 2**30}
    here = labels(open_dataset(f"{shards.folder}/{pattern}", cache=tmp_path / "other"))
    with flaky(shards.folder) as server:
        with open_dataset(f"{server.url}/{pattern}", **settings).open_tar(0) as held:
            assert gets(server) == 96 + 1  # each once for its index, and the first again, which had been removed
            assert used(tmp_path / "cache") <= limit
            assert labels(open_dataset(f"{server.url}/{pattern}", **settings)) == here
            assert held.readall() == shards.tars[0].read_bytes()
        # Indexed tars are not downloaded when they are opened.
        asked = gets(server)
        open_dataset(f"{server.url}/{pattern}", **settings)
        assert gets(server) == asked


def test_copies_that_vanish_are_fetched_again(shards, tmp_path):
    with flaky(shards.folder) as server:
        remote = open_dataset(server.url, cache=tmp_path)
        with ImageStream(remote, seed=1, batch_size=64).iterate(0, 36) as batches:
            found = []
            for batch in batches:
                found.append(batch.labels.tolist())
                for copy in (tmp_path / COPIES).glob("*.tar"):
                    copy.unlink()
    assert found == labels(open_dataset(shards.folder), 36)


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(files, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with flaky(files) as server, pytest.raises(StorageError, match="No space left") as error:
            get(server, files, disk)
        assert "\n" not in str(error.value)
        assert not list((disk / COPIES).iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Streams


def test_a_stream_from_a_bad_server_is_as_from_the_disk(shards, tmp_path):
    with flaky(shards.folder, latency_s=0.01, drop=0.1, fail=0.1) as server:
        remote = open_dataset(server.url, cache=tmp_path)
        assert labels(remote) == labels(open_dataset(shards.folder))
        assert len(server.asked) > 2 * 96


def test_a_run_continues_after_its_server_was_down(shards, tmp_path):
    with flaky(shards.folder, latency_s=0.01) as server:
        remote = open_dataset(server.url, cache=tmp_path)
        with ImageStream(remote, seed=1, batch_size=64).iterate(0, 12) as batches:
            server.down = True
            threading.Timer(1.5, setattr, (server, "down", False)).start()
            assert [batch.labels.tolist() for batch in batches] == labels(open_dataset(shards.folder))


def test_a_server_that_stays_down_ends_the_run_with_one_line(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_module, "PATIENCE_S", 0.5)
    with flaky(shards.folder) as server:
        remote = open_dataset(server.url, cache=tmp_path)
        server.down = True
        start = time.monotonic()
        with pytest.raises(Unreachable, match="is its server up") as error, _iterating(remote) as batches:
            next(batches)
        assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


def _iterating(dataset):
    return ImageStream(dataset, seed=1, batch_size=64).iterate()


def test_closing_breaks_off_stalled_downloads(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_module, "STALL_S", 60.0)
    with flaky(shards.folder) as server:
        remote = open_dataset(server.url, cache=tmp_path)
        server.stall = 1
        batches = _iterating(remote)
        time.sleep(0.5)
        start = time.monotonic()
        batches.close()
        assert time.monotonic() - start < 2
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("dcgan_dist-")]
        time.sleep(0.5)
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("dcgan_dist-")]
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("single_records", [False, True])
def test_worker_processes_end_by_themselves_while_downloads_stall(single_records, shards, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(loading_module, "_SECONDS_TO_END", 20.0)
    set_ = make_set(tmp_path / "set", [100] * 4, size=64) if single_records else shards
    with flaky(set_.folder) as server:
        remote = open_dataset(server.url, cache=tmp_path / "cache")
        for shard in range(len(remote.tars)):
            remote.open_index(shard).close()
        server.stall = 1
        batches = ImageStream(remote, seed=1, batch_size=64, workers=1).iterate()
        processes = multiprocessing.active_children()
        # The worker requests single records; this process downloads whole shards.
        while single_records and not any(part for _, _, part in server.asked):
            time.sleep(0.01)
        time.sleep(1 if single_records else 4)
        start = time.monotonic()
        batches.close()
        assert time.monotonic() - start < 5  # a stall lasts 10 s there, and most of this is the interpreter's end
    assert [process.exitcode for process in processes] == [0]
    assert not capfd.readouterr().err


@pytest.mark.slow
def test_after_an_outage_single_records_come_again_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(downloading_module, "_LEAST_BYTES", 0)
    shards = make_set(tmp_path / "set", [60] * 66, size=32)
    with flaky(shards.folder, bytes_per_s=3e4) as server:
        remote = open_dataset(server.url, cache=tmp_path / "cache")
        with ImageStream(remote, seed=1, batch_size=64, prefetch=1).iterate() as batches:
            next(batches)
            server.down = True
            time.sleep(1)
            server.down = False
            start = time.monotonic()
            for _ in range(3):
                next(batches)
            assert time.monotonic() - start < 9  # a shard takes 9.7 s


def test_the_first_batch_does_not_wait_for_whole_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(downloading_module, "_LEAST_BYTES", 0)
    shards = make_set(tmp_path / "set", [60] * 66, size=32)
    with flaky_process(shards.folder, bytes_per_s=3e4, latency_s=0.02) as url:
        remote = open_dataset(url, cache=tmp_path / "cache")
        start = time.monotonic()
        with ImageStream(remote, seed=1, batch_size=64).iterate() as batches:
            batch = next(batches)
        took = time.monotonic() - start
        assert (batch.images.numpy() == shards.images[batch.labels.numpy()]).all()
        # A shard alone takes 9.7 s, and 64 of them, 8 at a time, 78 s.
        assert took < 9
        assert not list((tmp_path / "cache" / COPIES).glob("*.tar"))


@pytest.mark.slow
def test_records_that_are_wrong_in_a_range_request_are_read_from_the_whole_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(downloading_module, "_LEAST_BYTES", 0)
    shards = make_set(tmp_path / "set", [60] * 66, size=32)
    with flaky(shards.folder, bytes_per_s=1e6, corrupt=1) as server:
        remote = open_dataset(server.url, cache=tmp_path / "cache")
        with ImageStream(remote, seed=1, batch_size=64).iterate(0, 20) as batches:
            found = list(batches)
        assert any(part for _, _, part in server.asked)
    assert [batch.labels.tolist() for batch in found] == labels(open_dataset(shards.folder), 20)
    assert not any(batch.damage or batch.flaws for batch in found)


@pytest.mark.slow
def test_the_programs_exit_is_not_held_up_by_a_stalled_download(shards, tmp_path):
    program = (
        "import sys\n"
        "from dcgan_dist.data.dataset import open_dataset\n"
        "from dcgan_dist.data.stream import ImageStream\n"
        "dataset = open_dataset(sys.argv[1], cache=sys.argv[2])\n"
        "with ImageStream(dataset, seed=1, batch_size=64).iterate() as batches:\n"
        "    print(1, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with flaky(shards.folder) as server:
        words = [sys.executable, "-c", program, server.url, str(tmp_path)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while len(server.asked) < 2:  # the manifest has come
            time.sleep(0.01)
        server.stall = 1
        process.stdout.readline()
        time.sleep(0.3)
        start = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
        assert time.monotonic() - start < 6
