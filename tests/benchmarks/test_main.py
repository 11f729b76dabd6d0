"""The command line of the benchmarks, and that their baseline is the loop that it claims to be."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import data
from benchmarks.__main__ import WHAT, main
from benchmarks.plain_loop import make_plain_loop
from benchmarks.step import TUTORIAL
from dcgan_dist.data.dataset import open_dataset
from dcgan_dist.data.stream import ImageStream
from dcgan_dist.models import build_networks
from tests.data.shard_sets import make_set


def test_unknown_benchmarks_and_rounds_are_one_line(capsys):
    for arguments, word in (
        (["speed"], "speed"),
        (["step", "many"], "many"),
        (["step", "0"], "0"),
        (["step", "--mosaic"], "--mosaic"),
        (["all", "--mosaic"], "--mosaic"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
        assert word in error


def test_help_names_every_benchmark(capsys):
    assert main([]) == 0
    assert {*WHAT, "all"} <= set(capsys.readouterr().out.split())


def test_the_page_has_a_row_for_every_benchmark():
    page = Path(__file__).parents[2] / "benchmarks/README.md"
    table = page.read_text(encoding="utf-8").partition("## What each measures")[2]
    rows = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    assert rows == list(WHAT)


def test_all_names_those_that_failed(monkeypatch, capfd):
    monkeypatch.setattr(
        "benchmarks.__main__.WHAT", {"one": (1, 1, ""), "another": (1, 1, "")}
    )  # the children know none
    assert main(["all", "--quick"]) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith("failed: one, another")


def test_the_plain_loop_trains_as_many_weights_as_our_tutorial_network(monkeypatch):
    counted = []
    real_to = nn.Module.to

    def counting(module, *arguments, **options):
        counted.append(sum(parameter.numel() for parameter in module.parameters()))
        return real_to(module, *arguments, **options)

    monkeypatch.setattr(nn.Module, "to", counting)
    step = make_plain_loop(torch.device("cpu"), 2, bfloat16=False)
    assert counted == [sum(p.numel() for p in network.parameters()) for network in build_networks(TUTORIAL)]
    first = step(torch.rand(2, 3, 64, 64) * 2 - 1)
    later = [step(torch.full((2, 3, 64, 64), 0.5)) for _ in range(3)][-1]
    assert later[0] < first[0]


@pytest.mark.parametrize("encoding", ["jpg", "raw"])
def test_the_stock_reader_and_ours_go_through_the_same_images(tmp_path, encoding):
    dataset = open_dataset(make_set(tmp_path / "set", [150, 106], encoding=encoding).folder)
    read = []

    def shown(batch):
        read.append(Counter(image.numpy().tobytes() for image in batch))
        return len(batch)

    assert data.stock(dataset, shown)() == 256
    assert data.ours(dataset, epochs=2, use=shown)() == 512
    stock, *rest = (sum(part, Counter()) for part in (read[:2], read[2:4], read[4:]))
    assert rest == [stock, stock]
    assert stock.total() == 256


def test_unchecked_reading_is_for_the_benchmark_alone(tmp_path):
    shards = make_set(tmp_path / "set", [20])
    content = bytearray(shards.tars[0].read_bytes())
    content[int(shards.record(0, 7)["offset"])] ^= 0xFF
    shards.tars[0].write_bytes(content)
    stream = ImageStream(open_dataset(shards.folder), seed=0, batch_size=20)
    with data.unchecked():
        assert len(stream.read(0).images) == 20
    assert len(stream.read(0).images) == 19
