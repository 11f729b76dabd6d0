"""The first call of each operator in a fresh process, compared with its second call."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional

from tests.stress.forked import in_child, settle

Operator = Callable[[], torch.Tensor]
IMAGES = (16, 3, 64, 64)
# Of those that MKL's vector functions compute, and so share one variable.
VECTOR_FUNCTIONS = ("tanh", "exp", "log", "sin", "erf", "sqrt", "tanh of doubles", "exp of doubles")


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values in (-2, 2) that no random generator and no vector function made."""
    size = 1
    for length in shape:
        size *= length
    values = (torch.arange(size, dtype=torch.float64) * 7919 % size / size - 0.5) * 4
    return values.reshape(shape).to(dtype)


def _with_gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    leaves = [each.detach().requires_grad_() for each in inputs]
    out = function(*leaves)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    return torch.cat([each.detach().float().flatten() for each in (out, *gradients)])


def _bfloat16(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return _with_gradients(function, *inputs)


def _adam(**options: bool) -> torch.Tensor:
    weights = ramp(512, 256).requires_grad_()
    weights.grad = ramp(512, 256).flip(0)
    torch.optim.Adam([weights], lr=1e-3, betas=(0.5, 0.999), **options).step()
    return weights.detach()


def operators() -> dict[str, Operator]:
    """Return every operator that training and scoring use, and their kin, each on inputs of its own."""
    x, positive, doubles = ramp(*IMAGES), ramp(*IMAGES).abs() + 0.1, ramp(*IMAGES, dtype=torch.float64)
    half = ramp(*IMAGES).bfloat16()
    maps, last = ramp(16, 32, 16, 16), ramp(16, 32, 16, 16).to(memory_format=torch.channels_last)
    kernel, rows, logits = ramp(64, 32, 4, 4) / 16, ramp(512, 512), ramp(256)
    labels, gain, bias = (torch.arange(256) % 2).float(), ramp(32), ramp(32)
    square = (rows + rows.T) / 512 + 8 * torch.eye(512)  # positive definite

    def norm(images: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(images, None, None, weight, offset, training=True)

    def down(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(images, weight, stride=2, padding=1)

    def up(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv_transpose2d(images, weight.transpose(0, 1), stride=2, padding=1)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(values, labels)

    many = ramp(64, 1024)
    return {
        "tanh": lambda: torch.tanh(x),
        "exp": lambda: torch.exp(x),
        "log": lambda: torch.log(positive),
        "sin": lambda: torch.sin(x),
        "erf": lambda: torch.erf(x),
        "sqrt": lambda: torch.sqrt(positive),
        "tanh of doubles": lambda: torch.tanh(doubles),
        "exp of doubles": lambda: torch.exp(doubles),
        "tanh with gradients": lambda: _with_gradients(torch.tanh, x),
        "tanh of bfloat16": lambda: torch.tanh(half).float(),
        "sigmoid": lambda: _with_gradients(torch.sigmoid, x),
        "sigmoid of doubles": lambda: _with_gradients(torch.sigmoid, doubles),
        "log_sigmoid": lambda: _with_gradients(functional.logsigmoid, x),
        "softplus": lambda: _with_gradients(functional.softplus, x),
        "leaky_relu": lambda: _with_gradients(lambda v: functional.leaky_relu(v, 0.2), x),
        "gelu": lambda: _with_gradients(functional.gelu, x),
        "cos": lambda: torch.cos(x),
        "expm1": lambda: torch.expm1(x),
        "log1p": lambda: torch.log1p(positive),
        "rsqrt": lambda: torch.rsqrt(positive),
        "pow": lambda: torch.pow(positive, 1.7),
        "reciprocal": lambda: 1 / positive,
        "log_softmax": lambda: _with_gradients(lambda v: torch.log_softmax(v, 1), many),
        "cross_entropy": lambda: _with_gradients(lambda v: functional.cross_entropy(v, torch.arange(64)), many),
        "loss": lambda: _with_gradients(loss, logits),
        "batch_norm": lambda: _with_gradients(norm, maps, gain, bias),
        "batch_norm, channels last": lambda: _with_gradients(norm, last, gain, bias),
        "convolution": lambda: _with_gradients(down, maps, kernel),
        "convolution, channels last": lambda: _with_gradients(down, last, kernel),
        "convolution, bfloat16": lambda: _bfloat16(down, last, kernel),
        "convolution of doubles": lambda: _with_gradients(down, maps.double(), kernel.double()),
        "transposed convolution": lambda: _with_gradients(up, maps, kernel),
        "transposed convolution, channels last": lambda: _with_gradients(up, last, kernel),
        "transposed convolution, bfloat16": lambda: _bfloat16(up, last, kernel),
        "linear": lambda: _with_gradients(functional.linear, many, ramp(256, 1024)),
        "linear, bfloat16": lambda: _bfloat16(functional.linear, many, ramp(256, 1024)),
        "product": lambda: rows @ rows,
        "product of doubles": lambda: rows.double() @ rows.double(),
        "product with a vector": lambda: rows @ rows[0],
        "batched product": lambda: torch.bmm(rows.reshape(8, 64, 512), rows.reshape(8, 512, 64)),
        "adam": lambda: _adam(fused=True),
        "adam over lists": lambda: _adam(foreach=True),
        "norm of gradients": lambda: torch.nn.utils.get_total_norm([rows, x], foreach=True),
        "sum": lambda: x.sum((0, 2, 3)),
        "mean and variance": lambda: torch.stack(torch.var_mean(x.double())),
        "distances": lambda: torch.cdist(many, many),
        "distances of pairs": lambda: functional.pdist(many),
        "sort": lambda: rows.flatten().sort().values,
        "cumulative sum": lambda: rows.cumsum(0),
        "average pooling": lambda: functional.avg_pool2d(maps, 4),
        "largest of a window": lambda: _with_gradients(lambda v: functional.max_pool2d(v, 4), maps),
        "enlarging": lambda: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        "cholesky": lambda: torch.linalg.cholesky(square),
        "eigenvalues": lambda: torch.linalg.eigvalsh(square),
        "singular values": lambda: torch.linalg.svdvals(many),
        "solving": lambda: torch.linalg.solve(square, rows),
        "normal draws": lambda: torch.randn(256, 1024, generator=torch.Generator().manual_seed(1)),
    }


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.md5(tensor.contiguous().numpy().tobytes()).hexdigest()


def _first_and_second(table: dict[str, Operator], names: list[str], mended: bool) -> str:
    if mended:
        settle()
    first = {name: _digest(table[name]()) for name in names}
    second = {name: _digest(table[name]()) for name in names}
    return ", ".join(name for name in names if first[name] != second[name])


def trials(without_mending: bool, done: int) -> Iterator[str]:
    """Yield the names of the operators whose first calls differ from their second ones, of one fresh process each.

    With the mending a process calls all operators, in an order of its own; without it one vector function alone, since
    the first of them settles all others.
    """
    torch.set_num_threads(1)
    table = operators()
    names = list(table)
    number = done
    while True:
        if without_mending:
            chosen = [VECTOR_FUNCTIONS[number % len(VECTOR_FUNCTIONS)]]
        else:
            chosen = random.Random(number).sample(names, len(names))
        differing = in_child(partial(_first_and_second, table, chosen, not without_mending))
        yield differing or "the same"
        number += 1
