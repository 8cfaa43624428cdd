"""The tensors of one call of modulated_conv2d on the CPU, checked and in the form kernels read.

Inside, images are channels_last. Symbols as in formula.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.bias_act.native_cuda import settings as activation_settings
from rwm_fast.ops.modulated_conv2d import winograd
from rwm_fast.ops.modulated_conv2d._geometry import Plan, Settings, plan, sizes
from rwm_fast.ops.modulated_conv2d._weights import Weights
from rwm_fast.ops.modulated_conv2d.winograd import Body

# An address does not keep its tensor: whatever `address` is called on has a name until the kernel
# returns.

OP = "modulated_conv2d"
LAST = torch.channels_last


def computes_in(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 gains only from matrix units; without them float32 is faster and closer."""
    if dtype == torch.bfloat16 and not _cpu.module().cpu_features()["amx_bf16"]:
        return torch.float32
    return dtype


class Layer(NamedTuple):
    """The tensors of one call, checked: images channels_last in one dtype, the rest in `wide`."""

    x: Tensor  # [N, I, h, w]
    weights: Weights
    styles: Tensor  # [N, K, I]
    constant: bool  # all images have one style, the same: a layer of a discriminator
    regions_in: Tensor | None  # [N, K, h, w]
    regions_out: Tensor | None  # [N, K, H, W]
    noise: Tensor | None  # [N or 1, 1, H, W]
    strength: Tensor | None  # []
    bias: Tensor | None  # [O]
    filter: Tensor | None
    settings: Settings
    passes: Plan
    chain: list[tuple[int, int]]  # sizes before the first pass and after each
    body: str  # "winograd", "product", "direct" or "convolution"

    @property
    def wide(self) -> torch.dtype:
        """The dtype of everything that is not an image."""
        return self.styles.dtype

    @property
    def channels(self) -> tuple[int, int]:
        """Output and input channels."""
        return self.weights.wide.shape[:2]

    def images(self, like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
        """An uninitialised channels_last tensor beside another."""
        shape = (self.x.shape[0], channels, *size)
        return torch.empty(shape, dtype=like.dtype, memory_format=LAST)


def body_of(
    x: Tensor,
    weight: Tensor,
    settings: Settings,
    passes: Plan,
    size: Sequence[int],
    regions: bool = False,
) -> tuple[str, Body | None]:
    """How a layer with outputs of this size is convolved (see native_cpu_bodies), and the layer as
    Winograd's algorithm takes it, if it does."""
    matrix_units = computes_in(x.dtype) == torch.bfloat16
    body = winograd.body(settings, weight) if winograd.enabled and not matrix_units else None
    if body is not None and winograd.pays(body, weight, x.shape[0], size):
        return "winograd", body
    alone = passes.before is None and not passes.after and not regions
    if tuple(weight.shape[2:]) == (1, 1) and alone and passes.padding == (0, 0):
        return "product", None
    # torch has the transposed convolutions, and matrix units for bfloat16
    doubles = passes.transposed or passes.after
    return "convolution" if doubles or matrix_units else "direct", None


def _check_kinds(needed: Sequence, *optional: Sequence) -> None:
    """Raise unless the named values are floating-point tensors; optional ones may be None."""
    for name, t in needed:
        _check.floating(OP, name, t)
    for name, t in (pair for some in optional for pair in some):
        if t is not None:
            _check.floating(OP, name, t)


def layer_of(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    regions_in: Tensor | None,
    regions_out: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    filter: Tensor | None,
    settings: Settings,
) -> Layer:
    """Check everything a kernel relies on, and bring it into the form that kernels read."""
    _check_kinds(
        (("x", x), ("weight", weight), ("styles", styles)),
        (("regions_in", regions_in), ("regions_out", regions_out), ("noise", noise)),
        (("noise_strength", strength), ("bias", bias), ("resample_filter", filter)),
    )
    flat = filter is None or filter.ndim in (1, 2)
    _check.require(flat, OP, "resample_filter must be [F] or [FH, FW]", filter)
    _check.require(x.ndim == 4 and weight.ndim == 4, OP, "x and weight must be 4-D", x)
    _check.require(weight.numel() > 0, OP, "weight must have at least one number", weight)
    _check.require(styles.ndim == 3, OP, "styles must be [N, K, I]", styles)
    dtype, wide = computes_in(x.dtype), accumulator(x.dtype)
    passes = plan(settings, weight, filter)
    chain = sizes(passes, weight, filter, *x.shape[2:])
    (n, i, h, w), o, k = x.shape, weight.shape[0], styles.shape[1]
    _check.require(min(chain[-1]) > 0, OP, "padding must leave at least one pixel", x)

    def small(name: str, t: Tensor | None, shape: Sequence[int]) -> Tensor | None:
        if t is None:
            return None
        return _cpu.dense(OP, name, t if t.dtype == wide else t.to(wide), shape, (wide,))

    order = _layout.memory_format(weight)
    kernels = _cpu.dense(OP, "weight", weight.to(wide), weight.shape, (wide,), order)
    _check.require(weight.shape[1] == i, OP, f"weight must be [O, {i}, kh, kw]", weight)
    x = _cpu.dense(OP, "x", x.to(dtype), x.shape, (dtype,), LAST)
    name, body = body_of(x, weight, settings, passes, chain[-1], regions_in is not None)
    regions_in = small("regions_in", regions_in, (n, k, h, w))
    _check.require(k == 1 or regions_in is not None, OP, "several styles need regions", styles)
    return Layer(
        x,
        Weights(weight, kernels, body, settings.flip_weight),
        small("styles", styles, (n, k, i)),
        k == 1 and styles.stride(0) == 0,
        regions_in,
        small("regions_out", regions_out, (n, k, *chain[-1])) if settings.demodulate else None,
        None
        if noise is None
        else small("noise", noise, (n if noise.shape[0] == n else 1, 1, *chain[-1])),
        small("noise_strength", strength, ()),
        small("bias", bias, (o,)),
        filter,
        settings,
        passes,
        chain,
        name,
    )


def demodulation(layer: Layer) -> Tensor:
    """d [N, K, O]."""
    (o, i), s, q = layer.channels, layer.styles, layer.weights.squares()
    d = s.new_empty(*s.shape[:2], o)
    _cpu.module().modulated_conv2d_demodulation(
        *map(address, (q, s, d)),
        layer.settings.eps, s.shape[0] * s.shape[1], o, i, DTYPE_CODES[s.dtype],
    )  # fmt: skip
    return d


class Epilogue(NamedTuple):
    """b, noise, bias and the activation, with the tensors that the addresses belong to."""

    b: Tensor | None  # [N, K, O]
    regions: Tensor | None  # [N, K, H, W]
    styles: int
    noise: Tensor | None  # [N or 1, 1, H, W], times its strength
    bias: Tensor | None
    activation: tuple[float, float, float]

    def arguments(self) -> tuple[object, ...]:
        """As the kernels take them."""
        noise = self.noise
        step = 0 if noise is None or noise.shape[0] == 1 else noise[0].numel()
        return (
            address(self.b), address(self.regions), self.styles, address(noise), step,
            address(self.bias), *self.activation,
        )  # fmt: skip


def epilogue_of(layer: Layer, d: Tensor | None) -> Epilogue:
    s, noise = layer.settings, layer.noise
    if noise is not None and layer.strength is not None:
        noise = noise * layer.strength
    slope, gain, clamp = activation_settings(s.activation, s.slope, s.gain, s.clamp)
    activation = (slope, gain, float("inf") if clamp != clamp else clamp)
    return Epilogue(d, layer.regions_out, layer.styles.shape[1], noise, layer.bias, activation)


def plain_epilogue(layer: Layer) -> Epilogue:
    return Epilogue(None, None, layer.styles.shape[1], None, None, (1.0, 1.0, float("inf")))
