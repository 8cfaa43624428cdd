"""The truth for modulated_conv2d, in plain torch, and the raw functions of the reference backend.

The convolution works in x's dtype, everything around it in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops._layout import memory_format
from rwm_fast.ops.bias_act.reference import activate, along_channels
from rwm_fast.ops.modulated_conv2d import formula
from rwm_fast.ops.modulated_conv2d._demod import blend, demodulation
from rwm_fast.ops.modulated_conv2d._geometry import Settings, convolve, plan


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any device, any dtype, any layout."""
    return None


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
    settings: Settings,
) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped; differentiable by torch."""
    styles = styles.to(accumulator(x.dtype))
    passes = plan(settings, weight, filter)
    z = (blend(styles, regions_in) * x).to(x.dtype)
    u = convolve(z, weight.to(x.dtype), filter, passes, settings.flip_weight)
    v = u.to(styles.dtype)  # [N, O, H, W]
    if settings.demodulate:
        v = blend(demodulation(weight, styles, settings.eps), regions_out) * v
    if noise is not None:
        noise = noise.to(v.dtype)
        v = v + (noise if noise_strength is None else noise_strength * noise)
    if bias is not None:
        v = v + along_channels(bias, 4)
    _, _, _, _, _, activation, slope, gain, clamp, _ = settings
    return activate(v, activation, slope, gain, clamp).to(x.dtype)


def forward(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    regions_in: Tensor | None,
    regions_out: Tensor | None,
    noise: Tensor | None,
    noise_strength: Tensor | None,
    bias: Tensor | None,
    filter: Tensor | None,
    settings: Settings,
) -> Tensor:
    """The truth in channels_last and in fewer passes over memory, in x's memory format.

    Linear and leaky ReLU have act(v)·gain = act(v·gain), so the gain goes into the small factors.
    """
    _, _, _, _, _, activation, slope, gain, clamp, eps = settings
    styles = styles.to(accumulator(x.dtype))
    z = x.contiguous(memory_format=torch.channels_last)
    z = (blend(styles, regions_in) * z).to(x.dtype)
    passes = plan(settings, weight, filter)
    u = convolve(z, weight.to(x.dtype), filter, passes, settings.flip_weight).to(styles.dtype)
    b = gain
    if settings.demodulate:
        b = blend(gain * demodulation(weight, styles, eps), regions_out)
    y = u.mul_(b)  # [N, O, H, W]
    if noise is not None:
        strength = gain if noise_strength is None else gain * noise_strength
        y.add_(strength * noise.to(y.dtype))
    if bias is not None:
        y.add_(along_channels(gain * bias, 4))
    y = F.leaky_relu_(y, slope) if activation == "lrelu" else y
    y = y if clamp is None else y.clamp_(-clamp, clamp)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients of `formula.backward` in the arguments' memory formats, empty for None."""
    last = {"memory_format": torch.channels_last}
    grads = formula.backward(
        dy.contiguous(**last), y.contiguous(**last), x.contiguous(**last), *arguments, recover=True
    )
    inputs = (x, *arguments[:7])
    return tuple(
        x.new_empty(0, dtype=x.dtype if t is None else t.dtype)
        if g is None
        else g.contiguous(memory_format=memory_format(t))
        for g, t in zip(grads, inputs, strict=True)
    )
