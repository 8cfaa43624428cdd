"""The truth for modulated_conv2d, in plain torch.

The convolution works in x's dtype, everything around it in float32 (float64 for float64). In
float16 weight and styles are bounded first (`demodulation.Bounds`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act.reference import activate, along_channels
from rwm_fast.ops.modulated_conv2d.demodulation import blend, bounds, demodulation
from rwm_fast.ops.modulated_conv2d.geometry import Settings, plan
from rwm_fast.ops.modulated_conv2d.torch_convolution import resampled
from rwm_fast.ops.upfirdn2d.geometry import filter_size


def modulated_conv2d(
    x: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw]
    styles: Tensor,  # [N, K, I]
    regions_in: Tensor | None,  # [N, K, h, w]
    regions_out: Tensor | None,  # [N, K, H, W]
    noise: Tensor | None,  # [N or 1, 1, H, W]
    noise_strength: Tensor | None,  # []
    bias: Tensor | None,  # [O]
    filter: Tensor | None,
    *settings: Any,  # those of `Settings`
) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped; differentiable by torch."""
    s = Settings(*settings)
    styles = styles.to(accumulator(x.dtype))
    _, _, kh, kw = weight.shape
    passes = plan(s.up, s.down, s.padding, (kh, kw), filter_size(filter))
    eps: Any = s.eps
    if x.dtype == torch.float16 and s.demodulate:
        bound = bounds(weight, styles)
        weight, styles, eps = weight * bound.weight, styles * bound.styles, bound.eps(eps)
    z = (blend(styles, regions_in) * x).to(x.dtype)
    u = resampled(z, weight.to(x.dtype), filter, passes, s.flip_weight)
    v = u.to(styles.dtype)  # [N, O, H, W]
    if s.demodulate:
        v = blend(demodulation(weight, styles, eps), regions_out) * v
    if noise is not None:
        noise = noise.to(v.dtype)
        v = v + (noise if noise_strength is None else noise_strength * noise)
    if bias is not None:
        v = v + along_channels(bias, 4)
    return activate(v, *s.act).to(x.dtype)
