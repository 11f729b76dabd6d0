import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from PIL import Image

from dcgan_dist.data.images import decode, encode, fit
from dcgan_dist.data.manifest import Manifest, read_index
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.shard_writer import tar_header
from dcgan_dist.data.shards import Recipe, read_manifest, write_shards
from dcgan_dist.data.sources import Source, open_source, room_source
from dcgan_dist.data.sources.rooms import RoomSource
from dcgan_dist.data.verification import verify
from dcgan_dist.errors import DataError, StorageError
from dcgan_dist.parallel import LocalPool


def recipe(**changes) -> Recipe:
    return Recipe(**{"image_size": 16, "shard_size": 8, "name": "rooms"} | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stock(folder: Path, manifest: Manifest) -> list[dict]:
    """All samples, as stock webdataset reads them."""
    urls = [str(folder / shard.file) for shard in manifest.shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False))


@pytest.mark.parametrize("encoding", ["raw", "png", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stock_webdataset_reads_every_image_back(tmp_path, encoding, channels):
    manifest = write_shards(room_source(20, 3), recipe(encoding=encoding, channels=channels), tmp_path / "out")
    samples = {int(sample["__key__"]): sample for sample in stock(tmp_path / "out", manifest)}
    assert sorted(samples) == list(range(20))
    for index, sample in samples.items():
        drawn, attributes = draw_room(3, index, 16)
        expected = fit(drawn, 16, channels)
        content = sample[encoding]
        image = np.frombuffer(content, np.uint8).reshape(16, 16, channels) if encoding == "raw" else decode(content, 3)
        if encoding != "raw":
            image = image[..., :channels]
        assert np.abs(image.astype(int) - expected).mean() <= (6 if encoding == "jpg" else 0)
        told = json.loads(sample["json"])
        assert told["index"] == index
        assert told["bed_colour"] == attributes["bed_colour"]
        assert manifest.classes[int(sample["cls"])] == attributes["view"]


def test_the_index_finds_labels_and_digests_every_image(tmp_path):
    manifest = write_shards(room_source(20), recipe(), tmp_path / "out")
    assert [shard.samples for shard in manifest.shards] == [8, 8, 4]
    assert manifest == read_manifest(tmp_path / "out")
    samples = iter(stock(tmp_path / "out", manifest))
    for shard in manifest.shards:
        tar = (tmp_path / "out" / shard.file).read_bytes()
        assert (len(tar), xxhash.xxh3_64_hexdigest(tar)) == (shard.bytes, shard.digest)
        for record in read_index((tmp_path / "out" / shard.index).read_bytes(), shard.samples, shard.index):
            sample = next(samples)
            image = tar[record["offset"] : record["offset"] + record["size"]]
            assert image == sample["jpg"]
            assert xxhash.xxh3_64_intdigest(image) == record["digest"]
            assert record["label"] == int(sample["cls"])
            assert tar[record["json_offset"] : record["json_offset"] + record["json_size"]] == sample["json"]


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        write_shards(room_source(150), recipe(shard_size=40), tmp_path / str(workers), pool=LocalPool(workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_seed_decides_the_order_and_nothing_else(tmp_path):
    first = write_shards(room_source(40), recipe(seed=1), tmp_path / "1")
    second = write_shards(room_source(40), recipe(seed=2), tmp_path / "2")
    one, two = ({s["__key__"]: s["jpg"] for s in stock(tmp_path / n, m)} for n, m in (("1", first), ("2", second)))
    assert one == two
    assert list(one) != list(two)
    assert list(one) != sorted(one)


def picture(value: int) -> bytes:
    return encode(np.full((20, 30, 3), value, np.uint8), "png")


@pytest.fixture
def tree(tmp_path) -> Path:
    """150 images of three classes, one of them not an image."""
    for number in range(150):
        path = tmp_path / "tree" / ("cat", "dog", "eel")[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number) if number != 77 else b"no image")
    return tmp_path / "tree"


@pytest.mark.parametrize("workers", [1, 2])
def test_undecodable_inputs_are_left_out_and_listed(tmp_path, tree, workers):
    manifest = write_shards(
        open_source("folder", tree), recipe(encoding="raw", name="t"), tmp_path / "out", pool=LocalPool(workers)
    )
    assert manifest.count == 149
    (skipped,) = manifest.skipped
    assert skipped["input"] == "eel/077.png"
    assert "no readable image" in skipped["reason"]
    assert manifest.classes == ("cat", "dog", "eel")
    for sample in stock(tmp_path / "out", manifest):
        assert sample["raw"][0] % 3 == int(sample["cls"])  # value 3k+c is in the folder of class c


@pytest.fixture
def archive(tmp_path, tree) -> Path:
    """The same images, which can only be read one after the other."""
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(tree, "tree")
    return tmp_path / "tree.tar.gz"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_too_many_undecodable_inputs_leave_nothing(tmp_path, request, kind, workers):
    path = request.getfixturevalue(kind)
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"1 of the first \d+ images .*eel/077.png.*max_bad \(0.001\)"):
        write_shards(
            open_source("folder", path),
            recipe(shard_size=200),
            tmp_path / "a" / "b",
            pool=LocalPool(workers),
            max_bad=0.001,
        )
    assert set(tmp_path.iterdir()) == before


def test_shards_that_were_finished_before_too_many_inputs_were_bad_are_used_by_the_next_run(tmp_path, tree):
    source = open_source("folder", tree)
    with pytest.raises(DataError, match="max_bad"):
        write_shards(source, recipe(), tmp_path / "out", max_bad=0.001)
    found: list[int] = []
    write_shards(source, recipe(), tmp_path / "out", report=lambda *now: found.append(now[3]))
    assert found[-1] >= 8
    write_shards(source, recipe(), tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_a_shard_of_nothing_but_bad_inputs_is_not_written(tmp_path, tree):
    for number in range(0, 150, 2):
        (tree / ("cat", "dog", "eel")[number % 3] / f"{number:03d}.png").write_bytes(b"no image")
    manifest = write_shards(open_source("folder", tree), recipe(shard_size=1), tmp_path / "out", max_bad=1)
    assert (manifest.count, len(manifest.shards), len(manifest.skipped)) == (74, 74, 76)
    assert len(stock(tmp_path / "out", manifest)) == 74
    assert verify(tmp_path / "out", LocalPool(1)).findings == ()


def test_images_without_folders_have_no_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    for number in range(5):
        (tmp_path / "flat" / f"{number}.png").write_bytes(picture(number))
    manifest = write_shards(open_source("folder", tmp_path / "flat"), recipe(), tmp_path / "out")
    assert manifest.classes == ()
    assert all("cls" not in sample and "json" not in sample for sample in stock(tmp_path / "out", manifest))
    shard = manifest.shards[0]
    assert (read_index((tmp_path / "out" / shard.index).read_bytes(), 5, "")["label"] == -1).all()


@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_count_takes_the_first_inputs_less_those_that_cannot_be_read(tmp_path, request, kind):
    source = open_source("folder", request.getfixturevalue(kind))
    inputs = [item.name for item in source.items()]
    at = next(number for number, name in enumerate(inputs) if name.endswith("077.png"))
    for count in (at, at + 1, at + 2):
        manifest = write_shards(source, recipe(count=count, encoding="raw"), tmp_path / str(count), max_bad=0.1)
        keys = sorted(int(sample["__key__"]) for sample in stock(tmp_path / str(count), manifest))
        assert keys == [number for number in range(count) if number != at]
        assert len(manifest.skipped) == (count > at)
    with pytest.raises(DataError, match=r"count is 151, but .* has 150 images"):
        write_shards(source, recipe(count=151), tmp_path / "151")
    assert not list(tmp_path.glob("*151*"))


def test_a_tree_and_an_archive_of_it_have_the_same_images(tmp_path, tree, archive):
    samples = []
    for number, path in enumerate((tree, archive)):
        manifest = write_shards(open_source("folder", path), recipe(encoding="raw"), tmp_path / str(number))
        found = stock(tmp_path / str(number), manifest)
        samples.append(sorted((sample["raw"], sample["cls"]) for sample in found))
        assert [sample["__key__"] for sample in found] != sorted(sample["__key__"] for sample in found)
    assert samples[0] == samples[1]


def test_the_same_again_does_nothing_and_other_settings_are_refused(tmp_path, tree):
    out = tmp_path / "out"
    manifest = write_shards(open_source("folder", tree), recipe(), out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_shards(open_source("folder", tree), recipe(), out, pool=LocalPool(2)) == manifest
    with pytest.raises(DataError, match="image_size there 16, now 32"):
        write_shards(open_source("folder", tree), recipe(image_size=32), out)
    (tree / "cat" / "more.png").write_bytes(picture(9))
    with pytest.raises(DataError, match="input_files there 150, now 151"):
        write_shards(open_source("folder", tree), recipe(), out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(DataError, match="holds other files"):
        write_shards(room_source(3), recipe(), tmp_path / "thesis")
    with pytest.raises(DataError, match="is a file"):
        write_shards(room_source(3), recipe(), tmp_path / "thesis" / "chapter.txt")
    (tmp_path / "empty").mkdir()
    assert write_shards(room_source(3), recipe(), tmp_path / "empty").count == 3


def test_lost_parts_are_noticed_at_the_next_run(tmp_path):
    manifest = write_shards(room_source(20), recipe(), tmp_path / "out")
    (tmp_path / "out" / manifest.shards[1].file).unlink()
    with pytest.raises(DataError, match="damaged at rooms-000001"):
        write_shards(room_source(20), recipe(), tmp_path / "out")


def test_an_empty_source_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.txt").write_text("none")
    with pytest.raises(DataError, match="holds no image"):
        write_shards(open_source("folder", tmp_path / "in"), recipe(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_failed_write_is_reported_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            write_shards(room_source(30), recipe(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_keeps_the_finished_shards_and_the_next_run_continues(tmp_path, small_disk, workers):
    make = partial(write_shards, room_source(600), recipe(shard_size=100, encoding="raw"), pool=LocalPool(workers))
    make(tmp_path / "whole")
    with pytest.raises(StorageError, match=r"cannot be written: No space left on device; run it again"):
        make(small_disk / "out")
    assert not (small_disk / "out").exists()
    (work,) = small_disk.iterdir()
    left = {path.name for path in work.iterdir()}
    records = {name for name in left if name.startswith("rooms-") and name.endswith(".json")}
    assert 1 <= len(records) < 6
    assert not any(name.endswith(".part") for name in left) or workers > 1
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    found: list[int] = []
    make(small_disk / "out", report=lambda *now: found.append(now[3]))
    assert found[-1] == 100 * len(records)
    assert contents(small_disk / "out") == contents(tmp_path / "whole")


# It never ends by itself, so that even a late signal comes before the set is complete.
PROGRAM = """
import signal, sys
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import open_source, room_source
from dcgan_dist.parallel import LocalPool
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program started in the background would ignore it
    path, out, workers = sys.argv[1:]
    source = room_source(3000) if path == "rooms" else open_source("folder", path)
    def wait_at_the_end(done, share, bad, found):
        if share == 1:
            signal.pause()
    recipe = Recipe(image_size=16, shard_size=200)
    write_shards(source, recipe, out, pool=LocalPool(int(workers)), report=wait_at_the_end)
"""


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def kill_when(program: list[object], condition: Callable[[], object], number: signal.Signals) -> None:
    """Start a program, and end it with a signal when a condition holds; wait until its workers end too."""
    process = subprocess.Popen([sys.executable, *map(str, program)], stderr=subprocess.DEVNULL)
    wait_until(lambda: condition() or process.poll() is not None, "the condition does not come")
    assert process.poll() is None, "it ended too early"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    process.wait(timeout=60)
    wait_until(lambda: not any(map(is_running, children)), "workers outlive their parent")


@pytest.fixture(scope="module")
def long_archive(tmp_path_factory) -> Path:
    """3000 images in a compressed tar: three blocks of a spool."""
    path = tmp_path_factory.mktemp("in") / "images.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for number in range(3000):
            entry = tarfile.TarInfo(f"{number % 2}/{number}.png")
            content = encode(np.full((20, 20, 3), number % 256, np.uint8), "png")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["rooms", "archive"])
def test_killed_at_any_point_it_continues_and_ends_with_the_same_bytes(tmp_path, long_archive, kind, workers):
    program, out = tmp_path / "program.py", tmp_path / "made" / "out"
    program.write_text(PROGRAM)
    source = room_source(3000) if kind == "rooms" else open_source("folder", long_archive)
    write_shards(source, Recipe(image_size=16, shard_size=200), tmp_path / "whole", pool=LocalPool(workers))
    work = out.parent / ".out.unfinished"

    def records() -> int:
        return len(list(work.glob("images-*.json")))

    def blocks() -> int:
        journal = work / "images.journal"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    points = [(work / "settings.json").exists]
    points += [lambda: blocks() >= 1, lambda: blocks() >= 2] if kind == "archive" else []
    points += [lambda: records() >= 3, lambda: records() >= 9]
    for number, point in enumerate(points):
        ending = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[number % 3]
        kill_when([program, long_archive if kind == "archive" else "rooms", out, workers], point, ending)
        assert not out.exists()
    assert records() >= 9
    found: list[int] = []
    write_shards(
        source,
        Recipe(image_size=16, shard_size=200),
        out,
        pool=LocalPool(workers),
        report=lambda *now: found.append(now[3]),
    )
    assert contents(out) == contents(tmp_path / "whole")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    if kind == "rooms":
        assert found[-1] >= 9 * 200


def test_the_second_of_two_concurrent_processes_is_refused(tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)

    def refused() -> bool:
        if not (tmp_path / ".out.unfinished" / "settings.json").exists():
            return False
        with pytest.raises(DataError, match="being made by another process"):
            write_shards(room_source(3000), Recipe(image_size=16), out)
        return True

    kill_when([program, "rooms", out, 1], refused, signal.SIGKILL)


def interrupted(source: Source, out: Path, after: int, **changes) -> None:
    """Start writing a set and stop in the middle of it, in this process."""

    def stop(done: int, share: float, bad: int, found: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, recipe(**changes), out, report=stop)


def test_nothing_half_written_or_damaged_is_trusted(tmp_path):
    whole, out, work = tmp_path / "whole", tmp_path / "out", tmp_path / ".out.unfinished"
    write_shards(room_source(40), recipe(), whole)
    names = ("rooms-000000.tar", "rooms-000000.index", "rooms-000000.json")
    spoilers = [
        (name, spoil)
        for name in names
        for spoil in (
            lambda content: b"",
            lambda content: content[:-2],
            lambda content: content + b"x",
            lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
            None,
        )
    ]
    for name, spoil in spoilers:
        interrupted(room_source(40), out, 24)
        if spoil is None:
            (work / name).unlink()
        else:
            (work / name).write_bytes(spoil((work / name).read_bytes()))
        (work / ".rooms-000003.tar.1234.part").write_bytes(b"half")
        found: list[int] = []
        write_shards(room_source(40), recipe(), out, report=lambda *now, found=found: found.append(now[3]))
        assert found[-1] == 16
        assert contents(out) == contents(whole)
        for path in out.iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def halfway(long_archive, tmp_path_factory) -> Path:
    """The shards of an archive, written without interruption, and the rest of an interrupted run."""
    folder, source = tmp_path_factory.mktemp("halfway"), open_source("folder", long_archive)
    write_shards(source, recipe(shard_size=500), folder / "whole")
    interrupted(source, folder / "out", 2000, shard_size=500)
    return folder


@pytest.mark.parametrize("name", ["images.unordered", "images.journal"])
@pytest.mark.parametrize("size", [0, 5_000, 100_000, -1])
def test_a_damaged_spool_is_used_up_to_the_damage(tmp_path, long_archive, halfway, name, size):
    shutil.copytree(halfway / ".out.unfinished", tmp_path / ".out.unfinished")
    path = tmp_path / ".out.unfinished" / name
    content = path.read_bytes()
    assert len(content) > 5_000
    if size == -1:
        middle = len(content) * 3 // 4
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[:size])
    found: list[int] = []
    source = open_source("folder", long_archive)
    write_shards(source, recipe(shard_size=500), tmp_path / "out", report=lambda *now: found.append(now[3]))
    assert found[-1] in ((0,) if 0 <= size <= 5_000 else (0, 1024, 2048))
    assert size != -1 or found[-1] == 1024
    assert contents(tmp_path / "out") == contents(halfway / "whole")


def test_unfinished_work_of_other_settings_is_refused_and_kept(tmp_path):
    interrupted(room_source(40), tmp_path / "out", 24)
    work = tmp_path / ".out.unfinished"
    before = contents(work)
    with pytest.raises(
        DataError, match=r"unfinished \(seed there 0, now 2\): .*/\.out\.unfinished' to discard that work"
    ):
        write_shards(room_source(40), recipe(seed=2), tmp_path / "out")
    assert contents(work) == before
    write_shards(room_source(40), recipe(), tmp_path / "whole")
    write_shards(room_source(40), recipe(), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_unfinished_work_whose_settings_are_damaged_is_refused_and_kept(tmp_path):
    interrupted(room_source(40), tmp_path / "out", 24)
    work = tmp_path / ".out.unfinished"
    for content in (b"", b"{", b"[]"):
        (work / "settings.json").write_bytes(content)
        before = contents(work)
        with pytest.raises(DataError, match=r"settings.json of its unfinished work is damaged"):
            write_shards(room_source(40), recipe(), tmp_path / "out")
        assert contents(work) == before
    (work / "settings.json").unlink()
    with pytest.raises(DataError, match=r"holds other files, such as 'rooms-000000.index'"):
        write_shards(room_source(40), recipe(), tmp_path / "out")
    assert (work / "rooms-000000.tar").exists()


def test_work_of_a_former_run_outlives_input_that_cannot_be_used(tmp_path, long_archive):
    source = open_source("folder", long_archive)
    interrupted(source, tmp_path / "out", 2000, shard_size=500)
    spool = tmp_path / ".out.unfinished" / "images.unordered"
    size = spool.stat().st_size
    content = long_archive.read_bytes()

    class Damaged(type(source)):
        def items(self):
            raise DataError("damaged")

    fields = {entry.name: getattr(source, entry.name) for entry in dataclasses.fields(source)}
    with pytest.raises(DataError, match="damaged"):
        write_shards(
            Damaged(**fields),
            recipe(shard_size=500),
            tmp_path / "out",
        )
    assert spool.stat().st_size == size > 0
    assert long_archive.read_bytes() == content


HIDDEN = (".DS_Store", "._x", ".nfs0001", "Thumbs.db", "desktop.ini")


def test_hidden_files_in_the_output_count_for_nothing_and_stay(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    interrupted(room_source(40), out, 24)
    for number, folder in enumerate((out, tmp_path / ".out.unfinished")):
        for name in HIDDEN[number:]:
            (folder / name).write_text("x")
    found: list[int] = []
    write_shards(room_source(40), recipe(), out, report=lambda *now: found.append(now[3]))
    assert found[-1] >= 24
    write_shards(room_source(40), recipe(), tmp_path / "whole")
    ours = {name: content for name, content in contents(out).items() if name not in HIDDEN}
    assert ours == contents(tmp_path / "whole")
    assert {name for name in HIDDEN if (out / name).exists()} == set(HIDDEN)
    write_shards(room_source(40), recipe(), out)


def test_other_files_in_the_folder_of_unfinished_work_are_not_removed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    work = tmp_path / ".out.unfinished"
    work.mkdir()
    (work / ".notes").write_text("mine")
    with pytest.raises(DataError, match="cannot be read"):
        write_shards(open_source("folder", tmp_path / "in"), recipe(), tmp_path / "out")
    assert [path.name for path in work.iterdir()] == [".notes"]


def test_a_run_that_ended_before_it_had_cleared_up_is_cleared_up_after(tmp_path):
    write_shards(room_source(40), recipe(), tmp_path / "whole")
    interrupted(room_source(40), tmp_path / "out", 40)
    work = tmp_path / ".out.unfinished"
    (work / "manifest.json").write_bytes((tmp_path / "whole" / "manifest.json").read_bytes())
    work.rename(tmp_path / "out")
    assert (tmp_path / "out" / "rooms-000000.json").exists()
    assert write_shards(room_source(40), recipe(), tmp_path / "out").count == 40
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interruption_before_the_first_shard_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()

    class Interrupting(RoomSource):
        def parts(self, size: int, seed: int, count: int | None = None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(Interrupting(**vars(room_source(30))), recipe(), tmp_path / "a" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_counts_what_was_there_and_ends_with_everything(tmp_path):
    reports: list[tuple[int, float, int, int]] = []
    interrupted(room_source(30), tmp_path / "out", 16)
    write_shards(room_source(30), recipe(), tmp_path / "out", report=lambda *now: reports.append(now))
    assert reports == [(8, 8 / 30, 0, 8), (16, 16 / 30, 0, 16), (24, 24 / 30, 0, 16), (30, 1.0, 0, 16)]


def test_headers_are_those_of_the_standard_library():
    for name, size in (("000000001.jpg", 1234), ("123456789.json", 0), ("x" * 99, 8**11 - 1)):
        entry = tarfile.TarInfo(name)
        entry.size = size
        assert tar_header(name, size) == entry.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.skipif("DCGAN_DIST_DATA" not in os.environ, reason="DCGAN_DIST_DATA names no folder of real images")
def test_real_images_come_back_as_they_were(tmp_path):
    source = open_source("folder", Path(os.environ["DCGAN_DIST_DATA"], "faces_64.tar.gz"))
    manifest = write_shards(
        source, recipe(image_size=64, encoding="png", count=40), tmp_path / "out", pool=LocalPool(2)
    )
    samples = {int(sample["__key__"]): sample["png"] for sample in stock(tmp_path / "out", manifest)}
    for number, (item, _) in enumerate(zip(source.items(), range(40), strict=False)):
        original = Image.open(io.BytesIO(item.content.content)).convert("RGB")
        np.testing.assert_array_equal(decode(samples[number]), np.asarray(original))
