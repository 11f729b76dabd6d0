"""The benchmarks' front door, and that the baseline they are judged by is what it claims to be."""

import torch
from torch import nn

from dcgan_dist.bench import main
from dcgan_dist.benchmarks.plain_loop import make_plain_loop
from dcgan_dist.benchmarks.step import TUTORIAL
from dcgan_dist.models import build_networks


def test_unknown_benchmarks_and_rounds_are_one_line(capsys):
    for arguments, word in ((["speed"], "speed"), (["step", "many"], "many"), (["step", "0"], "0")):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
        assert word in error


def test_help_names_every_benchmark(capsys):
    assert main([]) == 0
    assert {"step", "launch"} <= set(capsys.readouterr().out.split())


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
