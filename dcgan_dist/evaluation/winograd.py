"""3x3 convolutions with a quarter of the multiplications, for features in float32 on a CPU (Lavin and Gray 2015).

Winograd's algorithm F(4x4, 3x3): a tile of 4x4 outputs depends on 6x6 inputs, and between two changes of basis the
convolution needs 36 products over the channels instead of 144. PyTorch's convolutions on a CPU do not use it; on a GPU,
cuDNN chooses it by itself. Results differ from a direct convolution by up to 1e-5 of the largest output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dcgan_dist.vector_math  # noqa: F401 - before anything is computed

TILE = 4  # side of a tile of outputs
_SPAN = TILE + 2  # side of the inputs that a tile depends on
_FEWEST_CHANNELS = 64  # with fewer, the changes of basis cost more than is saved

# Interpolation at 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    *((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0)),
    *((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
)
_KERNEL = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # times 24
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def is_suitable(conv: nn.Conv2d) -> bool:
    """Return whether `WinogradConv2d` can compute a convolution, and faster."""
    plain = conv.groups == 1 and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    shape = (conv.kernel_size, conv.stride, conv.dilation) == ((3, 3), (1, 1), (1, 1))
    return plain and shape and min(conv.in_channels, conv.out_channels) >= _FEWEST_CHANNELS


class WinogradConv2d(nn.Module):
    """A suitable convolution by Winograd's algorithm, without gradients; the memory format is channels last.

    Args:
        conv: the convolution; its weights are copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert is_suitable(conv)
        by_input, by_kernel, by_output = (torch.tensor(rows).double() for rows in (_INPUT, _KERNEL, _OUTPUT))
        kernels = by_kernel / 24 @ conv.weight.detach().double() @ by_kernel.T / 24
        self._kernels = kernels.permute(2, 3, 1, 0).flatten(0, 1).float().contiguous()  # (36, inputs, outputs)
        self._to_basis = torch.kron(by_input, by_input).float()
        self._from_basis = torch.kron(by_output, by_output).float()
        bias = conv.bias
        self._bias = torch.zeros(conv.out_channels) if bias is None else bias.detach().float().clone()
        self._conv = conv

    def forward(self, maps: Tensor) -> Tensor:
        """Return the outputs, (n, out_channels, side, side), of maps (n, in_channels, side, side)."""
        count, channels, height, width = maps.shape
        if height % TILE or width % TILE:
            return self._conv(maps)  # type: ignore[no-any-return]
        down, across = height // TILE, width // TILE
        padded = nn.functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        tiles = padded.unfold(1, _SPAN, TILE).unfold(2, _SPAN, TILE).permute(4, 5, 0, 1, 2, 3)
        inputs = (self._to_basis @ tiles.reshape(_SPAN**2, -1)).view(_SPAN**2, -1, channels)
        products = torch.bmm(inputs, self._kernels)
        outputs = (self._from_basis @ products.view(_SPAN**2, -1)).view(TILE, TILE, count, down, across, -1)
        joined = outputs.new_empty(count, down, TILE, across, TILE, outputs.shape[-1])
        torch.add(outputs.permute(2, 3, 0, 4, 1, 5), self._bias, out=joined)
        return joined.view(count, height, width, -1).permute(0, 3, 1, 2)
