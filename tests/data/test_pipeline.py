import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from dcgan_dist.data import stream as stream_module
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.manifest import KEEP_NAME, pack_keep
from dcgan_dist.data.order import EpochOrder, rank_positions
from dcgan_dist.data.pipeline import stream
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.errors import ConfigError, DataError
from tests.data.shard_sets import encoded, make_set, random_images
from tests.flaky_server import flaky
from tests.object_storage import client

__all__ = ["client"]

SIZES = [23, 7, 0, 40, 31, 12]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCGAN_DIST_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("sets") / "set", SIZES, encoding="png")


@pytest.fixture
def own_shards(shards, tmp_path):
    """A set for this test only, to be damaged."""
    return make_set(tmp_path / "own", SIZES, encoding="png")


def labels(samples) -> list[int]:
    return [int(sample["cls"]) for sample in samples]


def run_labels(folder, first, last, **order) -> list[list[int]]:
    """Return what the stream of a run reads, batch by batch."""
    with ImageStream(open_dataset(folder), **order).iterate(first, last) as batches:
        return [batch.labels.tolist() for batch in batches]


def flat(batches) -> list[int]:
    return [label for batch in batches for label in batch]


def stock(urls) -> dict[tuple[str, str], dict[str, object]]:
    """All samples as the library reads them, without the field that it adds for files of this host."""
    samples = webdataset.WebDataset(list(urls), shardshuffle=False)
    plain = ({key: value for key, value in sample.items() if key != "__local_path__"} for sample in samples)
    return {(sample["__url__"], sample["__key__"]): sample for sample in plain}


def by_key(samples) -> dict[tuple[str, str], dict[str, object]]:
    samples = list(samples)
    found = {(sample["__url__"], sample["__key__"]): sample for sample in samples}
    assert len(found) == len(samples)
    return found


class TestSamples:
    def test_those_of_our_shards_are_those_that_webdataset_reads(self):
        pipe = stream("rooms:30", batch_size=10, image_size=16)
        assert by_key(pipe) == stock(pipe.source.dataset.tars)

    @pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_those_of_tars_made_elsewhere_have_all_their_members(self, tmp_path, form):
        picture = encoded(random_images(1)[0], "png")
        members = {"readme": b"x", "0.txt": b"no image", "__meta__/0.png": picture}
        for number in range(12):
            folder = "long" * 40 + "/" if number % 3 == 0 else "a.b/"
            label = {"cls": b" %d\n" % number} if number % 2 else {"json": b'{"label": %d}' % number}
            content = label | {"PNG": picture, "mask.png": picture, "txt": b"text" * number}
            if number % 4 == 1:  # in another order
                content = dict(reversed(content.items()))
            members |= {f"{folder}{number:03d}.{extension}": value for extension, value in content.items()}
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        expected = {key: sample for key, sample in stock([str(tmp_path / "a.tar")]).items() if "png" in sample}
        assert len(expected) == 12
        assert by_key(stream(tmp_path / "a.tar", batch_size=1)) == expected

    def test_those_of_a_server_are_those_that_webdataset_reads_from_it(self, shards):
        with flaky(shards.folder) as server:
            pipe = stream(server.url, batch_size=113)
            assert by_key(pipe) == stock(pipe.source.dataset.tars)
        assert all(url.startswith("http://") for url in pipe.source.dataset.tars)

    @pytest.mark.parametrize("corrupt", [0.0, 1.0])
    def test_those_of_large_remote_shards_are_read_by_themselves_until_these_have_come(self, tmp_path, corrupt):
        shards = make_set(tmp_path / "large", [40] * 3, size=128)
        local = stream(shards.folder, batch_size=4)
        with flaky(shards.folder, bytes_per_s=1 << 21, corrupt=corrupt) as server:
            remote = list(islice(stream(server.url, batch_size=4), 12))
            assert any(part for _, path, part in server.asked if path.endswith(".tar"))
        for sample, expected in zip(remote, local, strict=False):
            assert sample | {"__url__": ""} == expected | {"__url__": ""}
        assert len(remote) == 12

    def test_those_of_object_storage_are_those_of_the_folder(self, shards, client):
        for file in shards.folder.iterdir():
            client.upload_file(str(file), "images", f"set/{file.name}")
        remote, local = (list(stream(path, batch_size=9, seed=3)) for path in ("s3://images/set", shards.folder))
        assert remote[0]["__url__"].startswith("s3://images/set/set-")
        assert [sample | {"__url__": ""} for sample in remote] == [sample | {"__url__": ""} for sample in local]

    def test_a_keep_list_leaves_the_others_out(self, own_shards):
        kept = np.arange(113) % 3 > 0
        bits = pack_keep(kept)
        (own_shards.folder / KEEP_NAME).write_bytes(bits)
        content = json.loads((own_shards.folder / "manifest.json").read_text())
        digest = stream_module.xxhash.xxh3_64_hexdigest(bits)
        content["keep"] = {"file": KEEP_NAME, "count": int(kept.sum()), "digest": digest}
        (own_shards.folder / "manifest.json").write_text(json.dumps(content))
        everything = stock(map(str, own_shards.tars))
        expected = {key: sample for key, sample in everything.items() if kept[int(sample["cls"])]}
        assert by_key(stream(own_shards.folder, batch_size=int(kept.sum()))) == expected

    def test_decoded_they_are_what_a_run_sees(self, shards):
        batch = ImageStream(open_dataset(shards.folder), seed=2, batch_size=50).read(0)
        samples = list(islice(stream(shards.folder, seed=2, batch_size=50, decoded=True), 50))
        assert [sample["cls"] for sample in samples] == batch.labels.tolist()
        assert (np.stack([sample["png"] for sample in samples]) == batch.images.numpy()).all()
        plain = islice(stream(shards.folder, seed=2, batch_size=50), 50)
        for sample, original in zip(samples, plain, strict=True):
            assert (sample["png"] == np.asarray(Image.open(io.BytesIO(original["png"])))).all()

    def test_decoded_attributes_are_values(self):
        samples = list(stream("rooms:20", batch_size=20, image_size=16, decoded=True))
        original = stream("rooms:20", batch_size=20, image_size=16)
        for sample, plain in zip(samples, original, strict=True):
            assert sample["json"] == json.loads(plain["json"])
            assert sample["jpg"].shape == (16, 16, 3)


class TestOrder:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**32), st.integers(0, 3), st.integers(1, 40), st.integers(1, 4))
    def test_it_is_that_of_a_run_and_of_the_order_module(self, shards, seed, epoch, batch_size, world_size):
        order = EpochOrder(SIZES, seed, epoch)
        firsts = np.cumsum([0, *SIZES])
        per_epoch = 113 // batch_size
        for rank in range(world_size):
            settings = {"seed": seed, "batch_size": batch_size, "rank": rank, "world_size": world_size}
            found = labels(stream(shards.folder, start=epoch * per_epoch, **settings))
            parts = [rank_positions(batch, batch_size, rank, world_size) for batch in range(per_epoch)]
            of_shard, record = order.locate(np.concatenate(parts))
            assert found == (firsts[of_shard] + record).tolist()
            assert found == flat(run_labels(shards.folder, epoch * per_epoch, (epoch + 1) * per_epoch, **settings))

    def test_epochs_follow_one_another(self, shards):
        pipe = stream(shards.folder, seed=1, batch_size=20)
        by_iteration = [labels(pipe) for _ in range(3)]
        assert by_iteration[0] != by_iteration[1]
        expected = flat(run_labels(shards.folder, 0, 15, seed=1, batch_size=20))
        assert flat(by_iteration) == expected
        assert labels(stream(shards.folder, seed=1, batch_size=20, epochs=3)) == expected
        assert labels(islice(stream(shards.folder, seed=1, batch_size=20, epochs=None), 300)) == expected
        assert labels(islice(stream(shards.folder, seed=1, batch_size=20).repeat(), 300)) == expected

    def test_set_epoch_begins_there(self, shards):
        pipe = stream(shards.folder, seed=1, batch_size=20)
        pipe.set_epoch(2)
        assert labels(pipe) == flat(run_labels(shards.folder, 10, 15, seed=1, batch_size=20))

    @pytest.mark.parametrize("length", [7, 40, 100])
    def test_with_epoch_cuts_the_row_and_loses_nothing(self, shards, length):
        pipe = stream(shards.folder, seed=1, batch_size=20).with_epoch(length)
        found = [labels(pipe) for _ in range(5)]
        assert [len(part) for part in found] == [length] * 5
        assert flat(found) == flat(run_labels(shards.folder, 0, 25, seed=1, batch_size=20))[: 5 * length]


class TestResuming:
    @settings(max_examples=15, deadline=None)
    @given(st.data(), st.integers(1, 40), st.integers(1, 3))
    def test_a_state_continues_after_the_last_sample(self, shards, data, batch_size, world_size):
        rank = data.draw(st.integers(0, world_size - 1))
        order = {"seed": 4, "batch_size": batch_size, "rank": rank, "world_size": world_size}
        whole = labels(stream(shards.folder, epochs=2, **order))
        read = data.draw(st.integers(0, len(whole)))
        before = stream(shards.folder, epochs=2, **order)
        assert labels(islice(before, read)) == whole[:read]
        after = stream(shards.folder, epochs=2, **order)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        rest = labels(after)
        if read < len(whole):
            assert rest == whole[read:]
        else:  # the iteration was complete: the next one
            assert rest == labels(before)

    def test_start_is_the_number_of_batches_that_a_run_has_read(self, shards):
        expected = flat(run_labels(shards.folder, 7, 10, seed=4, batch_size=20))
        assert labels(stream(shards.folder, seed=4, batch_size=20, start=7)) == expected

    def test_nothing_from_before_is_read(self, shards, monkeypatch):
        read = []
        plain = stream_module._OpenShard.sample

        def counted(opened, record, decoded):
            sample = plain(opened, record, decoded)
            read.append(int(sample["cls"]))
            return sample

        monkeypatch.setattr(stream_module._OpenShard, "sample", counted)
        before = stream(shards.folder, batch_size=20)
        list(islice(before, 93))
        read.clear()
        after = stream(shards.folder, batch_size=20)
        after.load_state_dict(before.state_dict())
        assert labels(after) == read
        assert len(read) == 7

    def test_an_interrupted_iteration_is_continued(self, shards):
        pipe = stream(shards.folder, batch_size=20)
        parts = [labels(islice(pipe, 33)), labels(islice(pipe, 60)), labels(pipe), labels(islice(pipe, 3))]
        assert [len(part) for part in parts] == [33, 60, 7, 3]
        assert flat(parts) == flat(run_labels(shards.folder, 0, 6, seed=0, batch_size=20))[:103]

    def test_batches_of_later_stages_count_completely(self, shards):
        pipe = stream(shards.folder, batch_size=20).decode("rgb8").to_tuple("png", "cls").batched(20)
        for number, (images, of_images) in enumerate(pipe, start=1):
            assert images.shape == (20, 16, 16, 3)
            assert len(of_images) == 20
            state = pipe.state_dict()
            assert (state["batch"], state["sample"]) == (number, 0)
        lists = stream(shards.folder, batch_size=20).listed(15)
        assert len(next(iter(lists))) == 15
        assert lists.state_dict()["sample"] == 15

    def test_between_batches_the_number_of_ranks_may_change(self, shards):
        alone = stream(shards.folder, batch_size=20, world_size=2)
        list(islice(alone, 30))
        other = stream(shards.folder, batch_size=20)
        other.load_state_dict(alone.state_dict())
        assert labels(other) == flat(run_labels(shards.folder, 3, 5, seed=0, batch_size=20))
        list(islice(alone, 4))
        with pytest.raises(DataError, match="the state has the world_size 2, the stream 1: use the same"):
            other.load_state_dict(alone.state_dict())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 3}, "has the seed 3, the stream 0: use the same"),
            ({"batch_size": 3}, "has the batch_size 3, the stream 20: use the same"),
            ({"digest": "0"}, "has the digest '0', the stream '"),
            ({"workers": 3}, "saved by one of 3 DataLoader workers, but this DataLoader has 1: use the same number"),
        ],
    )
    def test_a_state_of_another_stream_is_refused(self, shards, change, message):
        pipe = stream(shards.folder, batch_size=20)

        def resume():
            pipe.load_state_dict(pipe.state_dict() | change)
            return labels(pipe)

        with pytest.raises(DataError, match=message):
            resume()

    def test_what_is_no_state_is_refused(self, shards):
        with pytest.raises(DataError, match=r"the state of a stream has batch, sample, .*, not epoch"):
            stream(shards.folder, batch_size=20).load_state_dict({"epoch": 3})


def same(value):
    return value


def only_labels(batch) -> list[int]:
    return [int(label) for label in batch["cls"]]


class NamesItsState(IterableDataset):
    """A stream's batches with the worker that read them, and that worker's state; resumed in each worker by its own."""

    def __init__(self, pipe, states=None):
        self.pipe, self.states = pipe, states

    def __iter__(self):
        worker = torch.utils.data.get_worker_info().id
        if self.states is not None:
            self.pipe.load_state_dict(self.states[worker])
        for batch in self.pipe:
            yield worker, only_labels(batch), self.pipe.state_dict()


class TestLoaderWorkers:
    @pytest.mark.parametrize("workers", [0, 1, 2, 3])
    def test_any_number_of_workers_yields_the_batches_of_a_run_in_order(self, shards, workers):
        expected = run_labels(shards.folder, 7, 20, seed=5, batch_size=20, rank=1, world_size=2)
        order = {"seed": 5, "batch_size": 20, "rank": 1, "world_size": 2, "start": 7}
        pipe = stream(shards.folder, epochs=None, **order).batched(10)
        loader = DataLoader(pipe, batch_size=None, num_workers=workers, collate_fn=same)
        assert [only_labels(batch) for batch in islice(loader, 13)] == expected
        pipe = stream(shards.folder, epochs=3, **order)
        loader = DataLoader(pipe, batch_size=10, num_workers=workers)
        assert [only_labels(batch) for batch in loader] == expected[:13]

    @pytest.mark.slow
    def test_spawned_ones_do_too(self, shards):
        pipe = stream(shards.folder, batch_size=20)
        loader = DataLoader(pipe, batch_size=20, num_workers=2, multiprocessing_context="spawn")
        assert [only_labels(batch) for batch in loader] == run_labels(shards.folder, 0, 5, seed=0, batch_size=20)

    def test_persistent_workers_continue_with_the_next_epoch_and_new_ones_start_at_the_epoch_that_was_set(self, shards):
        expected = run_labels(shards.folder, 0, 10, seed=0, batch_size=20)
        staying = DataLoader(
            stream(shards.folder, batch_size=20), batch_size=20, num_workers=2, persistent_workers=True
        )
        assert [only_labels(batch) for _ in range(2) for batch in staying] == expected
        pipe = stream(shards.folder, batch_size=20)
        new = DataLoader(pipe, batch_size=20, num_workers=2)
        for epoch in range(2):
            pipe.set_epoch(epoch)
            assert [only_labels(batch) for batch in new] == expected[5 * epoch :][:5]

    @pytest.mark.parametrize("read", [4, 5, 9])
    def test_each_worker_continues_from_its_own_state(self, shards, read):
        def loader(states=None):
            pipe = stream(shards.folder, batch_size=20, epochs=2).batched(20)
            return DataLoader(NamesItsState(pipe, states), batch_size=None, num_workers=3, collate_fn=same)

        expected = run_labels(shards.folder, 0, 10, seed=0, batch_size=20)
        states = {}
        for worker, _, state in islice(loader(), read):
            states[worker] = state
        rest = [found for _, found, _ in loader(states)]
        assert sorted(rest) == sorted(expected[read:])

    def test_more_workers_than_batches_show_each_once(self, shards):
        loader = DataLoader(stream(shards.folder, batch_size=56), batch_size=56, num_workers=3)
        assert [only_labels(batch) for batch in loader] == run_labels(shards.folder, 0, 2, seed=0, batch_size=56)


class TestPipelines:
    def test_it_is_the_first_stage_of_one_of_the_librarys(self, shards):
        pipe = webdataset.DataPipeline(
            stream(shards.folder, batch_size=20), webdataset.decode("rgb8"), webdataset.to_tuple("png", "cls")
        )
        decoded = stream(shards.folder, batch_size=20, decoded=True)
        for (image, label), sample in zip(pipe, decoded, strict=True):
            assert label == sample["cls"]
            assert (image == sample["png"]).all()

    def test_stages_are_chained_as_to_a_webdataset(self, shards):
        def chain(source):
            return source.decode("rgb8").map(lambda sample: (sample["cls"], sample["png"].mean())).batched(1)

        found = {int(label[0]): mean[0] for label, mean in chain(stream(shards.folder, batch_size=113))}
        tars = [str(tar) for tar in shards.tars]
        expected = {int(label[0]): mean[0] for label, mean in chain(webdataset.WebDataset(tars, shardshuffle=False))}
        assert found == expected

    def test_it_can_be_sent_to_other_processes(self, shards):
        pipe = stream(shards.folder, batch_size=20)
        assert labels(pickle.loads(pickle.dumps(pipe))) == labels(pipe)

    def test_it_does_without_the_library(self, shards):
        program = (
            "import sys, json\n"
            "sys.modules['webdataset'] = None  # as if it were not installed\n"
            "from torch.utils.data import DataLoader\n"
            "from dcgan_dist.data.pipeline import stream\n"
            f"samples = DataLoader(stream({str(shards.folder)!r}, batch_size=20), batch_size=20)\n"
            "print(json.dumps([[int(label) for label in batch['cls']] for batch in samples]))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == run_labels(shards.folder, 0, 5, seed=0, batch_size=20)


@pytest.mark.slow
def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/data.md").read_text().split("## WebDataset, the library")[1]
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    words = shlex.split(re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].replace("\\\n", " "))
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/data.md", "exec"), {"__name__": "page"})
    written = stock(sorted(map(str, tmp_path.glob("flipped-*.tar"))))
    samples = list(stream("rooms:2000", seed=1, batch_size=50))
    assert [int(sample["cls"]) for sample in written.values()] == [
        int(json.loads(sample["json"])["window"]) for sample in samples
    ]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/flipped/status.json").read_text())["status"] == "finished"


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def without(expected, lost):
    return [label for label in expected if label not in lost]


class TestDamage:
    def test_a_damaged_image_is_left_out_and_reported_and_moves_no_other(self, own_shards, caplog):
        expected = labels(stream(own_shards.folder, seed=2, batch_size=16))
        record = own_shards.record(3, 11)
        flip(own_shards.tars[3], int(record["offset"]) + 40)
        assert labels(stream(own_shards.folder, seed=2, batch_size=16)) == without(expected, {23 + 7 + 11})
        told = [entry.getMessage() for entry in caplog.records]
        where = f"shard 'set-000003.tar' offset {record['offset']}"
        assert f"damage: {where} (its bytes are not those that were written), sample left out" in told
        assert told[-1] == "damage: 1 sample left out in all"
        with pytest.raises(DataError, match=f"shard 'set-000003.tar' is damaged at byte {record['offset']}") as error:
            list(stream(own_shards.folder, seed=2, batch_size=16, on_damage="fail"))
        assert "\n" not in str(error.value)

    def test_resuming_after_damage_repeats_and_omits_nothing(self, own_shards):
        for row in (3, 4, 30):
            flip(own_shards.tars[3], int(own_shards.record(3, row)["offset"]) + 40)
        whole = labels(stream(own_shards.folder, batch_size=113))
        assert len(whole) == 110
        for read in range(0, 110, 7):
            before = stream(own_shards.folder, batch_size=113)
            list(islice(before, read))
            after = stream(own_shards.folder, batch_size=113)
            after.load_state_dict(before.state_dict())
            assert labels(after) == whole[read:]

    @pytest.mark.parametrize("part", ["name", "content"])
    def test_a_damaged_label_is_no_label(self, own_shards, part, caplog):
        tar = own_shards.tars[0]
        with tarfile.open(tar) as archive:
            member = archive.getmember("000005.cls")
        flip(tar, member.offset_data if part == "content" else member.offset + 3)
        found = labels(stream(own_shards.folder, batch_size=113))
        lost = {5} if part == "content" else {4, 5}  # a member between two samples may belong to either
        assert sorted(found) == without(range(113), lost)
        assert caplog.records

    def test_a_missing_shard_costs_its_samples_and_a_few_lines(self, own_shards, caplog):
        own_shards.tars[3].unlink()
        assert sorted(labels(stream(own_shards.folder, batch_size=113))) == without(range(113), range(30, 70))
        told = [entry.getMessage() for entry in caplog.records]
        assert len(told) == 4
        assert told[-1] == "damage: 40 samples left out in all"

    def test_a_truncation_costs_the_samples_after_it(self, own_shards):
        os.truncate(own_shards.tars[4], int(own_shards.record(4, 20)["offset"]) + 5)
        lost = range(70 + 20, 70 + 31)
        found = labels(stream(own_shards.folder, batch_size=113))
        assert sorted(found) == without(range(113), lost)

    @pytest.mark.parametrize("epochs", [1, None])
    def test_an_epoch_of_nothing_else_is_an_error(self, own_shards, epochs):
        for tar in own_shards.tars:
            tar.unlink()
            tar.touch()
        with pytest.raises(DataError, match=r"no sample of an epoch of .* could be read: restore its shards"):
            list(stream(own_shards.folder, batch_size=20, epochs=epochs))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: take 1 or more"),
        ({"batch_size": 114}, "batch_size is 114, but .* has 113 images: take fewer"),
        ({"seed": -1}, "seed is -1: take 0 or more"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of a world_size of 2: ranks count from 0"),
        ({"rank": -1}, "rank is -1: take 0 or more"),
        ({"start": -1}, "start is -1: take 0 or more"),
        ({"epochs": 0}, "epochs is 0: take 1 or more, or None for no end"),
        ({"on_damage": "ignore"}, "on_damage is 'ignore': take 'skip' or 'fail'"),
    ],
)
def test_bad_input_is_named(shards, wrong, message):
    with pytest.raises((ConfigError, DataError), match=message):
        stream(shards.folder, **({"batch_size": 10} | wrong))
