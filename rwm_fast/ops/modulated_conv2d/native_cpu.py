"""modulated_conv2d on the CPU: fused passes in C++ around, or with, the convolution.

float32 and float64. bfloat16 is computed in float32, unless the CPU multiplies bfloat16 matrices:
then it runs on torch's convolution. `native_cpu_layer` checks the arguments, `native_cpu_bodies`
convolves. Symbols as in formula.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _layout
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d import reference
from rwm_fast.ops.modulated_conv2d.native_cpu_bodies import (
    Gradients,
    Needs,
    by_convolution,
    by_direct,
    by_product,
    by_winograd,
    convolved,
)
from rwm_fast.ops.modulated_conv2d.native_cpu_layer import (
    LAST,
    OP,
    Layer,
    demodulation,
    epilogue_of,
    layer_of,
    plain_epilogue,
)


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Every layout and all dtypes but one."""
    if tensors[0].dtype == torch.float16:
        return "CPUs do not compute in float16"
    return _cpu.why_not()


def forward(x: Tensor, *arguments: object) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped, in x's memory format."""
    layer = layer_of(x, *arguments)
    if not x.numel():
        return _layout.empty(x, (x.shape[0], layer.channels[0], *layer.chain[-1]))
    d = demodulation(layer) if layer.settings.demodulate else None
    y = convolved(layer, epilogue_of(layer, d))
    return y.to(x.dtype).contiguous(memory_format=_layout.memory_format(x))


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients that are needed, in the arguments' memory formats; the others are empty."""
    *tensors, settings, needs = arguments
    _check.floating(OP, "dy", dy)
    _check.floating(OP, "y", y)
    inputs = (x, *tensors[:7])
    there = [t is not None for t in inputs]
    there[6] = there[6] and there[5]  # the noise's strength
    asked = len(needs) == 8 and not any(n and not t for n, t in zip(needs, there, strict=True))
    _check.require(asked, OP, "gradients are of arguments that are there", str(needs))
    if needs[3] or needs[4]:  # regions are not learned: no kernels for their gradients
        return reference.backward(dy, y, x, *arguments)
    layer = layer_of(x, *tensors, settings)
    if not x.numel():
        grads = [None if t is None else torch.zeros_like(t) for t in inputs]
    else:
        grads = _gradients(layer, dy, y, x.dtype, needs)
    return tuple(
        _like(g, t) if need else (x if t is None else t).new_empty(0)
        for g, t, need in zip(grads, inputs, needs, strict=True)
    )


def _like(g: Tensor, t: Tensor) -> Tensor:
    """A gradient in its argument's dtype, shape and memory format."""
    if g.dtype != t.dtype or g.shape != t.shape:
        g = g.to(t.dtype).reshape(t.shape)
    return g.contiguous(memory_format=_layout.memory_format(t))


def _gradients(
    layer: Layer, dy: Tensor, y: Tensor, given: torch.dtype, needs: Sequence[bool]
) -> list[Tensor | None]:
    need_x, need_w, need_s, _, _, need_noise, need_strength, need_bias = needs
    need_noise = need_noise or need_strength
    demodulate = layer.settings.demodulate
    shape = (layer.x.shape[0], layer.channels[0], *layer.chain[-1])
    dtypes = (layer.x.dtype,)
    dy = _cpu.dense(OP, "dy", dy.to(layer.x.dtype), shape, dtypes, LAST)
    y = _cpu.dense(OP, "y", y.to(layer.x.dtype), shape, dtypes, LAST)
    d = demodulation(layer) if demodulate else None
    need_d = demodulate and (need_w or need_s)
    # u is read back from y where y is precise enough: see formula._recovers
    u = None if not need_d or given == torch.float32 else convolved(layer, plain_epilogue(layer))
    sums = _epilogue_backward(layer, dy, y, u, d, (need_x or need_w or need_s, need_d, need_noise))
    dx = dw = ds = dnoise = dstrength = scale = None
    if need_d:
        scale = torch.empty(layer.channels, dtype=layer.wide) if need_w else None
    if need_x or need_s or need_w:
        dx, ds, dw = _convolution_gradients(layer, sums, d, scale, (need_x, need_s, need_w))
    if need_noise:
        dnoise, dstrength = _noise_gradients(layer, sums.pixels)
    return [dx, dw, ds, None, None, dnoise, dstrength, sums.bias]


class Sums(NamedTuple):
    """What one pass over dy and y gives; None where not asked."""

    du: Tensor | None  # [N, O, H, W], b·dv
    bias: Tensor  # [O], Σ_np dv
    d: Tensor | None  # [N, K, O], Σ_p r_k·dv·u
    pixels: Tensor | None  # [N, 1, H, W], Σ_o dv


def _epilogue_backward(
    layer: Layer,
    dy: Tensor,
    y: Tensor,
    u: Tensor | None,
    d: Tensor | None,
    asked: tuple[bool, bool, bool],
) -> Sums:
    n, o, h, w = y.shape
    new = layer.styles.new_empty
    sums = Sums(
        torch.empty_like(dy) if asked[0] else None,
        new(o),
        new(n, layer.styles.shape[1], o) if asked[1] else None,
        new(n, 1, h, w) if asked[2] else None,
    )
    epilogue = epilogue_of(layer, d)  # held: its tensors must outlive the call
    _cpu.module().modulated_conv2d_epilogue_backward(
        *map(address, (dy, y, u, *sums)), *epilogue.arguments(),
        n, h * w, o, DTYPE_CODES[y.dtype],
    )  # fmt: skip
    return sums


_BY = {
    "winograd": by_winograd,
    "product": by_product,
    "direct": by_direct,
    "convolution": by_convolution,
}


def _convolution_gradients(
    layer: Layer, sums: Sums, d: Tensor | None, scale: Tensor | None, needs: Needs
) -> Gradients:
    """dx, ds and dW, with the part of the demodulation in the last two."""
    by = _BY[layer.body]
    if sums.d is None:
        return by(layer, sums.du, None, needs)
    demod = torch.zeros_like(layer.styles) if needs[1] else None
    (o, i), s, q = layer.channels, layer.styles, layer.weights.squares()
    _cpu.module().modulated_conv2d_demodulation_backward(
        *map(address, (q, s, d, sums.d, demod, scale)),
        s.shape[0] * s.shape[1], o, i, DTYPE_CODES[s.dtype],
    )  # fmt: skip
    dx, ds, dw = by(layer, sums.du, scale, needs)
    return dx, ds if ds is None else ds.add_(demod), dw


def _noise_gradients(layer: Layer, t: Tensor) -> tuple[Tensor, Tensor]:
    """dnoise and dstrength from t = Σ_o dv."""
    t = t if layer.noise.shape[0] == t.shape[0] else t.sum(0, keepdim=True)
    dstrength = (t * layer.noise).sum()
    return t if layer.strength is None else layer.strength * t, dstrength
