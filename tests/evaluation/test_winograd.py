"""Winograd's convolution equals the direct one."""

import pytest
import torch
from torch import nn

from dcgan_dist.evaluation.winograd import WinogradConv2d, is_suitable


@pytest.mark.parametrize("side", [4, 8, 12, 16, 10])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_equal_those_of_the_direct_convolution(side, bias):
    torch.manual_seed(side)
    conv = nn.Conv2d(64, 96, 3, padding=1, bias=bias)
    maps = torch.randn(3, 64, side, side).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = nn.functional.conv2d(
            maps.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1
        )
        found = WinogradConv2d(conv)(maps)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-5 * float(exact.abs().max()))


@pytest.mark.parametrize(
    "changes",
    [
        *({"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}),
        *({"kernel_size": 5}, {"in_channels": 3}),
    ],
)
def test_other_convolutions_are_not_replaced(changes):
    settings = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}
    assert is_suitable(nn.Conv2d(**settings))
    assert not is_suitable(nn.Conv2d(**settings | changes))
