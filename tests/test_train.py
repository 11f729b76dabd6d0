"""The command `train`: its output at the end."""

import shlex

import pytest

from dcgan_dist.train import print_results


@pytest.mark.parametrize("location", ["runs/a", "run with space", "it's; $HOME", "s3://bucket/runs/a b"])
def test_the_command_for_the_curves_can_be_pasted_into_a_shell(location, capsys):
    print_results(location)
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ["curves", "tensorboard", "--logdir", location]
