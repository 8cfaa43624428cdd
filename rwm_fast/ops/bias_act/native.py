"""C++ on the CPU and, through `native_cuda`, CUDA: one pass forward, one pass backward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _extension, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act import native_cuda


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
    if x.is_cuda:
        return native_cuda.forward(x, bias, activation, slope, gain, clamp)
    order = _layout.memory_format(x)
    x = x.contiguous(memory_format=order)
    y = _layout.empty(x, x.shape)
    if bias is not None:
        fits = bias.shape == x.shape[1:2] and bias.device == x.device
        _check.require(fits, "bias_act", f"bias must be [{x.shape[1]}] on {x.device}", bias)
        bias = bias.to(accumulator(x.dtype)).contiguous()
    _extension.cpu().bias_act_forward(
        x.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
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
    if dy.is_cuda:
        return native_cuda.backward(dy, y, activation, slope, gain, clamp, needs)
    if y is not None:
        fits = y.shape == dy.shape and y.device == dy.device
        _check.require(fits, "bias_act_backward", f"y must be like dy {_check.describe(dy)}", y)
    order = _layout.memory_format(dy if y is None else y)
    dy = dy.contiguous(memory_format=order)
    y = None if y is None else y.to(dy.dtype).contiguous(memory_format=order)
    dx = torch.empty_like(dy, memory_format=order) if needs[0] else dy.new_empty(0)
    wide = accumulator(dy.dtype)
    dbias = dy.new_empty(dy.shape[1] if needs[1] else 0, dtype=wide)
    _extension.cpu().bias_act_backward(
        dy.data_ptr(),
        0 if y is None else y.data_ptr(),
        dx.data_ptr() if needs[0] else 0,
        dbias.data_ptr() if needs[1] else 0,
        *_extents(dy, order),
        *_settings(activation, slope, gain, clamp),
        _extension.DTYPE_CODES[dy.dtype],
    )
    return dx, dbias
