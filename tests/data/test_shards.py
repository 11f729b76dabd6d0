import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from PIL import Image

from dcgan_dist.data.images import decode, encode, fit
from dcgan_dist.data.manifest import MANIFEST_NAME, Manifest, read_index
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.shards import Recipe, read_manifest, verify, write_shards
from dcgan_dist.data.sources import open_source, room_source
from dcgan_dist.errors import DataError, StorageError


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
        write_shards(room_source(150), recipe(shard_size=40), tmp_path / str(workers), workers=workers)
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
    """150 images of three classes, one of them no image."""
    for number in range(150):
        path = tmp_path / "tree" / ("cat", "dog", "eel")[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number) if number != 77 else b"no image")
    return tmp_path / "tree"


@pytest.mark.parametrize("workers", [1, 2])
def test_undecodable_inputs_are_left_out_and_listed(tmp_path, tree, workers):
    manifest = write_shards(
        open_source("folder", tree), recipe(encoding="raw", name="t"), tmp_path / "out", workers=workers
    )
    assert manifest.count == 149
    (skipped,) = manifest.skipped
    assert skipped["input"] == "eel/077.png"
    assert "no readable image" in skipped["reason"]
    assert manifest.classes == ("cat", "dog", "eel")
    for sample in stock(tmp_path / "out", manifest):
        assert sample["raw"][0] % 3 == int(sample["cls"])  # value 3k+c lies in the folder of class c


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_undecodable_inputs_leave_nothing(tmp_path, tree, workers):
    with pytest.raises(DataError, match=r"1 of the first \d+ images .*eel/077.png.*max_bad \(0.001\)"):
        write_shards(open_source("folder", tree), recipe(), tmp_path / "a" / "b", workers=workers, max_bad=0.001)
    assert list(tmp_path.iterdir()) == [tree]


def test_images_without_folders_have_no_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    for number in range(5):
        (tmp_path / "flat" / f"{number}.png").write_bytes(picture(number))
    manifest = write_shards(open_source("folder", tmp_path / "flat"), recipe(), tmp_path / "out")
    assert manifest.classes == ()
    assert all("cls" not in sample and "json" not in sample for sample in stock(tmp_path / "out", manifest))
    shard = manifest.shards[0]
    assert (read_index((tmp_path / "out" / shard.index).read_bytes(), 5, "")["label"] == -1).all()


def test_count_takes_the_first_readable_images(tmp_path, tree):
    first = write_shards(open_source("folder", tree), recipe(count=130, encoding="raw"), tmp_path / "130", workers=2)
    assert first.count == 130
    assert len(first.skipped) == 1
    assert not write_shards(open_source("folder", tree), recipe(count=20), tmp_path / "20").skipped
    with pytest.raises(DataError, match=r"count is 150, but .* has 149 images"):
        write_shards(open_source("folder", tree), recipe(count=150), tmp_path / "150")
    assert not (tmp_path / "150").exists()


def test_the_same_again_does_nothing_and_other_settings_are_refused(tmp_path, tree):
    out = tmp_path / "out"
    manifest = write_shards(open_source("folder", tree), recipe(), out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_shards(open_source("folder", tree), recipe(), out, workers=2) == manifest
    with pytest.raises(DataError, match="image_size there 16, now 32"):
        write_shards(open_source("folder", tree), recipe(image_size=32), out)
    (tree / "cat" / "more.png").write_bytes(picture(9))
    with pytest.raises(DataError, match="input_files there 150, now 151"):
        write_shards(open_source("folder", tree), recipe(), out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
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


def test_a_write_that_fails_is_said_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            write_shards(room_source(30), recipe(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


PROGRAM = """
import sys
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import room_source
if __name__ == "__main__":
    print("go", flush=True)
    report = lambda done, share, bad: done == 1000 and print("going", flush=True)
    write_shards(room_source(3000), Recipe(image_size=16), sys.argv[1], workers=int(sys.argv[2]), report=report)
"""


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_it_leaves_nothing_finished_and_the_next_run_succeeds(tmp_path, workers):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "made" / "out"
    process = subprocess.Popen([sys.executable, program, out, str(workers)], stdout=subprocess.PIPE, text=True)
    lines = (process.stdout.readline(), process.stdout.readline())
    assert lines == ("go\n", "going\n")
    with pytest.raises(DataError, match="being made by another process"):
        write_shards(room_source(3000), Recipe(image_size=16), out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert bool(children) == (workers > 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    assert (out.parent / ".out.unfinished").exists()
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    assert write_shards(room_source(30), recipe(), out).count == 30
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not verify(out)


def test_an_error_in_mid_run_leaves_nothing(tmp_path):
    def fail(done: int, share: float, bad: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(room_source(30), recipe(), tmp_path / "a" / "out", report=fail)
    assert not list(tmp_path.iterdir())


def test_progress_ends_with_everything(tmp_path):
    reports: list[tuple[int, float, int]] = []
    write_shards(room_source(30), recipe(), tmp_path / "out", report=lambda *now: reports.append(now))
    assert reports[0][1] < 0.1
    assert reports[-1] == (30, 1.0, 0)


def test_verify_finds_every_flipped_byte(tmp_path):
    out = tmp_path / "out"
    write_shards(room_source(20), recipe(), out)
    assert verify(out) == []
    generator = np.random.default_rng(0)
    for name, content in contents(out).items():
        if name == MANIFEST_NAME:
            continue
        for _ in range(5):
            spoiled = bytearray(content)
            spoiled[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
            (out / name).write_bytes(spoiled)
            assert any(line.startswith(name) for line in verify(out, workers=2))
        for shorter in (content[:-1], b""):
            (out / name).write_bytes(shorter)
            assert any(line.startswith(name) for line in verify(out))
        (out / name).unlink()
        assert any(line.startswith(f"{name}: it cannot be read") for line in verify(out))
        (out / name).write_bytes(content)
    assert verify(out) == []


def test_verify_names_the_damaged_image(tmp_path):
    out = tmp_path / "out"
    manifest = write_shards(room_source(20), recipe(), out)
    shard = manifest.shards[1]
    record = read_index((out / shard.index).read_bytes(), 8, "")[5]
    content = bytearray((out / shard.file).read_bytes())
    content[record["offset"] + 100] ^= 1
    (out / shard.file).write_bytes(content)
    assert verify(out)[1:] == [
        f"{shard.file}: image 5 (bytes {record['offset']} to {record['offset'] + record['size']}) is damaged"
    ]


def test_what_has_no_manifest_is_not_finished(tmp_path):
    with pytest.raises(DataError, match="no finished shards"):
        verify(tmp_path)


@pytest.mark.skipif("DCGAN_DIST_DATA" not in os.environ, reason="DCGAN_DIST_DATA names no folder of real images")
def test_real_images_come_back_as_they_were(tmp_path):
    source = open_source("folder", Path(os.environ["DCGAN_DIST_DATA"], "faces_64.tar.gz"))
    manifest = write_shards(source, recipe(image_size=64, encoding="png", count=40), tmp_path / "out", workers=2)
    samples = {int(sample["__key__"]): sample["png"] for sample in stock(tmp_path / "out", manifest)}
    for number, (item, _) in enumerate(zip(source.items(), range(40), strict=False)):
        original = Image.open(io.BytesIO(item.content.content)).convert("RGB")
        np.testing.assert_array_equal(decode(samples[number]), np.asarray(original))
