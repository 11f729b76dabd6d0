"""Checking whole sets of shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dcgan_dist.data.manifest import KEEP_NAME, MANIFEST_NAME, pack_keep, read_index
from dcgan_dist.data.shards import Recipe, write_shards
from dcgan_dist.data.sources import room_source
from dcgan_dist.data.verification import verify
from dcgan_dist.errors import DataError
from dcgan_dist.parallel import LocalPool
from tests.data.shard_sets import random_images, write_tar

HERE = LocalPool(1)


@pytest.fixture
def out(tmp_path) -> Path:
    write_shards(room_source(20), Recipe(image_size=16, shard_size=8, name="rooms"), tmp_path / "out")
    return tmp_path / "out"


def findings(folder: Path) -> list[str]:
    return list(verify(folder, HERE).findings)


def test_an_intact_set_has_no_findings_with_any_number_of_workers(out):
    for workers in (1, 2):
        checked = verify(out, LocalPool(workers))
        assert (checked.findings, checked.images, checked.shards) == ((), 20, 3)


def test_every_flipped_byte_cut_and_missing_file_is_found(out):
    generator = np.random.default_rng(0)
    for path in sorted(out.iterdir()):
        if path.name == MANIFEST_NAME:
            continue
        content = path.read_bytes()
        for _ in range(10):
            spoiled = bytearray(content)
            spoiled[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
            path.write_bytes(spoiled)
            assert any(line.startswith(path.name) for line in findings(out))
        for shorter in (content[:-1], content[:100], b"", content + b"x"):
            path.write_bytes(shorter)
            assert any(line.startswith(path.name) for line in findings(out))
        path.unlink()
        assert any(line.startswith(f"{path.name}: it cannot be read") for line in findings(out))
        path.write_bytes(content)
    assert findings(out) == []


def test_a_finding_names_the_shard_the_byte_and_what_is_wrong(out):
    tar = out / "rooms-000001.tar"
    record = read_index((out / "rooms-000001.index").read_bytes(), 8, "")[5]
    start, size, whole = int(record["offset"]), int(record["size"]), tar.read_bytes()

    def with_flipped(at: int) -> list[str]:
        content = bytearray(whole)
        content[at] ^= 1
        tar.write_bytes(content)
        return findings(out)

    assert with_flipped(start + 100) == [f"rooms-000001.tar: byte {start}: image 5 ({size} bytes) is damaged"]
    assert with_flipped(start - 512) == [f"rooms-000001.tar: has a damaged header at byte {start - 512}"]
    assert with_flipped(len(whole) - 1) == [f"rooms-000001.tar: {end_of(whole)}"]
    tar.write_bytes(whole[: start + 10])
    assert findings(out) == [f"rooms-000001.tar: byte {start + 10}: it is cut off, the last 3 images are missing"]
    tar.write_bytes(whole + b"abc")
    assert findings(out) == [f"rooms-000001.tar: byte {len(whole)}: it has 3 bytes more than it should"]
    tar.write_bytes(b"")
    assert findings(out) == ["rooms-000001.tar: byte 0: it is cut off, the last 8 images are missing"]
    tar.write_bytes((out / "rooms-000000.tar").read_bytes())
    assert findings(out) == ["rooms-000001.tar: byte 0: it has the content of rooms-000000.tar"]


def end_of(tar: bytes) -> str:
    """Return the finding for a byte after the last member, where the end mark begins."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        last = archive.getmembers()[-1]
    return f"has bytes after its end at byte {last.offset_data + -(-last.size // 512) * 512}"


def keep(out: Path, kept: np.ndarray, count: int | None = None) -> None:
    content = pack_keep(kept)
    (out / KEEP_NAME).write_bytes(content)
    manifest = json.loads((out / MANIFEST_NAME).read_text())
    count = int(kept.sum()) if count is None else count
    manifest["keep"] = {"file": KEEP_NAME, "count": count, "digest": xxhash.xxh3_64_hexdigest(content)}
    (out / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_a_damaged_keep_list_is_found(out):
    kept = np.arange(20) % 3 > 0
    keep(out, kept)
    assert findings(out) == []
    content = (out / KEEP_NAME).read_bytes()
    for spoiled, what in (
        (content[:-1], "byte 2: it is cut off, 1 bytes are missing"),
        (content + b"0", "byte 3: it has 1 bytes more than it should"),
        (b"\0" + content[1:], "its digest differs from the manifest's"),
    ):
        (out / KEEP_NAME).write_bytes(spoiled)
        assert findings(out) == [f"{KEEP_NAME}: {what}"]
    keep(out, kept, count=14)
    assert findings(out) == [f"{KEEP_NAME}: it keeps 13 images, {MANIFEST_NAME} says 14"]
    (out / KEEP_NAME).unlink()
    assert findings(out)[0].startswith(f"{KEEP_NAME}: it cannot be read")


def test_of_shards_without_a_manifest_the_damage_that_can_be_seen_is_found(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", random_images(6, seed=number), encoding="jpg")
    checked = verify(tmp_path, HERE)
    assert (checked.findings, checked.images, checked.shards, checked.has_manifest) == ((), 12, 2, False)
    whole = (tmp_path / "1.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as archive:
        members = archive.getmembers()
    image = [member for member in members if member.name.endswith("jpg")][3]
    spoiled = bytearray(whole)
    spoiled[image.offset_data : image.offset_data + 9] = b"no image."
    (tmp_path / "1.tar").write_bytes(spoiled)
    assert findings(tmp_path)[0].startswith(f"1.tar: byte {image.offset_data}: image 3 is damaged: it is no readable")
    spoiled = bytearray(whole)
    spoiled[image.offset + 3] ^= 1
    (tmp_path / "1.tar").write_bytes(spoiled)
    assert findings(tmp_path) == [f"1.tar: has a damaged header at byte {image.offset}"]
    (tmp_path / "1.tar").write_bytes(whole[:5000])
    assert findings(tmp_path)[-1].startswith("1.tar: is cut off at byte 5000")
    (tmp_path / "1.tar").write_bytes(b"")
    assert len(findings(tmp_path)) == 1


def test_what_is_no_finished_set_is_refused(tmp_path, out):
    with pytest.raises(DataError, match="there is no such folder"):
        verify(tmp_path / "none", HERE)
    (out / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match="no finished shards"):
        verify(out, HERE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no finished shards"):
        verify(tmp_path / "empty", HERE)
