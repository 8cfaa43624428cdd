"""The two calls of bias_act: what they need of their arguments is checked here and nowhere else."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _memory
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import Activation

OP = "bias_act"


class Forward(NamedTuple):
    """y = clamp(act(x + bias)·gain)."""

    x: Tensor  # [N, C, ...], dense in `order`
    bias: Tensor | None  # [C], in the accumulator's dtype
    y: Tensor  # like x, to be written
    order: torch.memory_format
    activation: Activation
    device: torch.device
    dtype: torch.dtype


class Backward(NamedTuple):
    """dx = act'(y)·dy and its sums over all but the channels."""

    dy: Tensor  # [N, C, ...], dense in `order`
    y: Tensor | None  # like dy; None where the derivative does not depend on it
    dx: Tensor | None  # like dy, to be written; None where not asked for
    dbias: Tensor | None  # [C], in the accumulator's dtype, to be written; None likewise
    order: torch.memory_format
    activation: Activation
    device: torch.device
    dtype: torch.dtype


@functools.lru_cache(256)
def planes_record(
    module: ModuleType, shape: Sequence[int], order: torch.memory_format, dtype: torch.dtype
) -> Any:
    """A dense tensor as the C++ and the CUDA module see it: `Planes` of csrc/bias_act/records.h."""
    n, c, *space = shape
    size = math.prod(space)
    sizes = (n * size, c, 1) if order is torch.channels_last else (n, c, size)
    return module.Planes(*sizes, _memory.DTYPE_CODES[dtype])


def forward_call(x: Tensor, bias: Tensor | None, activation: Activation) -> Forward:
    """The forward call; raises TypeError or ValueError where an argument does not fit."""
    _check.floating(OP, "x", x)
    if x.ndim < 2:
        _check.require(False, OP, "x must be [N, C, ...]", x)
    device, dtype, (x, order) = x.device, x.dtype, _memory.in_own_order(OP, "x", x)
    y = torch.empty_like(x, memory_format=order)
    if bias is not None:
        _check.floating(OP, "bias", bias)
        wide = accumulator(dtype)
        bias = bias if bias.dtype == wide else bias.to(wide)
        bias = _memory.dense(OP, "bias", bias, device, (x.shape[1],), (wide,))
    return Forward(x, bias, y, order, activation, device, dtype)


def backward_call(
    dy: Tensor, y: Tensor | None, activation: Activation, needs: Sequence[bool]
) -> Backward:
    """The backward call: dx in dy's dtype and y's memory format, dbias in the accumulator's dtype.

    Raises TypeError or ValueError where an argument does not fit.
    """
    _check.floating(OP, "dy", dy)
    if dy.ndim < 2 or len(needs) != 2 or (y is None and activation.reads_y):
        _check.require(dy.ndim >= 2, OP, "dy must be [N, C, ...]", dy)
        _check.require(len(needs) == 2, OP, "needs must be two truth values", str(needs))
        _check.require(False, OP, "y is needed", None)
    device, dtype = dy.device, dy.dtype
    if y is None:
        dy, order = _memory.in_own_order(OP, "dy", dy)
    else:
        _check.floating(OP, "y", y)
        y, order = _memory.in_own_order(OP, "y", y if y.dtype == dtype else y.to(dtype))
        dy = _memory.dense(OP, "dy", dy, device, y.shape, (dtype,), order)
        if y.device != device:
            _check.require(False, OP, f"y must be on {device}", y)
    dx = torch.empty_like(dy, memory_format=order) if needs[0] else None
    dbias = dy.new_empty(dy.shape[1], dtype=accumulator(dtype)) if needs[1] else None
    y = y if activation.reads_y else None
    return Backward(dy, y, dx, dbias, order, activation, device, dtype)
