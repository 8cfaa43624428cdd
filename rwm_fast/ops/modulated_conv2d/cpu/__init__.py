"""modulated_conv2d on the CPU: fused passes in C++ around, or with, the convolution.

float32 and float64; bfloat16 is computed in float32, but on matrix units (`_records`). What
convolves is a body, a module with

    forward(layer, epilogue) -> y        gradients(layer, du, scale, needs) -> Gradients

- `winograd`: 3×3, also doubling, by Winograd's algorithm with everything else inside it;
- `product`: 1×1 with one style as a matrix product with the weights of each image, W·s;
- `direct`: other convolutions, halvings too, by definition;
- `torch_conv`: doublings of other kernels, and bfloat16 on matrix units, by torch's convolution.

An address does not keep its tensor: whatever one is taken of has a name until the kernel returns.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import LAST, Epilogue, addresses, epilogue_record, memory_format
from rwm_fast.ops.modulated_conv2d.cpu import direct, product, torch_conv, winograd
from rwm_fast.ops.modulated_conv2d.cpu.operands import Body, Records, Shape, Weights
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs, Sums

RECOVERS = (torch.float32,)
GRADIENTS_OF_REGIONS = False


def supports(layer: Layer) -> str | None:
    """Every layout and all dtypes but one."""
    if layer.dtype == torch.float16:
        return "CPUs do not compute in float16"
    return _extension.why_not_cpu()


def serves_plain(dtype: torch.dtype) -> bool:
    """Where it is convolved in C++. Such layers do not enlarge."""
    return dtype != torch.bfloat16 or not matrix_units()


@functools.cache
def matrix_units() -> bool:
    """Whether the CPU multiplies bfloat16 matrices (AMX)."""
    return _extension.cpu().cpu_features()["amx_bf16"]


@functools.lru_cache(1024)
def _records(shape: Shape, units: bool, by_winograd: bool) -> Records:
    """Who convolves layers of a shape, and in which dtype.

    bfloat16 gains only from matrix units; without them float32 is faster and closer. With them too
    where Winograd's algorithm serves: 64 channels at 64 pixels took 13.4 ms in float32 and 13.9 in
    bfloat16 on matrix units, and such layers lost to torch.compile on three of ten rows.
    """
    by: ModuleType
    plan, p = None, shape.geometry.passes
    narrow = shape.dtype == torch.bfloat16
    wide = shape._replace(dtype=torch.float32) if narrow else shape
    alone = p.before is None and not p.after and not shape.regions
    if by_winograd and winograd.serves(wide):
        by, shape, plan = winograd, wide, winograd.plan(wide)
    elif narrow and units:
        by = torch_conv
    elif tuple(shape.weight[2:]) == (1, 1) and alone and p.padding == (0, 0):
        by, shape = product, wide
    elif p.transposed or p.after:
        by, shape = torch_conv, wide
    else:
        by, shape, plan = direct, wide, direct.plan(wide)
    ends = shape.geometry.chain[0], shape.geometry.chain[-1]
    images = (shape.images(c, s) for c, s in zip(shape.weight[1::-1], ends, strict=False))
    return Records(by, shape.dtype, plan, shape.kernels(), *images)


def prepare(layer: Layer) -> None:
    """Choose the body, and give x the dtype in which that computes."""
    weight, dtype = layer.weight, layer.dtype
    order = memory_format(weight)
    flip, regions = layer.settings.flip_weight, layer.regions_in is not None
    shape = Shape(layer.x.shape, weight.shape, layer.geometry, flip, regions, order is LAST, dtype)
    units = dtype == torch.bfloat16 and matrix_units()
    records = _records(shape, units, winograd.enabled)
    _settle(layer, records, Weights(weight, order, layer.wide, records.kernels), shape)


def _settle(layer: Layer, records: Records, weights: Weights, shape: Shape) -> None:
    x, dtype = layer.x, records.dtype
    x = x if x.dtype == dtype else x.to(dtype)
    if records.by is winograd and not winograd.keeps_to_bound(layer, weights, records.input, x):
        records = _records(shape, shape.dtype == torch.bfloat16 and matrix_units(), False)
        x = layer.x.to(records.dtype)
    layer.body, layer.x = Body(records, weights, shape), x


def demodulation(layer: Layer) -> Tensor:
    """d [N, K, O]."""
    s, q = layer.styles, layer.body.weights.squares()
    n, k, _ = s.shape
    d = s.new_empty(n, k, q.shape[0])
    _extension.cpu().modulated_conv2d_demodulation(
        layer.body.records.kernels, *addresses(q, s, d), n * k, layer.settings.eps
    )
    return d


def demodulation_backward(
    layer: Layer, dd: Tensor, d: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """ds and scale, those that are needed."""
    s, q = layer.styles, layer.body.weights.squares()
    ds = torch.zeros_like(s) if needs.styles else None  # it is added to
    scale = torch.empty_like(q) if needs.weight else None
    _extension.cpu().modulated_conv2d_demodulation_backward(
        layer.body.records.kernels, *addresses(q, s, d, dd, ds, scale), s.shape[0] * s.shape[1]
    )
    return ds, scale


def convolve(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution of a·x and the epilogue, channels_last."""
    return layer.body.records.by.forward(layer, epilogue)


def unwind(
    layer: Layer, dy: Tensor, y: Tensor, u: Tensor | None, epilogue: Epilogue, want: Sums
) -> Sums:
    """One pass over dy and y."""
    n, o, h, w = y.shape
    new = layer.styles.new_empty
    sums = Sums(
        torch.empty_like(dy) if want.du else None,
        new(n, layer.styles.shape[1], o) if want.scale else None,
        new(o),
        new(n, 1, h, w) if want.pixels or want.strength else None,
    )
    du, scale, bias, pixels, *_ = sums
    _extension.cpu().modulated_conv2d_epilogue_backward(
        layer.body.records.output,
        *addresses(dy, y, u, du, bias, scale, pixels),
        epilogue_record(_extension.cpu(), epilogue),
    )
    return sums


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """Back through filters, convolution and a."""
    records, weights, shape = layer.body
    if records.by is winograd and not winograd.keeps_to_bound(layer, weights, records.output, du):
        wide = shape._replace(dtype=du.dtype)  # what du is already
        layer.body = layer.body._replace(records=_records(wide, False, False))
    return layer.body.records.by.gradients(layer, du, scale, needs)


# ---- the second derivative (`second.py`): float32 and float64, one style an image


def squares(layer: Layer) -> Tensor:
    """Q [O, I]."""
    return layer.body.weights.squares()


def beside(layer: Layer, x: Tensor, styles: Tensor) -> Layer:
    """Another batch and its styles through the same weights."""
    other, (_, weights, shape) = replace(layer, x=x, styles=styles), layer.body
    shape = shape._replace(x=x.shape)
    _settle(other, _records(shape, False, winograd.enabled), weights, shape)
    return other


def combine(layer: Layer, p: Tensor | None, t: Tensor, both: bool) -> Tensor:
    """e = a·p + t·x, and a·x behind it."""
    x = layer.x
    n = x.shape[0]
    e = torch.empty(((1 + both) * n, *x.shape[1:]), dtype=x.dtype, memory_format=LAST)
    z = e[n:] if both else None
    _extension.cpu().modulated_conv2d_combine(
        layer.body.records.input, *addresses(p, x, layer.styles, t, e, z)
    )
    return e


def unwind_twice(
    layer: Layer, images: tuple, h: Tensor | None, epilogue: Epilogue, need: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """One pass over dy, y, f and u."""
    dy, y, f, u = images
    n, o, *size = y.shape
    du = torch.empty((n if h is None else 2 * n, o, *size), dtype=y.dtype, memory_format=LAST)
    d_dy = torch.empty_like(dy) if need else None
    sums = layer.styles.new_empty(n, 2, o)
    _extension.cpu().modulated_conv2d_twice(
        layer.body.records.output,
        *addresses(dy, y, u, f, h, d_dy, du, sums),
        epilogue_record(_extension.cpu(), epilogue),
    )
    return d_dy, du, sums


def unscale(layer: Layer, dx: Tensor, p: Tensor | None, ratio: Tensor, to: Tensor | None) -> Tensor:
    """to += ratio·dx; Σ_p p·dx [N, I]."""
    sums = torch.empty_like(ratio[:, 0])
    _extension.cpu().modulated_conv2d_unscale(
        layer.body.records.input, *addresses(dx, p, ratio, to, sums)
    )
    return sums
