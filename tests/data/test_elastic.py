"""Each image once per epoch, in the same order for any number of ranks and workers and any stop."""

import io
import tarfile
import time
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dcgan_dist.data import stream as stream_module
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.manifest import KEEP_NAME, RECORD, KeepList, Manifest, Shard, pack_keep
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import DataError
from tests.data.shard_sets import make_set

# Shards of 0 and of 1 image among uneven ones; more images than the 64 segments of the order, and fewer.
UNEVEN = [1, 0, 17, 40, 1, 23, 0, 9, 30]
BATCHES = (1, 5, 12, 64)


def make_small_set(folder, sizes, keep_every=0):
    """A set of raw 16x16 images whose label is their number; with a keep-list that leaves out one in `keep_every`."""
    shards = make_set(folder, sizes, channels=1)
    if keep_every:
        kept = np.arange(sum(sizes)) % keep_every > 0
        content = pack_keep(kept)
        (folder / KEEP_NAME).write_bytes(content)
        keep = KeepList(file=KEEP_NAME, count=int(kept.sum()), digest=xxhash.xxh3_64_hexdigest(content))
        text = Manifest(**{**vars(shards.manifest), "keep": keep}).to_json()
        (folder / "manifest.json").write_text(text)
        return open_dataset(folder), np.flatnonzero(kept).tolist()
    return open_dataset(folder), list(range(sum(sizes)))


def parts_of(dataset, batch_size, world_size, first, stop):
    """Return the labels by slot of each global batch, merged over all ranks, and the number of images of each rank."""
    streams = [
        ImageStream(dataset, seed=7, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = []
    for number in range(first, stop):
        whole = [-1] * batch_size
        for stream in streams:
            batch = stream.read(number)
            for slot, label in zip(batch.slots.tolist(), batch.labels.tolist(), strict=True):
                assert whole[slot] == -1
                whole[slot] = label
        together.append(whole)
    return together


@pytest.mark.parametrize("keep_every", [0, 3])
@pytest.mark.parametrize("shards", range(1, 10))
def test_each_image_is_read_once_in_the_same_order_for_every_split_and_every_stop(tmp_path, shards, keep_every):
    sizes = UNEVEN[-shards:]
    dataset, labels = make_small_set(tmp_path / "set", sizes, keep_every)
    for batch_size in BATCHES:
        per_epoch = len(labels) // batch_size
        if not per_epoch:
            with pytest.raises(DataError, match="fewer than one global batch"):
                ImageStream(dataset, seed=7, batch_size=batch_size)
            continue
        alone = parts_of(dataset, batch_size, 1, 0, 2 * per_epoch)
        for epoch in (alone[:per_epoch], alone[per_epoch:]):
            shown = Counter(label for batch in epoch for label in batch)
            assert set(shown.values()) == {1}
            assert shown.total() == per_epoch * batch_size
            assert set(shown) <= set(labels)
        # Equal for every split, so that a run stopped anywhere can be resumed with any other number of ranks.
        for world_size in (2, 3, 4):
            assert parts_of(dataset, batch_size, world_size, 0, per_epoch) == alone[:per_epoch]


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "workers"), [(1, 3), (2, 0), (3, 0), (4, 0)])
def test_real_workers_read_the_same_and_resume_from_any_stop(tmp_path, world_size, workers):
    dataset, _ = make_small_set(tmp_path / "set", UNEVEN, 3)
    batch_size = 12
    per_epoch = dataset.count // batch_size
    expected = parts_of(dataset, batch_size, 1, 0, 2 * per_epoch)
    stop = per_epoch // 2 + 1
    # Up to the stop with this many ranks and workers, from there on alone.
    found = [[-1] * batch_size for _ in range(stop)]
    for rank in range(world_size):
        stream = ImageStream(
            dataset, seed=7, batch_size=batch_size, rank=rank, world_size=world_size, workers=workers, prefetch=1
        )
        with stream.iterate(0, stop) as batches:
            counted = 0
            for number, batch in enumerate(batches):
                counted += 1
                for slot, label in zip(batch.slots.tolist(), batch.labels.tolist(), strict=True):
                    found[number][slot] = label
            assert counted == stop
    assert found + parts_of(dataset, batch_size, 1, stop, 2 * per_epoch) == expected


def test_ranks_have_equal_numbers_of_batches_and_images(tmp_path):
    dataset, _ = make_small_set(tmp_path / "set", UNEVEN)
    for world_size, batch_size in product(range(1, 5), (12, 24)):
        streams = [
            ImageStream(dataset, seed=1, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert len({stream.batches_per_epoch for stream in streams}) == 1
        for number in range(streams[0].batches_per_epoch):
            assert {len(stream.read(number).images) for stream in streams} == {batch_size // world_size}


def make_large_set(folder, shards, samples):
    """Raw 16x16 grey images, all of one content; the tars are copies of one, so that a million take seconds."""
    folder.mkdir()
    buffer = io.BytesIO()
    table = np.zeros(samples, dtype=RECORD)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in range(samples):
            member = tarfile.TarInfo(f"{row:06d}.raw")
            member.size = 256
            content = row.to_bytes(2, "little") * 128
            table[row] = (buffer.tell() + 512, 256, -1, xxhash.xxh3_64_intdigest(content), 0, 0)
            archive.addfile(member, io.BytesIO(content))
    content, index = buffer.getvalue(), table.tobytes()
    entries = []
    for number in range(shards):
        name = f"many-{number:06d}"
        (folder / f"{name}.tar").write_bytes(content)
        (folder / f"{name}.index").write_bytes(index)
        digests = xxhash.xxh3_64_hexdigest(content), xxhash.xxh3_64_hexdigest(index)
        entries.append(
            Shard(
                file=f"{name}.tar",
                samples=samples,
                bytes=len(content),
                digest=digests[0],
                index=f"{name}.index",
                index_digest=digests[1],
            )
        )
    manifest = Manifest(
        image_size=16, channels=1, encoding="raw", count=shards * samples, classes=(), shards=tuple(entries)
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return open_dataset(folder)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_resuming_late_in_a_long_epoch_is_quick_and_reads_no_more_than_its_batch(tmp_path, monkeypatch):
    dataset = make_large_set(tmp_path / "set", 200, 500)
    opened: list[int] = []
    read: list[int] = []
    plain_open, plain_read = stream_module._OpenShard.__init__, stream_module._OpenShard.read

    def counted_open(shard, dataset, number, *more):
        opened.append(number)
        plain_open(shard, dataset, number, *more)

    def counted_read(shard, record, *into):
        read.append(record)
        return plain_read(shard, record, *into)

    monkeypatch.setattr(stream_module._OpenShard, "__init__", counted_open)
    monkeypatch.setattr(stream_module._OpenShard, "read", counted_read)
    stream = ImageStream(dataset, seed=0, batch_size=128)
    began, before = time.perf_counter(), bytes_read()
    batch = stream.read(stream.batches_per_epoch * 9 // 10)
    assert time.perf_counter() - began < 2
    assert len(batch.images) == 128
    assert len(opened) == len(set(opened)) <= 64
    assert len(read) == 128
    # Images and their headers, and the index of each shard, with a margin for the interpreter; and a
    # shard whose last record is in this batch, which is compared as a whole.
    left = len(stream._left(0).get(stream.batches_per_epoch * 9 // 10, []))
    of_a_shard = dataset.manifest.shards[0].bytes
    expected = 128 * (512 + 256) + len(opened) * 500 * RECORD.itemsize + left * of_a_shard
    assert bytes_read() - before < expected + 100_000
