"""C++ on the CPU and, through `native_cuda`, CUDA: one pass forward, one pass backward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _extension, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cpu import address
from rwm_fast.ops.bias_act import native_cuda

OP = "bias_act"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any floating dtype and any layout, where the module for the tensors' device can be used."""
    if tensors[0].is_cuda:
        return native_cuda.supports(tensors)
    if any(t is not None and t.device.type != "cpu" for t in tensors):
        return "the tensors are on several devices"
    return _extension.why_not_cpu()


def _extents(x: Tensor, order: torch.memory_format) -> tuple[int, int, int]:
    """Outer size, channels, inner size of a dense tensor."""
    n, c, *space = x.shape
    size = math.prod(space)
    return (n * size, c, 1) if order is torch.channels_last else (n, c, size)


def _image(name: str, x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """[N, C, ...] in one dense order, and which."""
    _check.require(x.ndim >= 2, OP, f"{name} must be [N, C, ...]", x)
    order = _layout.memory_format(x)
    return _cpu.dense(OP, name, x, x.shape, (x.dtype,), order), order


def _settings(activation: str, slope: float, gain: float, clamp: float | None):
    return 1.0 if activation == "linear" else slope, gain, math.inf if clamp is None else clamp


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
    if x.is_cuda:
        return native_cuda.forward(x, bias, activation, slope, gain, clamp)
    x, order = _image("x", x)
    y = _layout.empty(x, x.shape)
    if bias is not None:
        _check.floating(OP, "bias", bias)
        wide = accumulator(x.dtype)
        bias = _cpu.dense(OP, "bias", bias.to(wide), x.shape[1:2], (wide,))
    _extension.cpu().bias_act_forward(
        *map(address, (x, bias, y)),
        *_extents(x, order),
        *_settings(activation, slope, gain, clamp),
        _extension.DTYPE_CODES[x.dtype],
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
    """dx in dy's dtype and y's format, dbias in the accumulator's dtype; empty where not needed."""
    _check.floating(OP, "dy", dy)
    if dy.is_cuda:
        return native_cuda.backward(dy, y, activation, slope, gain, clamp, needs)
    _check.require(len(needs) == 2, OP, "needs must be two truth values", str(needs))
    if y is None:
        dy, order = _image("dy", dy)
    else:
        _check.floating(OP, "y", y)
        y, order = _image("y", y.to(dy.dtype))
        dy = _cpu.dense(OP, "dy", dy, y.shape, (y.dtype,), order)
    dx = torch.empty_like(dy, memory_format=order) if needs[0] else dy.new_empty(0)
    wide = accumulator(dy.dtype)
    dbias = dy.new_empty(dy.shape[1] if needs[1] else 0, dtype=wide)
    _extension.cpu().bias_act_backward(
        *map(address, (dy, y, dx if needs[0] else None, dbias if needs[1] else None)),
        *_extents(dy, order),
        *_settings(activation, slope, gain, clamp),
        _extension.DTYPE_CODES[dy.dtype],
    )
    return dx, dbias
