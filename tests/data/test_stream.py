import io
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcgan_dist.data import stream as stream_module
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.images import decode, fit
from dcgan_dist.data.stream import Batch, ImageStream
from dcgan_dist.errors import DataError
from tests.data.shard_sets import encoded, make_set, random_images

SIZES = [23, 7, 0, 40, 31, 12]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "raw", SIZES)


@pytest.fixture(scope="module")
def dataset(shards):
    return open_dataset(shards.folder)


def labels_of(batches):
    return [batch.labels.tolist() for batch in batches]


def put_together(parts: list[Batch], batch_size: int) -> list[int]:
    """Return the labels of a global batch by slot, from the parts of its ranks."""
    whole = [-1] * batch_size
    for part in parts:
        for slot, label in zip(part.slots.tolist(), part.labels.tolist(), strict=True):
            whole[slot] = label
    return whole


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_an_epoch_shows_each_image_at_most_once_and_all_but_the_last_partial_batch(dataset, batch_size, seed, epoch):
    stream = ImageStream(dataset, seed=seed, batch_size=batch_size)
    first = epoch * stream.batches_per_epoch
    batches = [stream.read(first + number) for number in range(stream.batches_per_epoch)]
    shown = [label for batch in batches for label in batch.labels.tolist()]
    assert len(shown) == len(set(shown)) == dataset.count // batch_size * batch_size
    assert all(len(batch.images) == batch_size for batch in batches)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 37), st.integers(0, 60))
def test_global_batches_do_not_depend_on_the_number_of_ranks_or_the_start(dataset, world_size, batch_size, start):
    alone = ImageStream(dataset, seed=5, batch_size=batch_size)
    ranks = [
        ImageStream(dataset, seed=5, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = []
    for stream in ranks:
        with stream.iterate(start, start + 3) as batches:
            parts.append(list(batches))
    for number in range(3):
        together = put_together([of_rank[number] for of_rank in parts], batch_size)
        assert together == alone.read(start + number).labels.tolist()
    if batch_size % world_size == 0:
        for rank, of_rank in enumerate(parts):
            assert all((batch.slots % world_size == rank).all() for batch in of_rank)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches_as_the_thread(dataset, workers):
    in_thread = ImageStream(dataset, seed=2, batch_size=10)
    in_processes = ImageStream(dataset, seed=2, batch_size=10, workers=workers, prefetch=2)
    with in_thread.iterate(7, 40) as expected, in_processes.iterate(7, 40) as found:
        for one, other in zip(expected, found, strict=True):
            assert (one.images == other.images).all()
            assert one.labels.tolist() == other.labels.tolist()
            assert one.slots.tolist() == other.slots.tolist()


def test_images_come_with_their_own_labels_and_pixels(shards, dataset):
    for batch in ImageStream(dataset, seed=0, batch_size=16).iterate(0, 7):
        assert (batch.images.numpy() == shards.images[batch.labels.numpy()]).all()


def test_epochs_and_seeds_show_other_orders(dataset):
    orders = set()
    for seed in range(3):
        stream = ImageStream(dataset, seed=seed, batch_size=dataset.count)
        orders |= {tuple(stream.read(epoch).labels.tolist()) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(("encoding", "channels"), [("jpg", 3), ("jpg", 1), ("png", 3), ("png", 1), ("raw", 1)])
def test_every_encoding_is_decoded_as_pillow_does(tmp_path, encoding, channels):
    shards = make_set(tmp_path / "set", [9, 4], encoding=encoding, channels=channels)
    dataset = open_dataset(shards.folder)
    batch = ImageStream(dataset, seed=0, batch_size=13).read(0)
    assert batch.images.shape == (13, 16, 16, channels)
    for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
        expected = shards.images[label]
        if encoding != "raw":
            expected = np.asarray(Image.open(io.BytesIO(encoded(expected, encoding)))).reshape(expected.shape)
        assert (image == expected).all()


def test_one_epoch_has_the_images_that_stock_webdataset_delivers(tmp_path):
    shards = make_set(tmp_path / "set", [30, 11, 19], encoding="png")
    stock = webdataset.WebDataset([str(tar) for tar in shards.tars], shardshuffle=False, empty_check=False)
    expected = Counter(np.asarray(Image.open(io.BytesIO(sample["png"]))).tobytes() for sample in stock)
    found: Counter[bytes] = Counter()
    for batch in ImageStream(open_dataset(shards.folder), seed=3, batch_size=20).iterate(0, 3):
        found.update(image.numpy().tobytes() for image in batch.images)
    assert found == expected
    assert found.total() == 60


def test_resuming_reads_nothing_from_before_the_start(dataset, monkeypatch):
    read: list[int] = []
    plain = stream_module._OpenShard.read

    def counted(opened, record, *into):
        label = plain(opened, record, *into)
        read.append(label)
        return label

    monkeypatch.setattr(stream_module._OpenShard, "read", counted)
    stream = ImageStream(dataset, seed=1, batch_size=8, prefetch=3)
    start = 2 * stream.batches_per_epoch - 4
    with stream.iterate(start, start + 2) as batches:
        shown = [label for batch in batches for label in batch.labels.tolist()]
    assert read == shown
    assert len(read) == 16


def test_images_of_other_sizes_are_fitted_on_reading(tmp_path):
    pictures = [random_images(1, size)[0] for size in (20, 16, 40, 9)]
    with webdataset.TarWriter(str(tmp_path / "any.tar")) as writer:
        for number, picture in enumerate(pictures):
            writer.write({"__key__": f"p{number}", "webp": encoded(picture, "webp"), "cls": number})
    dataset = open_dataset(tmp_path / "any.tar", image_size=16, cache=tmp_path / "cache")
    batch = ImageStream(dataset, seed=0, batch_size=4).read(0)
    for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
        assert (image == fit(decode(encoded(pictures[label], "webp"), 3), 16, 3)).all()


class TestDamage:
    @pytest.fixture
    def damaged(self, tmp_path):
        shards = make_set(tmp_path / "set", [20, 20, 20], encoding="jpg")
        record = shards.record(1, 7)
        flip(shards.tars[1], int(record["offset"]) + int(record["size"]) // 2)
        return shards, record

    def test_a_flipped_byte_leaves_its_slot_empty_and_moves_no_other_image(self, damaged, tmp_path):
        shards, record = damaged
        whole = make_set(tmp_path / "whole", [20, 20, 20], encoding="jpg")
        found = []
        for rank in range(2):
            settings = {"seed": 4, "batch_size": 12, "rank": rank, "world_size": 2}
            for one, other in zip(
                ImageStream(open_dataset(shards.folder), **settings).iterate(0, 5),
                ImageStream(open_dataset(whole.folder), **settings).iterate(0, 5),
                strict=True,
            ):
                keep = np.isin(other.slots.numpy(), one.slots.numpy())
                assert (other.images.numpy()[keep] == one.images.numpy()).all()
                assert other.labels.numpy()[keep].tolist() == one.labels.tolist()
                assert other.slots.numpy()[~keep].tolist() == [damage.slot for damage in one.damage]
                found += one.damage
        assert [(damage.shard, damage.record, damage.offset) for damage in found] == [
            ("set-000001.tar", 7, int(record["offset"]))
        ]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_fail_ends_with_the_shard_and_the_offset(self, damaged, workers):
        shards, record = damaged
        stream = ImageStream(open_dataset(shards.folder), seed=0, batch_size=10, on_damage="fail", workers=workers)
        with (
            pytest.raises(DataError, match=f"shard 'set-000001.tar' is damaged at byte {record['offset']}") as error,
            stream.iterate(0, 6) as batches,
        ):
            list(batches)
        assert "\n" not in str(error.value)

    def test_a_shard_cut_short_loses_only_what_is_cut_off(self, tmp_path):
        shards = make_set(tmp_path / "set", [20, 20])
        cut = int(shards.record(0, 12)["offset"]) + 5
        os.truncate(shards.tars[0], cut)
        batch = ImageStream(open_dataset(shards.folder), seed=0, batch_size=40).read(0)
        assert sorted(batch.labels.tolist()) == [*range(12), *range(20, 40)]
        assert {damage.record for damage in batch.damage} == set(range(12, 20))

    @pytest.mark.parametrize("what", ["missing tar", "missing index", "empty tar", "other index"])
    def test_an_unreadable_shard_loses_its_images_alone(self, tmp_path, what):
        shards = make_set(tmp_path / "set", [20, 20])
        index = shards.folder / shards.manifest.shards[0].index
        if what == "missing tar":
            shards.tars[0].unlink()
        elif what == "missing index":
            index.unlink()
        elif what == "empty tar":
            shards.tars[0].write_bytes(b"")
        else:
            flip(index, 3)
        batch = ImageStream(open_dataset(shards.folder), seed=0, batch_size=40).read(0)
        assert sorted(batch.labels.tolist()) == list(range(20, 40))
        assert len(batch.damage) == 20

    def test_a_batch_with_nothing_left_is_an_empty_batch(self, tmp_path):
        shards = make_set(tmp_path / "set", [3, 3])
        shards.tars[0].write_bytes(b"")
        shards.tars[1].write_bytes(b"")
        batch = ImageStream(open_dataset(shards.folder), seed=0, batch_size=6).read(0)
        assert batch.images.shape == (0, 16, 16, 3)
        assert len(batch.damage) == 6


def test_fewer_images_than_a_batch_is_an_error_that_names_both(dataset):
    with pytest.raises(
        DataError, match=r"has 113 images, fewer than one global batch: set training.batch_size \(114\)"
    ):
        ImageStream(dataset, seed=0, batch_size=114)


def test_closing_ends_the_thread_at_once(dataset):
    before = threading.active_count()
    batches = ImageStream(dataset, seed=0, batch_size=10).iterate()
    next(batches)
    began = time.perf_counter()
    batches.close()
    assert time.perf_counter() - began < 1
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)


def test_an_error_in_the_background_comes_up_at_its_batch(dataset, monkeypatch):
    plain = ImageStream.read
    stream = ImageStream(dataset, seed=0, batch_size=10)

    def read(self, number):
        if number == 3:
            raise MemoryError("no memory for batch 3")
        return plain(self, number)

    monkeypatch.setattr(ImageStream, "read", read)
    with stream.iterate() as batches:
        for _ in range(3):
            next(batches)
        with pytest.raises(MemoryError, match="batch 3"):
            next(batches)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_left_when_a_program_ends_without_closing(shards, tmp_path, workers):
    script = tmp_path / "program.py"
    script.write_text(
        "import os\n"
        "from dcgan_dist.data.dataset import open_dataset\n"
        "from dcgan_dist.data.stream import ImageStream\n"
        "if __name__ == '__main__':\n"
        f"    stream = ImageStream(open_dataset({str(shards.folder)!r}), seed=0, batch_size=10, workers={workers})\n"
        "    batches = stream.iterate()\n"
        "    print(len(next(batches).images))\n"
        "    children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "    print(*children, flush=True)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    count, children = ended.stdout.splitlines()
    assert count == "10"
    assert len(children.split()) >= workers
    gone_by = time.monotonic() + 5
    while left := [child for child in children.split() if Path("/proc", child).exists()]:
        assert time.monotonic() < gone_by, left
        time.sleep(0.05)


def test_a_stream_is_small_to_send(dataset):
    stream = ImageStream(dataset, seed=0, batch_size=10)
    stream.read(0)
    sent = pickle.dumps(stream)
    assert len(sent) < 5000
    assert pickle.loads(sent).read(4).labels.tolist() == stream.read(4).labels.tolist()
