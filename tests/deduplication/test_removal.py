"""De-duplicating whole sets of shards."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.manifest import Manifest, unpack_keep
from dcgan_dist.data.rooms import draw_room
from dcgan_dist.data.settings import DeduplicationConfig
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.deduplication import Summary, deduplicate
from dcgan_dist.deduplication.autoencoder import Autoencoder, train_autoencoder
from dcgan_dist.errors import DataError
from dcgan_dist.parallel import LocalPool
from dcgan_dist.storage.folder import LocalFolder
from tests.data import shard_sets

SETTINGS = DeduplicationConfig(steps=40, batch_size=32)
SIZES = [90, 0, 70, 100]
COUNT = sum(SIZES)
# Copies by number, with their originals: within a shard, over shards, and one image three times.
COPIES = {20: 3, 110: 7, 200: 150, 220: 7, 259: 90}


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of rooms, some of them twice, byte by byte."""
    images = np.stack([draw_room(5, number, 32)[0] for number in range(COUNT)])
    for copy, source in COPIES.items():
        images[copy] = images[source]
    folder = tmp_path_factory.mktemp("sets") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_sets, "random_images", lambda *_: images)
        shard_sets.make_set(folder, [size for size in SIZES if size], size=32)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _train_once_for_the_same_images_and_seed() -> Iterator[None]:
    """The result of a real training, for all tests."""
    done: dict[tuple[str, int], tuple[Autoencoder, float]] = {}

    def train(images: torch.Tensor, settings: DeduplicationConfig, *, seed: int, device: torch.device) -> object:
        key = (xxhash.xxh3_64_hexdigest(images.numpy()), seed)
        if key not in done:
            done[key] = train_autoencoder(images, settings, seed=seed, device=device)
        return deepcopy(done[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcgan_dist.deduplication.removal.train_autoencoder", train)
        yield


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def run(folder: Path | str, settings: DeduplicationConfig = SETTINGS, workers: int = 1, seed: int = 1) -> Summary:
    return deduplicate(str(folder), settings, seed=seed, pool=LocalPool(workers), say=lambda _: None)


def manifest(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "manifest.json").read_bytes(), "the manifest")


def kept(folder: Path) -> np.ndarray:
    keep = manifest(folder).keep
    assert keep is not None
    return unpack_keep((folder / keep.file).read_bytes(), 0, COUNT)


def test_identical_images_are_removed_but_for_the_first_and_the_stream_shows_the_others_once(folder: Path) -> None:
    summary = run(folder)
    keep = kept(folder)
    assert not keep[list(COPIES)].any()
    assert keep[list(COPIES.values())].all()
    assert summary.kept == keep.sum() == COUNT - summary.removed
    assert sum(int(size) * number for size, number in summary.group_sizes.items()) - summary.groups == summary.removed
    dataset = open_dataset(folder)
    assert dataset.count == summary.kept
    stream = ImageStream(dataset, seed=3, batch_size=1)
    for epoch in (0, 1):
        first = epoch * stream.batches_per_epoch
        batches = [stream.read(first + number) for number in range(stream.batches_per_epoch)]
        labels = sorted(int(batch.labels[0]) for batch in batches)  # the label of an image is its number
        assert labels == np.flatnonzero(keep).tolist()


@pytest.mark.slow
def test_the_keep_list_depends_on_seed_and_settings_and_not_on_the_number_of_workers(
    original: Path, tmp_path: Path
) -> None:
    results = []
    for number, (workers, seed, units) in enumerate([(1, 1, None), (2, 1, None), (1, 2, None), (1, 1, 4)]):
        copy = Path(shutil.copytree(original, tmp_path / str(number)))
        results.append((run(copy, replace(SETTINGS, units=units), workers, seed), kept(copy)))
    assert results[0][0] == results[1][0]
    assert results[0][1].tolist() == results[1][1].tolist()
    assert results[0][0].network != results[2][0].network
    assert results[0][1].sum() > results[3][1].sum()  # four bits make sixteen groups


def test_a_rerun_does_nothing_and_other_settings_repeat_it(folder: Path) -> None:
    run(folder)
    names = {path.name for path in folder.iterdir()}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lines: list[str] = []
    deduplicate(str(folder), SETTINGS, seed=1, pool=LocalPool(1), say=lines.append)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(lines) == 1
    assert "already" in lines[0]
    few = run(folder, replace(SETTINGS, units=4))
    assert few.kept <= 16
    assert open_dataset(folder).count == few.kept  # the first keep-list does not exclude images from the second
    assert few.images == COUNT
    run(folder)
    assert {path.name for path in folder.iterdir()} == names
    assert {"keep.bits", "dedup.json", "dedup.html", "dedup.safetensors"} <= names


@pytest.mark.parametrize("again", [False, True])
def test_cut_off_at_any_file_the_set_stays_as_it_was(
    folder: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if again:
        run(folder, replace(SETTINGS, units=4))
    before = open_dataset(folder)
    whole = LocalFolder.new
    for stop in range(100):
        written: list[str] = []

        def new(place: LocalFolder, name: str, limit: int = stop, written: list[str] = written) -> object:
            if len(written) == limit:
                raise KeyboardInterrupt
            written.append(name)
            return whole(place, name)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFolder, "new", new)
            try:
                run(folder)
            except KeyboardInterrupt:
                now = open_dataset(folder)
                assert now.digest == before.digest
                assert now.count == sum(now.sizes) == before.count
            else:
                break
    assert stop == 6
    assert written[-1] == "manifest.json"
    now = open_dataset(folder)
    assert now.digest != before.digest
    assert now.count == sum(now.sizes) == kept(folder).sum()


def test_damaged_images_are_counted_and_in_no_group(folder: Path) -> None:
    about = manifest(folder).shards[0]
    records = np.fromfile(folder / about.index, dtype=shard_sets.RECORD)
    content = bytearray((folder / about.file).read_bytes())
    content[records["offset"][3]] ^= 1
    (folder / about.file).write_bytes(content)
    summary = run(folder)
    assert summary.damaged == 1
    assert kept(folder)[[3, 20]].all()  # the copy of the damaged image is now the only one


def test_the_page_has_a_box_for_each_pair_and_all_images_inside(folder: Path) -> None:
    summary = run(folder)
    page = (folder / "dedup.html").read_text()
    assert page.count('type="checkbox"') == min(100, summary.removed)
    images = re.findall(r'<img src="([^"]*)"', page)
    assert len(images) >= 2 * min(100, summary.removed)
    assert all(image.startswith("data:image/jpeg;base64,") for image in images)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_set_on_remote_storage_gets_its_keep_list_there(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/dedup-test", recursive=True)
    summary = run("memory://dedup-test")
    assert summary.removed >= len(COPIES)
    assert open_dataset("memory://dedup-test").count == summary.kept
    assert json.loads(memory.cat_file("/dedup-test/dedup.json"))["keep"] == summary.keep


def test_a_folder_without_a_manifest_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        run(tmp_path)
