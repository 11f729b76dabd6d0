"""Every kind of damage to a set of shards is found, and moves no other image."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from dcgan_dist.data import stream as stream_module
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.data.tar_index import Fault, damaged_headers, scan
from dcgan_dist.errors import DataError
from tests.data.shard_sets import encoded, make_set, random_images, write_tar

SIZES = [20, 25, 15]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=["jpg", "raw"])
def whole(request, tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("whole") / "set", SIZES, encoding=request.param)


@pytest.fixture
def shards(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "set")
    return type(whole)(tmp_path / "set", whole.images, whole.manifest)


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def one_epoch(folder, world_size=2, batch_size=10, **settings):
    """Return all batches of one epoch by rank, and their reports of damage."""
    dataset = open_dataset(folder)
    parts = []
    for rank in range(world_size):
        stream = ImageStream(dataset, seed=3, batch_size=batch_size, rank=rank, world_size=world_size, **settings)
        parts.append([stream.read(batch) for batch in range(stream.batches_per_epoch)])
    batches = [batch for part in parts for batch in part]
    return (
        parts,
        [found for batch in batches for found in batch.damage],
        [found for batch in batches for found in batch.flaws],
    )


def delivered(parts):
    """Label and pixels by (batch, slot)."""
    return {
        (number, slot): (label, image.tobytes())
        for part in parts
        for number, batch in enumerate(part)
        for slot, label, image in zip(batch.slots.tolist(), batch.labels.tolist(), batch.images.numpy(), strict=True)
    }


def assert_only_lost(whole, shards, labels):
    """Check that all images but those are delivered, each in its slot; return the reports of damage."""
    expected, _, _ = one_epoch(whole.folder)
    parts, damage, flaws = one_epoch(shards.folder)
    expected = {place: image for place, image in delivered(expected).items() if image[0] not in labels}
    assert delivered(parts) == expected
    assert len(damage) == len(labels)
    return damage, flaws


def test_undamaged_shards_are_found_so(whole):
    parts, damage, flaws = one_epoch(whole.folder)
    assert len(delivered(parts)) == sum(SIZES)
    assert (damage, flaws) == ([], [])


def test_any_flipped_byte_of_a_shard_is_found_and_costs_one_image_at_most(whole, shards):
    tar = shards.tars[1]
    content, draw = tar.read_bytes(), np.random.default_rng(0)
    places = {*draw.integers(0, len(content), 40).tolist(), 0, 148, len(content) - 1}
    for place in sorted(places):
        flip(tar, place)
        _, damage, flaws = one_epoch(shards.folder)
        assert len(damage) + len(flaws) >= 1, place
        assert len(damage) <= 1
        assert {found.shard for found in [*damage, *flaws]} == {tar.name}
        tar.write_bytes(content)


@pytest.mark.parametrize("of_label", [False, True])
def test_a_flipped_header_byte_costs_no_image_and_is_reported_with_its_offset(whole, shards, of_label):
    with tarfile.open(shards.tars[1]) as archive:
        header = [m.offset for m in archive if m.name.endswith("cls") == of_label][7]
    flip(shards.tars[1], header + 3)
    _, flaws = assert_only_lost(whole, shards, set())
    assert [(flaw.shard, flaw.offset) for flaw in flaws] == [("set-000001.tar", header)]
    assert "damaged header" in flaws[0].reason


def test_a_damaged_header_is_reported_when_its_image_is_read_not_at_the_end_of_the_epoch(shards):
    header = int(shards.record(1, 7)["offset"]) - 512
    flip(shards.tars[1], header + 3)
    stream = ImageStream(open_dataset(shards.folder), seed=3, batch_size=10)
    for batch in map(stream.read, range(stream.batches_per_epoch)):
        if 20 + 7 in batch.labels.tolist():
            assert [flaw.offset for flaw in batch.flaws] == [header]
            break
        assert not batch.flaws


def test_a_flipped_label_costs_no_image_and_is_reported_with_its_offset(whole, shards):
    with tarfile.open(shards.tars[2]) as archive:
        place = [member.offset_data for member in archive if member.name.endswith("cls")][4]
    flip(shards.tars[2], place)
    _, flaws = assert_only_lost(whole, shards, set())
    assert [(flaw.shard, flaw.offset) for flaw in flaws] == [("set-000002.tar", place)]


def test_a_flipped_image_byte_costs_that_image_alone(whole, shards):
    record = shards.record(0, 11)
    flip(shards.tars[0], int(record["offset"]) + 100)
    damage, flaws = assert_only_lost(whole, shards, {11})
    assert [(found.shard, found.offset) for found in damage] == [("set-000000.tar", int(record["offset"]))]
    assert flaws == []


def test_a_truncation_anywhere_costs_the_images_after_it_and_is_reported(whole, shards):
    tar = shards.tars[1]
    content = tar.read_bytes()
    ends = [int(shards.record(1, row)["offset"]) + int(shards.record(1, row)["size"]) for row in range(SIZES[1])]
    for cut in [*range(0, len(content), len(content) // 8), len(content) - 1]:
        tar.write_bytes(content[:cut])
        lost = {20 + row for row, end in enumerate(ends) if end > cut}
        damage, flaws = assert_only_lost(whole, shards, lost)
        assert (flaws[0].shard, flaws[0].offset) == ("set-000001.tar", cut)
        assert all("the file ends before" in found.reason for found in damage)


@pytest.mark.parametrize("rubbish", [b"x", bytes(10240), b"\0" * 512 + b"more"])
def test_bytes_after_the_end_cost_no_image_and_are_reported(whole, shards, rubbish):
    length = shards.tars[0].stat().st_size
    with shards.tars[0].open("ab") as file:
        file.write(rubbish)
    _, flaws = assert_only_lost(whole, shards, set())
    assert (flaws[0].shard, flaws[0].offset) == ("set-000000.tar", length)
    assert "after its end" in flaws[0].reason


def test_a_missing_shard_costs_its_images_alone(whole, shards):
    shards.tars[1].unlink()
    damage, _ = assert_only_lost(whole, shards, set(range(20, 45)))
    assert len({found.reason for found in damage}) == 1


def test_a_shard_swapped_for_another_costs_both_shards_images_alone(whole, shards):
    one, other = shards.tars[0].read_bytes(), shards.tars[1].read_bytes()
    shards.tars[0].write_bytes(other)
    shards.tars[1].write_bytes(one)
    damage, flaws = assert_only_lost(whole, shards, set(range(45)))
    assert {found.shard for found in damage} == {"set-000000.tar", "set-000001.tar"}
    assert {flaw.shard for flaw in flaws} <= {"set-000000.tar", "set-000001.tar"}


def test_a_shard_cut_short_while_it_is_read_costs_images_and_not_the_process(shards):
    stream = ImageStream(open_dataset(shards.folder), seed=3, batch_size=10)
    stream.read(0)
    os.truncate(shards.tars[1], 1024)
    lost = [found for batch in range(1, 6) for found in stream.read(batch).damage]
    assert {found.shard for found in lost} == {"set-000001.tar"}


def test_fail_ends_at_damage_that_costs_no_image_too(shards):
    header = int(shards.record(1, 7)["offset"]) - 512
    flip(shards.tars[1], header + 3)
    with pytest.raises(DataError, match=rf"'set-000001.tar' is damaged at byte {header} \(.*restore it") as error:
        one_epoch(shards.folder, on_damage="fail")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_byte_of_a_shard_is_compared_once_in_an_epoch_over_all_ranks(whole, monkeypatch, world_size):
    looked: list[str] = []
    plain = stream_module._OpenShard.inspect

    def counted(opened, again):
        looked.append(opened.name)
        plain(opened, again)

    monkeypatch.setattr(stream_module._OpenShard, "inspect", counted)
    one_epoch(whole.folder, world_size, batch_size=12)
    assert sorted(looked) == [tar.name for tar in whole.tars]


def test_headers_are_judged_as_the_standard_library_judges_them(tmp_path):
    header = tarfile.TarInfo("ä.png").tobuf(tarfile.USTAR_FORMAT)
    signed = bytearray(header)
    total = sum(header[:148] + header[156:]) + 256 - 256 * sum(byte > 127 for byte in header)
    signed[148:156] = b"%06o\0 " % total
    spaced = header[:148] + b" %5o\0 " % int(header[148:154], 8) + header[156:]
    broken = header[:5] + b"x" + header[6:]
    headers = np.frombuffer(header + bytes(signed) + spaced + broken, np.uint8).reshape(4, 512)
    assert damaged_headers(headers) == [3]
    assert damaged_headers(headers[:0]) == []


PICTURES = [encoded(image, "png") for image in random_images(12)]


def foreign(path, labels=True, extra=()):
    """A tar of twelve images, and its members by name."""
    files = [(f"{i:02d}.png", picture) for i, picture in enumerate(PICTURES)]
    if labels:
        files = [file for i, image in enumerate(files) for file in (image, (f"{i:02d}.cls", str(i).encode()))]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in [*files, *extra]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as archive:
        return {member.name: member for member in archive}


class TestShardsMadeElsewhere:
    def test_a_damaged_header_costs_its_image_and_not_those_after_it(self, tmp_path):
        tar = tmp_path / "a.tar"
        place = foreign(tar)["05.png"].offset
        flip(tar, place)
        dataset = open_dataset(tar)
        # Number 4 is directly before it, with its own label.
        assert dataset.labels().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        (told,) = dataset.manifest.damage
        assert (told["shard"], told["offset"]) == ("a.tar", place)
        assert f"1 damaged part ({told['bytes']:,} bytes) left out, first in 'a.tar' at byte {place}" in (
            dataset.describe()
        )
        assert open_dataset(tar) == dataset  # from the cache
        parts, damage, flaws = one_epoch(tar, batch_size=11, world_size=1)
        assert (len(delivered(parts)), damage, flaws) == (11, [], [])

    def test_an_image_that_may_have_lost_its_label_is_left_out_where_others_have_labels(self, tmp_path):
        tar = tmp_path / "a.tar"
        flip(tar, foreign(tar)["05.cls"].offset)
        dataset = open_dataset(tar)
        assert dataset.labels().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert any("without its label" in told["reason"] for told in dataset.manifest.damage)
        flip(tar, foreign(tar, labels=False)["05.png"].offset)
        assert open_dataset(tar).count == 11

    def test_a_truncation_costs_the_samples_after_it(self, tmp_path):
        tar = tmp_path / "a.tar"
        cut = foreign(tar)["07.png"].offset_data + 10
        os.truncate(tar, cut)
        dataset = open_dataset(tar)
        assert dataset.labels().tolist() == list(range(7))
        assert [told["offset"] for told in dataset.manifest.damage] == [cut - 10 - 512]

    def test_a_header_wiped_to_zeros_is_not_the_end(self, tmp_path):
        tar = tmp_path / "a.tar"
        place = foreign(tar)["03.png"].offset
        content = bytearray(tar.read_bytes())
        content[place : place + 512] = bytes(512)
        tar.write_bytes(content)
        assert open_dataset(tar).labels().tolist() == [0, 1, 2, *range(4, 12)]

    def test_an_empty_tar_among_others_is_reported(self, tmp_path):
        foreign(tmp_path / "a-0.tar")
        (tmp_path / "a-1.tar").write_bytes(b"")
        dataset = open_dataset(tmp_path / "a-{0..1}.tar")
        assert (dataset.sizes, [told["shard"] for told in dataset.manifest.damage]) == ((12, 0), ["a-1.tar"])

    @pytest.mark.parametrize(
        ("extra", "reason"),
        [
            ([("12.png", PICTURES[0]), ("12.json", b"{"), ("13.png", PICTURES[0]), ("13.cls", b"3")], "has no JSON"),
            ([("12.png", PICTURES[0]), ("12.png", b""), ("12.cls", b"3")], "has '12.png' twice"),
            ([("12.png", PICTURES[0]), ("12.jpg", b""), ("13.png", PICTURES[0]), ("13.cls", b"3")], "has 2 images"),
            ([("../12.png", PICTURES[0]), ("13.png", PICTURES[0]), ("13.cls", b"3")], "must not lead out"),
            ([("/12.png", PICTURES[0]), ("13.png", PICTURES[0]), ("13.cls", b"3")], "must not lead out"),
            ([("12.png", PICTURES[0]), ("12.json", b"[" * 100_000), ("13.png", b"x"), ("13.cls", b"3")], "has no JSON"),
        ],
    )
    def test_what_is_wrong_with_one_sample_costs_the_others_nothing(self, tmp_path, extra, reason):
        tar = tmp_path / "a.tar"
        foreign(tar, extra=extra)
        dataset = open_dataset(tar)
        assert dataset.labels().tolist() == [*range(12), 3]
        assert any(reason in told["reason"] for told in dataset.manifest.damage)
        with pytest.raises(
            DataError, match=r"shard 'a.tar' is damaged at byte \d+.*set data.on_damage to skip"
        ) as error:
            open_dataset(tar, on_damage="fail")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_left_out_and_never_followed(self, tmp_path, kind):
        secret = tmp_path / "secret.png"
        secret.write_bytes(PICTURES[0])
        tar = tmp_path / "a.tar"
        foreign(tar)
        with tarfile.open(tar, "a") as archive:
            member = tarfile.TarInfo("99.png")
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        dataset = open_dataset(tar)
        assert dataset.count == 12
        assert "link or device" in dataset.manifest.damage[0]["reason"]
        with pytest.raises(DataError, match="link or device"):
            open_dataset(tar, on_damage="fail")

    def test_damage_that_comes_after_indexing_is_found_when_streaming(self, tmp_path):
        tar = tmp_path / "a.tar"
        write_tar(tar, random_images(12))
        stream = ImageStream(open_dataset(tar), seed=0, batch_size=12)
        with tarfile.open(tar) as archive:
            flip(tar, archive.getmember("000003.png").offset_data + 30)
        assert [found.record for found in stream.read(0).damage] == [3]


class TestScan:
    def test_one_damaged_header_hides_only_its_own_file_wherever_it_is(self, tmp_path):
        places = foreign(tmp_path / "a.tar")
        whole = (tmp_path / "a.tar").read_bytes()
        for name, member in places.items():
            content = bytearray(whole)
            content[member.offset + 20] ^= 0x11
            found = list(scan(memoryview(bytes(content))))
            faults = [part for part in found if isinstance(part, Fault)]
            assert [fault.offset for fault in faults] == [member.offset]
            assert [part.name for part in found if not isinstance(part, Fault)] == [n for n in places if n != name]

    def test_random_damage_never_ends_in_anything_but_members_and_faults(self, tmp_path):
        foreign(tmp_path / "a.tar")
        whole, draw = (tmp_path / "a.tar").read_bytes(), np.random.default_rng(1)
        for _ in range(200):
            content = bytearray(whole)
            for place in draw.integers(0, len(content), 6).tolist():
                content[place] = int(draw.integers(0, 256))
            cut = int(draw.integers(0, len(content)))
            for part in scan(memoryview(bytes(content[:cut]))):
                offset = part.offset
                assert 0 <= offset <= cut
                assert isinstance(part, Fault) or offset + part.size <= cut


def test_no_member_of_a_tar_is_ever_unpickled(tmp_path):
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "executed").encode() + b"'\ntR."
    extra = [(f"00.{kind}", bomb) for kind in ("pkl", "pyd", "pickle", "pth", "npy", "npz", "ten")]
    tar = tmp_path / "a.tar"
    foreign(tar, labels=False, extra=[(f"20.{kind}", bomb) for kind in ("pkl", "png")] + extra)
    dataset = open_dataset(tar)
    for batch in ImageStream(dataset, seed=0, batch_size=dataset.count).iterate(0, 1):
        assert len(batch.images) == 12
    assert not (tmp_path / "executed").exists()


def test_labels_that_look_like_something_else_are_only_text(tmp_path):
    names = ["../../x", "/etc/passwd", "__import__('os')", "a\nb", "\x1b[2J"]
    files = [(f"2{i}.png", PICTURES[i]) for i in range(5)]
    labels = [(f"2{i}.json", json.dumps({"label": name}).encode()) for i, name in enumerate(names)]
    tar = tmp_path / "a.tar"
    foreign(tar, labels=False, extra=[file for pair in zip(files, labels, strict=True) for file in pair])
    assert sorted(open_dataset(tar).classes) == sorted(names)
