"""Networks of the figures: an image depends only on its z and label, and ids are the same as in `sample`."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from dcgan_dist.data.manifest import KEEP_NAME, MANIFEST_NAME, KeepList, pack_keep
from dcgan_dist.data.shards import read_manifest
from dcgan_dist.errors import ConfigError
from dcgan_dist.evaluation.labelled import room_labels
from dcgan_dist.exploration.networks import Trained, open_trained, parse_ids
from dcgan_dist.generation.samples import open_samples
from dcgan_dist.prepare import main as prepare
from dcgan_dist.runs.run import Run
from dcgan_dist.train import main as train
from dcgan_dist.training.trained import load_generator
from tests.conftest import TINY, options
from tests.data.shard_sets import make_set
from tests.object_storage import client

__all__ = ["client"]


@pytest.mark.parametrize("name", ["dcgan", "gan", "cgan", "cdcgan"])
def test_ids_are_the_numbers_of_samples(opened, name):
    run = opened(name, seed=5)
    ids = [70, 3, 129]
    y = torch.cat([run.y(1, first=number) for number in ids])
    images = run.generate(run.z(ids), y)
    samples = open_samples(Run(run.location), seed=5)
    for image, number in zip(images, ids, strict=True):
        ((expected, _),) = samples.images(number, number + 1)
        # In another batch, sums may be rounded differently.
        assert np.abs(image.astype(int) - expected[0]).max() <= 1


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_an_image_depends_on_its_z_alone(opened, statistics):
    run = opened("dcgan", statistics)
    z = run.draw_z("test", 40)
    together = run.generate(z, run.y(40))
    alone = np.concatenate([run.generate(row[None], run.y(1)) for row in z[:3]])
    assert np.abs(together[:3].astype(int) - alone).max() <= 1


def test_statistics_of_batches_are_measured_once_over_many_samples(opened):
    run = opened("dcgan", "batch")
    generator = load_generator(Run(run.location), run.step).network
    norm = next(part for part in run.generator.modules() if isinstance(part, torch.nn.BatchNorm2d))
    place = next(name for name, part in run.generator.named_modules() if part is norm)
    inputs = []
    generator.get_submodule(place).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for part in generator.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.running_mean = part.running_var = None
        for _ in range(30):
            generator(torch.rand(64, 8) * 2 - 1, torch.zeros(64, 0))
    mean = torch.cat(inputs).mean(dim=(0, 2, 3))
    spread = torch.cat(inputs).std(dim=(0, 2, 3))
    assert norm.running_mean is not None
    assert ((norm.running_mean - mean).abs() < 0.1 * spread).all()
    assert torch.allclose(norm.running_var, spread**2, rtol=0.15)  # type: ignore[arg-type]


def test_labels_come_in_turn_or_are_of_the_class_asked_for(opened):
    run = opened("cgan")
    assert run.y(4).argmax(dim=1).tolist() == [0, 1, 0, 1]
    assert run.y(3, first=1).argmax(dim=1).tolist() == [1, 0, 1]
    assert run.y(3, "right").argmax(dim=1).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="label is 'up'"):
        run.y(3, "up")
    assert opened("dcgan").y(3).shape == (3, 0)


def test_lists_of_ids_are_read_or_refused():
    assert parse_ids("plus", ("3", " 17", "20-22")) == [3, 17, 20, 21, 22]
    for words in ((), ("",), ("a",), ("3", "", "4"), ("5-3",), ("-3",), ("3-",)):
        with pytest.raises(ConfigError, match=r"plus is .*: list numbers of samples"):
            parse_ids("plus", words)
    with pytest.raises(ConfigError, match="list 10,000 at most"):
        parse_ids("plus", ("0-99999999999",))


def train_on(data: str, run: Path) -> Trained:
    words = options({**TINY, "run_dir": run, "data.path": data, "training.steps": 2})
    assert train(words) == 0
    return open_trained(Run(run), "latest", seed=0, device=torch.device("cpu"), cache=run / "cache")


def test_a_run_on_prepared_rooms_knows_that_they_are_rooms(tmp_path, client):
    words = ["--source=rooms", "--count=40", "--image-size=16", "--seed=7", "--workers=1"]
    shards = tmp_path / "shards"
    assert prepare([*words, f"--output={shards}"]) == 0
    assert prepare([*words, "--output=s3://images/rooms-of-seed-7"]) == 0
    copy = shutil.copytree(shards, tmp_path / "copy")
    keep = pack_keep(np.arange(40) < 30)
    (copy / KEEP_NAME).write_bytes(keep)
    kept = KeepList(file=KEEP_NAME, count=30, digest=xxhash.xxh3_64_hexdigest(keep))
    (copy / MANIFEST_NAME).write_text(replace(read_manifest(copy), keep=kept).to_json())
    for number, data in enumerate((str(shards), str(copy), "s3://images/rooms-of-seed-7")):
        run = train_on(data, tmp_path / f"run-{number}")
        assert run.is_rooms
        dataset = run.dataset()
        assert dataset.rooms_seed == 7
        labels = room_labels(dataset)
        assert len(labels["window"]) == dataset.count
    shutil.rmtree(shards)
    assert open_trained(Run(tmp_path / "run-0"), "latest", seed=0, device=run.device, cache=tmp_path).is_rooms


def test_a_run_on_other_images_is_not_on_rooms(tmp_path):
    assert not train_on(str(make_set(tmp_path / "set", [16]).folder), tmp_path / "run").is_rooms
