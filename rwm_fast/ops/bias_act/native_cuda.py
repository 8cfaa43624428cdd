"""bias_act in CUDA (csrc/bias_act/cuda.cu); `native` comes here with CUDA tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES

OP = "bias_act"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype and layout, where the CUDA module was built and there is a GPU."""
    return _cuda.why_not()


def _extents(x: Tensor, order: torch.memory_format) -> tuple[int, int, int]:
    """Outer size, channels, inner size of a dense tensor; an inner size of 1 means rows."""
    n, c, *space = x.shape
    size = math.prod(space)
    return (n * size, c, 1) if order is torch.channels_last else (n, c, size)


def _chunks(outer: int, channels: int, inner: int) -> int:
    """Pieces of the sum over rows, or over each plane: for a GPU to fill, and few to add up."""
    if inner == 1:
        return min(512, -(-outer // 64))
    return min(-(-inner // 4096), -(-1024 // (outer * channels)))


def settings(
    activation: str, slope: float, gain: float, clamp: float | None
) -> tuple[float, float, float]:
    """Slope, gain and clamp as the kernels read them: a clamp that is not a number is none."""
    return 1.0 if activation == "linear" else slope, gain, math.nan if clamp is None else clamp


def forward(
    x: Tensor,  # [N, C, ...]
    bias: Tensor | None,  # [C]
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """y = clamp(act(x + bias)·gain), in x's memory format."""
    _check.floating(OP, "x", x)
    _check.require(x.ndim >= 2, OP, "x must be [N, C, ...]", x)
    order = _layout.memory_format(x)
    y = _layout.empty(x, x.shape)
    x = _cuda.dense(OP, "x", x, x.device, x.shape, (x.dtype,), order)
    if bias is not None:
        dtype = accumulator(x.dtype)
        bias = _cuda.dense(OP, "bias", bias.to(dtype), x.device, x.shape[1:2], (dtype,))
    if x.numel():
        _cuda.module().bias_act_forward(
            *map(address, (x, bias, y)),
            *_extents(x, order),
            *settings(activation, slope, gain, clamp),
            DTYPE_CODES[x.dtype],
            *_cuda.place(x),
        )
    return y


def backward(
    dy: Tensor,
    y: Tensor | None,
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """dx in dy's dtype and y's memory format, dbias in the accumulator's; empty if not needed."""
    _check.floating(OP, "dy", dy)
    _check.require(dy.ndim >= 2, OP, "dy must be [N, C, ...]", dy)
    reads_y = activation != "linear" or clamp is not None
    _check.require(y is not None or not reads_y, OP, "y is needed", None)
    order = _layout.memory_format(dy if y is None else y)
    dx = _layout.empty(dy if y is None else y, dy.shape, dy.dtype) if needs[0] else dy.new_empty(0)
    dy = _cuda.dense(OP, "dy", dy, dy.device, dy.shape, (dy.dtype,), order)
    if y is not None:
        y = _cuda.dense(OP, "y", y.to(dy.dtype), dy.device, dy.shape, (dy.dtype,), order)
    wide, channels = accumulator(dy.dtype), dy.shape[1]
    dbias = dy.new_empty(channels if needs[1] else 0, dtype=wide)
    if not dy.numel():
        return dx, dbias.zero_()
    if any(needs):
        extents = _extents(dy, order)
        chunks = _chunks(*extents)
        rows = chunks if extents[2] == 1 else chunks * extents[0]
        partials = dy.new_empty(rows * channels if needs[1] else 0, dtype=wide)
        _cuda.module().bias_act_backward(
            *map(address, (dy, y if reads_y else None)),
            address(dx) if needs[0] else 0,
            address(dbias) if needs[1] else 0,
            address(partials),
            *extents,
            chunks,
            *settings(activation, slope, gain, clamp),
            DTYPE_CODES[dy.dtype],
            *_cuda.place(dy),
        )
    return dx, dbias
