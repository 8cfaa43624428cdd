"""The truth for bias_act, in plain torch.

Half-precision input is computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._check import accumulator


def bias_act(
    x: Tensor,  # [N, C, ...]
    bias: Tensor | None,  # [C]
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """y = clamp(act(x + bias)·gain); differentiable by torch to any order."""
    t = x.to(accumulator(x.dtype))
    if bias is not None:
        t = t + along_channels(bias, x.ndim)
    return activate(t, activation, slope, gain, clamp).to(x.dtype)


def activate(t: Tensor, activation: str, slope: float, gain: float, clamp: float | None) -> Tensor:
    """clamp(act(t)·gain)."""
    y = (F.leaky_relu(t, slope) if activation == "lrelu" else t) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


def activate_backward(
    dy: Tensor, y: Any, activation: str, slope: float, gain: float, clamp: float | None
) -> Tensor:
    """dt = dy·gain·(1 where y > 0, else slope), 0 where |y| ≥ clamp; y may be None if unused."""
    dt = dy * gain
    if activation == "lrelu":
        # torch's derivative of leaky_relu that reads the sign from the result, as ours does
        dt = torch.ops.aten.leaky_relu_backward(dt, y.to(dt.dtype), slope, True)
    return dt if clamp is None else dt.masked_fill(y.abs() >= clamp, 0)


def along_channels(vector: Tensor, ndim: int) -> Tensor:
    """[C] as [1, C, 1, …] of `ndim` dimensions."""
    return vector.view(1, -1, *[1] * (ndim - 2))


def over_channels(t: Tensor) -> Tensor:
    """Sums of [N, C, …] over everything but the channels: [C]."""
    return t.sum([d for d in range(t.ndim) if d != 1])
