"""modulated_conv2d on CUDA: torch's convolution (cuDNN) between fused passes of our own.

Forward: a ⊙ x in one pass, together with the filter before a halving; the convolution; the filter
after a doubling, demodulation, noise, bias, activation, gain and clamp in one pass. Backward the
same way round, all sums in the passes. A 1×1 layer to a few channels is one kernel (`to_rgb`).
Everything inside is channels_last. Symbols as in formula.py; kernels in csrc/upfirdn2d (filter and
epilogue) and csrc/modulated_conv2d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.bias_act.native_cuda import settings as activation_settings
from rwm_fast.ops.modulated_conv2d import native_cuda_to_rgb as to_rgb
from rwm_fast.ops.modulated_conv2d._demod import demodulation, demodulation_backward
from rwm_fast.ops.modulated_conv2d._geometry import (
    Fir,
    Plan,
    Settings,
    _convolution_arguments,
    _fir_size,
    _oriented,
    plan,
    sizes,
)
from rwm_fast.ops.upfirdn2d import native_cuda as upfirdn2d
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding
from rwm_fast.ops.upfirdn2d.native_cuda import NOTHING, Epilogue

OP = "modulated_conv2d"
LAST = torch.channels_last
_STYLES = 2  # as many styles' sums one launch keeps in registers


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _cuda.why_not()


class Layer(NamedTuple):
    """The tensors of one call, checked: images channels_last in x's dtype, the rest in `wide`."""

    x: Tensor  # [N, I, h, w]
    weight: Tensor  # [O, I, kh, kw], as it came
    styles: Tensor  # [N, K, I]
    regions_in: Tensor | None  # [N, K, h, w]
    regions_out: Tensor | None  # [N, K, H, W]
    noise: Tensor | None  # [N or 1, 1, H, W]
    strength: Tensor | None  # []
    bias: Tensor | None  # [O]
    filter: Tensor | None
    settings: Settings
    passes: Plan
    chain: list[tuple[int, int]]  # sizes before the first pass and after each

    @property
    def wide(self) -> torch.dtype:
        """The dtype of everything that is not an image."""
        return self.styles.dtype

    @property
    def activation(self) -> tuple[float, float, float]:
        """Slope, gain and clamp, as the kernels read them."""
        s = self.settings
        return activation_settings(s.activation, s.slope, s.gain, s.clamp)


def _layer(
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
    _check.floating(OP, "x", x)
    _check.require(x.ndim == 4, OP, "x must be [N, I, h, w]", x)
    _check.floating(OP, "weight", weight)
    fits = weight.ndim == 4 and weight.shape[1] == x.shape[1] and weight.device == x.device
    _check.require(fits, OP, f"weight must be [O, {x.shape[1]}, kh, kw] on {x.device}", weight)
    _check.require(styles.ndim == 3, OP, "styles must be [N, K, I]", styles)
    passes, wide = plan(settings, weight, filter), accumulator(x.dtype)
    chain = sizes(passes, weight, filter, *x.shape[2:])
    (n, i), k, o, size = x.shape[:2], styles.shape[1], weight.shape[0], chain[-1]

    def dense(name: str, t: Tensor | None, *shape: int) -> Tensor | None:
        if t is None:
            return None
        return _cuda.dense(OP, name, t.to(wide), x.device, shape, (wide,))

    maps = 1 if noise is None else noise.shape[0]
    _check.require(maps in (1, n), OP, "noise must be [N or 1, 1, H, W]", noise)
    return Layer(
        _cuda.dense(OP, "x", x, x.device, x.shape, (x.dtype,), LAST),
        weight,
        dense("styles", styles, n, k, i),
        dense("regions_in", regions_in, n, k, *x.shape[2:]),
        dense("regions_out", regions_out, n, k, *size),
        dense("noise", noise, maps, 1, *size),
        dense("noise_strength", strength),
        dense("bias", bias, o),
        filter,
        settings,
        passes,
        chain,
    )


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)


def _scaled(x: Tensor, epilogue: Epilogue) -> Tensor:
    """The epilogue alone."""
    y = _empty(x, *x.shape)
    n, c, h, w = x.shape
    _cuda.module().upfirdn2d_epilogue(
        *map(address, (x, y)),
        *(n, c, h, w),
        *epilogue.arguments(),
        DTYPE_CODES[x.dtype],
        *_cuda.place(x),
    )
    return y


def _fir(
    x: Tensor, filter: Tensor | None, fir: Fir, flip: bool = False, epilogue: Epilogue = NOTHING
) -> Tensor:
    """One pass of upfirdn2d with its epilogue; after an unusual filter that is a second pass."""
    filter = filter if fir.filtered else None
    up, down = (fir.up,) * 2, (fir.down,) * 2
    y = _empty(x, *x.shape[:2], *_fir_size(fir, filter, x.shape[2:]))
    taps = upfirdn2d.correlation(x, filter, flip, fir.gain)
    fused = upfirdn2d.serves(taps, up, down)
    upfirdn2d.run(x, y, LAST, taps, up, down, fir.padding, epilogue if fused else NOTHING)
    return y if fused or epilogue is NOTHING else _scaled(y, epilogue)


def _fir_adjoint(dy: Tensor, filter: Tensor | None, fir: Fir, size: Sequence[int]) -> Tensor:
    """The transpose of `_fir` on images of the given height and width."""
    filter = filter if fir.filtered else None
    up, down = (fir.up,) * 2, (fir.down,) * 2
    padding = adjoint_padding(size, dy.shape[2:], filter, up, down, fir.padding)
    return _fir(dy, filter, Fir(fir.down, fir.up, padding, fir.filtered, fir.gain), flip=True)


def _convolution_input(layer: Layer) -> Tensor:
    """The filter before a halving on a ⊙ x. With one style a goes after the filter, in one pass."""
    scale, before = Epilogue(scale=layer.styles, regions=layer.regions_in), layer.passes.before
    if before is None:
        return _scaled(layer.x, scale)
    if layer.regions_in is None:
        return _fir(layer.x, layer.filter, before, epilogue=scale)
    return _fir(_scaled(layer.x, scale), layer.filter, before)


def _convolved(layer: Layer, z: Tensor, epilogue: Epilogue) -> Tensor:
    """The convolution, the filters after it and the epilogue, in the last of them if there are."""
    w = _oriented(layer.weight.to(z.dtype), layer.passes, layer.settings.flip_weight)
    w = w.contiguous(memory_format=LAST)
    u = torch.ops.aten.convolution(z, w, None, *_convolution_arguments(layer.passes))
    u = u.contiguous(memory_format=LAST)
    for i, fir in enumerate(layer.passes.after, start=1):
        last = i == len(layer.passes.after)
        u = _fir(u, layer.filter, fir, epilogue=epilogue if last else NOTHING)
    return u if layer.passes.after or epilogue is NOTHING else _scaled(u, epilogue)


def forward(x: Tensor, *arguments: object) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped, in x's memory format."""
    layer = _layer(x, *arguments)
    size = (x.shape[0], layer.weight.shape[0], *layer.chain[-1])
    if not x.shape[0]:
        return _layout.empty(x, size)
    settings, order = layer.settings, _layout.memory_format(x)
    if to_rgb.serves(layer):
        return to_rgb.forward(layer).contiguous(memory_format=order)
    active = settings.activation != "linear" or settings.gain != 1 or settings.clamp is not None
    epilogue = Epilogue(
        _demodulation(layer) if settings.demodulate else None,
        layer.regions_out,
        layer.noise,
        layer.strength,
        layer.bias,
        active,
        layer.activation,
    )
    y = _convolved(layer, _convolution_input(layer), epilogue)
    return y.contiguous(memory_format=order)


def _demodulation(layer: Layer) -> Tensor:
    return demodulation(layer.weight, layer.styles, layer.settings.eps).contiguous()  # [N, K, O]


class Sums(NamedTuple):
    """What `_backward_pass` gives; None where not asked."""

    out: Tensor | None  # scale ⊙ dv, like g
    styles: Tensor | None  # [N, K, C] Σ_p r_k·q
    bias: Tensor | None  # [C] Σ_np dv
    pixels: Tensor | None  # [N, 1, H, W] Σ_c dv
    strength: Tensor | None  # [] Σ noise·dv
    regions: Tensor | None  # [N, K, H, W] Σ_c scale_k·q


def _backward_pass(
    g: Tensor,
    scale: Tensor | None,
    regions: Tensor | None,
    *,
    y: Tensor | None = None,
    u: Tensor | None = None,
    recover: bool = False,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    activation: tuple[float, float, float] = NOTHING.settings,
    want: Sequence[str] = (),
) -> Sums:
    """dv = act'(y)·g, q = dv·u, their product with the scale and their sums: csrc's Backward."""
    (n, c, h, w), wide, device = g.shape, accumulator(g.dtype), g.device
    styles = 1 if scale is None else scale.shape[1]
    width = 1 if g.dtype == torch.float64 else 16 // g.element_size()
    images = [t for t in (g, y, u, scale, bias) if t is not None]
    aligned = c % width == 0 and not any(t.data_ptr() % 16 for t in images)
    runs = -(-c // (32 * (width if aligned else 1)))
    chunks = min(-(-h * w // 64), -(-1024 // n))
    at_once = min(styles, _STYLES) if "styles" in want else 1

    def buffer(name: str, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=wide, device=device) if name in want else None

    out = torch.empty_like(g, memory_format=LAST) if "out" in want else None
    pixels = buffer("pixels", runs, n, h, w)
    region_sums = buffer("regions", runs, n, styles, h, w)
    strength_sums = buffer("strength", runs * n * chunks, 1)
    style_sums, bias_sum = [], None
    for first in range(0, styles if "styles" in want else 1, at_once):
        summed = "styles" in want or (first == 0 and "bias" in want)
        partials = None
        if summed:
            partials = torch.empty((n, chunks, at_once + 1, c), dtype=wide, device=device)
        once = (out, partials, pixels, region_sums, strength_sums)
        later = (None, partials, None, None, None)
        _cuda.module().modulated_conv2d_backward(
            *map(address, (g, y, u, scale, regions, noise, strength, bias)),
            *map(address, later if first else once),
            *(n, h * w, c, chunks, styles, first, at_once),
            0 if noise is None or noise.shape[0] == 1 else h * w,
            recover,
            aligned,
            *activation,
            DTYPE_CODES[g.dtype],
            *_cuda.place(g),
        )
        if summed:
            sums = _sum(partials.view(n, chunks, -1)).view(n, at_once + 1, c)
            style_sums.append(sums[:, : min(at_once, styles - first)])
            bias_sum = sums[:, -1] if first == 0 else bias_sum
    return Sums(
        out,
        torch.cat(style_sums, 1) if "styles" in want else None,
        _sum(bias_sum.contiguous()[None])[0] if "bias" in want else None,
        None if pixels is None else _sum(pixels.view(1, runs, -1)).view(n, 1, h, w),
        None if strength_sums is None else _sum(strength_sums[None]).view(()),
        None if region_sums is None else _sum(region_sums.view(1, runs, -1)).view(n, styles, h, w),
    )


def _sum(partials: Tensor) -> Tensor:
    """Over the rows of [groups, rows, columns], in index order."""
    groups, rows, columns = partials.shape
    if rows == 1:
        return partials[:, 0]
    out = partials.new_empty(groups, columns)
    _cuda.module().modulated_conv2d_sum(
        *map(address, (partials, out)),
        *partials.shape,
        DTYPE_CODES[partials.dtype],
        *_cuda.place(partials),
    )
    return out


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients of `formula.backward`, in the arguments' memory formats, empty for None."""
    *arguments, needs = arguments
    layer = _layer(x, *arguments)
    inputs = (x, *arguments[:7])
    if not x.shape[0]:
        grads = [
            torch.zeros_like(t) if need else None for t, need in zip(inputs, needs, strict=True)
        ]
    else:
        shape = (x.shape[0], layer.weight.shape[0], *layer.chain[-1])
        dy = _cuda.dense(OP, "dy", dy, x.device, shape, (x.dtype,), LAST)
        y = _cuda.dense(OP, "y", y, x.device, shape, (x.dtype,), LAST)
        served = to_rgb.serves(layer) and to_rgb.serves_backward(layer, needs)
        grads = to_rgb.backward(layer, dy, y, needs) if served else _backward(layer, dy, y, needs)
    return tuple(
        x.new_empty(0, dtype=x.dtype if t is None else t.dtype)
        if not need
        else g.to(t.dtype).contiguous(memory_format=_layout.memory_format(t))
        for g, t, need in zip(grads, inputs, needs, strict=True)
    )


def _backward(
    layer: Layer, dy: Tensor, y: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    need_x, need_w, need_s, need_r_in, need_r_out, need_noise, need_strength, need_bias = needs
    need_d = layer.settings.demodulate and (need_w or need_s or need_r_out)
    need_z = need_x or need_s or need_r_in
    # see formula._recovers for when u is read back from y
    recover = need_d and layer.x.dtype == torch.float32 and not need_r_out
    z = _convolution_input(layer) if need_w or need_z or (need_d and not recover) else None
    u = _convolved(layer, z, NOTHING) if need_d and not recover else None
    d = _demodulation(layer) if layer.settings.demodulate else None
    wanted = {
        "out": need_z or need_w,
        "styles": need_d,
        "bias": need_bias,
        "pixels": need_noise,
        "strength": need_strength,
        "regions": need_d and need_r_out,
    }
    after = _backward_pass(
        dy, d, layer.regions_out,
        y=y, u=u, recover=recover, noise=layer.noise, strength=layer.strength, bias=layer.bias,
        activation=layer.activation, want=[name for name, want in wanted.items() if want],
    )  # fmt: skip
    dnoise = _noise_gradient(layer, after.pixels) if need_noise else None
    dw = ds = 0
    if need_d:
        ds, dw = demodulation_backward(after.styles, d, layer.weight, layer.styles)
    dz, dw_conv = _convolution_backward(layer, after.out, z, need_z, need_w)
    before = Sums(*[None] * 6)
    if need_z:
        wanted = {"out": need_x, "styles": need_s, "regions": need_r_in}
        before = _backward_pass(
            dz, layer.styles, layer.regions_in,
            u=layer.x, want=[name for name, want in wanted.items() if want],
        )  # fmt: skip
    return (
        before.out,
        dw + dw_conv if need_w else None,
        ds + before.styles if need_s else None,
        before.regions,
        after.regions,
        dnoise,
        after.strength,
        after.bias,
    )


def _noise_gradient(layer: Layer, pixels: Tensor) -> Tensor:
    """strength·Σ_o dv, summed over the images that share the noise."""
    if layer.noise.shape[0] != pixels.shape[0]:
        n, _, h, w = pixels.shape
        pixels = _sum(pixels.view(1, n, -1)).view(1, 1, h, w)
    return pixels if layer.strength is None else layer.strength * pixels


def _convolution_backward(
    layer: Layer, du: Tensor | None, z: Tensor | None, need_z: bool, need_w: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The adjoint of the filters and the convolution: gradients of a ⊙ x and of the weight."""
    if not need_z and not need_w:
        return None, None
    passes, chain, flip = layer.passes, layer.chain, layer.settings.flip_weight
    for i, fir in reversed(tuple(enumerate(passes.after, start=-len(passes.after)))):
        du = _fir_adjoint(du, layer.filter, fir, chain[i - 1])
    weight = _oriented(layer.weight.to(z.dtype), passes, flip).contiguous(memory_format=LAST)
    dz, dw, _ = torch.ops.aten.convolution_backward(
        du, z, weight, None, *_convolution_arguments(passes), [need_z, need_w, False]
    )
    if need_z:
        dz = dz.contiguous(memory_format=LAST)
        if passes.before is not None:
            dz = _fir_adjoint(dz, layer.filter, passes.before, chain[0])
    return dz if need_z else None, _oriented(dw, passes, flip) if need_w else None
