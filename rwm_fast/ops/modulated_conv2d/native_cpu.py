"""modulated_conv2d on the CPU: fused passes in C++ around, or with, the convolution.

Three bodies for the convolution itself:

- 3×3, also doubling and halving: Winograd in C++ with everything else inside it (`winograd`);
- 1×1 with one style: a matrix product with the weights of each image, W·s;
- the rest: torch's convolution, filters and scales in passes of their own.

float32 and float64. bfloat16 is computed in float32, unless the CPU multiplies bfloat16 matrices:
then it runs on torch's convolution. Inside, images are channels_last. Symbols as in formula.py.
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
from rwm_fast.ops.modulated_conv2d import reference, winograd
from rwm_fast.ops.modulated_conv2d._geometry import (
    Fir,
    Plan,
    Settings,
    _convolution_arguments,
    _oriented,
    plan,
    sizes,
)
from rwm_fast.ops.modulated_conv2d.winograd import Fold, Weights
from rwm_fast.ops.upfirdn2d import native as upfirdn2d
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding

# An address does not keep its tensor: whatever `address` is called on has a name until the kernel
# returns.

OP = "modulated_conv2d"
LAST = torch.channels_last


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Every layout and all dtypes but one."""
    if tensors[0].dtype == torch.float16:
        return "CPUs do not compute in float16"
    return _cpu.why_not()


def _computes_in(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 gains only from matrix units; without them float32 is faster and closer."""
    if dtype == torch.bfloat16 and not _cpu.module().cpu_features()["amx_bf16"]:
        return torch.float32
    return dtype


class Layer(NamedTuple):
    """The tensors of one call, checked: images channels_last in one dtype, the rest in `wide`."""

    x: Tensor  # [N, I, h, w]
    weights: Weights
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
    body: str  # "winograd", "product" or "convolution"

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


def folded(
    x: Tensor,
    weight: Tensor,
    filter: Tensor | None,
    settings: Settings,
    size: Sequence[int] | None = None,
) -> Fold | None:
    """The layer as Winograd's algorithm takes it, or None where that does not pay."""
    if not winograd.enabled or _computes_in(x.dtype) == torch.bfloat16:
        return None
    fold = winograd.fold(settings, weight, filter)
    if fold is None:
        return None
    if size is None:
        size = sizes(plan(settings, weight, filter), weight, filter, *x.shape[2:])[-1]
    return fold if winograd.pays(fold, weight, x.shape[0], size) else None


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
    """Check everything a kernel relies on, and bring it into the form that kernels read."""
    _check.floating(OP, "x", x)
    _check.require(x.ndim == 4 and weight.ndim == 4, OP, "x and weight must be 4-D", x)
    _check.require(styles.ndim == 3, OP, "styles must be [N, K, I]", styles)
    dtype, wide = _computes_in(x.dtype), accumulator(x.dtype)
    passes = plan(settings, weight, filter)
    chain = sizes(passes, weight, filter, *x.shape[2:])
    (n, i, h, w), o, k = x.shape, weight.shape[0], styles.shape[1]
    _check.require(min(chain[-1]) > 0, OP, "padding must leave at least one pixel", x)

    def small(name: str, t: Tensor | None, shape: Sequence[int]) -> Tensor | None:
        if t is None:
            return None
        return _cpu.dense(OP, name, t if t.dtype == wide else t.to(wide), shape, (wide,))

    x = _cpu.dense(OP, "x", x.to(dtype), x.shape, (dtype,), LAST)
    kernels = small("weight", weight, (o, i, *weight.shape[2:]))
    fold = folded(x, weight, filter, settings, chain[-1])
    regions_in = small("regions_in", regions_in, (n, k, h, w))
    _check.require(k == 1 or regions_in is not None, OP, "several styles need regions", styles)
    plain = not passes.after and passes.before is None and passes.padding == (0, 0)
    pointwise = tuple(weight.shape[2:]) == (1, 1) and plain and regions_in is None
    return Layer(
        x,
        Weights(weight, kernels, fold, not settings.flip_weight),
        small("styles", styles, (n, k, i)),
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
        "winograd" if fold else "product" if pointwise else "convolution",
    )


def _demodulation(layer: Layer) -> Tensor:
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


def _epilogue(layer: Layer, d: Tensor | None) -> Epilogue:
    s, noise = layer.settings, layer.noise
    if noise is not None and layer.strength is not None:
        noise = noise * layer.strength
    slope, gain, clamp = activation_settings(s.activation, s.slope, s.gain, s.clamp)
    activation = (slope, gain, float("inf") if clamp != clamp else clamp)
    return Epilogue(d, layer.regions_out, layer.styles.shape[1], noise, layer.bias, activation)


def _plain(layer: Layer) -> Epilogue:
    return Epilogue(None, None, layer.styles.shape[1], None, None, (1.0, 1.0, float("inf")))


def forward(x: Tensor, *arguments: object) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped, in x's memory format."""
    layer = _layer(x, *arguments)
    if not x.numel():
        return _layout.empty(x, (x.shape[0], layer.channels[0], *layer.chain[-1]))
    d = _demodulation(layer) if layer.settings.demodulate else None
    y = _convolved(layer, _epilogue(layer, d))
    return y.to(x.dtype).contiguous(memory_format=_layout.memory_format(x))


def _convolved(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution of a·x and the epilogue, channels_last."""
    if layer.body == "winograd":
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
        winograd.forward(
            layer.x, y, layer.weights, layer.styles, layer.regions_in, epilogue.arguments()
        )
        return y
    if layer.body == "product":
        u = torch.bmm(_rows(layer.x), _weights_of_images(layer).mT)  # [N, HW, O]
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
    else:
        u = y = _convolution(layer, _scaled(layer))
    _cpu.module().modulated_conv2d_epilogue(
        address(u), address(y), *epilogue.arguments(),
        y.shape[0], y.shape[2] * y.shape[3], y.shape[1], DTYPE_CODES[y.dtype],
    )  # fmt: skip
    return y


def _rows(x: Tensor) -> Tensor:
    """A channels_last tensor as [N, HW, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _weights_of_images(layer: Layer) -> Tensor:
    """W·s [N, O, I] of a 1×1 layer with one style, in the images' dtype."""
    return (layer.weights.wide[:, :, 0, 0] * layer.styles).to(layer.x.dtype)


def _scaled(layer: Layer) -> Tensor:
    """z = a·x."""
    z = torch.empty_like(layer.x)
    n, i, h, w = z.shape
    _cpu.module().modulated_conv2d_scale(
        *map(address, (layer.x, z, layer.styles, layer.regions_in)), layer.styles.shape[1],
        n, h * w, i, DTYPE_CODES[z.dtype],
    )  # fmt: skip
    return z


def _fir(x: Tensor, filter: Tensor | None, fir: Fir, flip: bool = False) -> Tensor:
    up, down = (fir.up,) * 2, (fir.down,) * 2
    filter = filter if fir.filtered else None
    y = upfirdn2d.forward(x, filter, up, down, fir.padding, flip, fir.gain)
    return y.contiguous(memory_format=LAST)


def _fir_adjoint(dy: Tensor, filter: Tensor | None, fir: Fir, size: Sequence[int]) -> Tensor:
    """The transpose of `_fir` on images of the given height and width."""
    up, down = (fir.up,) * 2, (fir.down,) * 2
    taps = filter if fir.filtered else None
    padding = adjoint_padding(size, dy.shape[2:], taps, up, down, fir.padding)
    return _fir(dy, filter, Fir(fir.down, fir.up, padding, fir.filtered, fir.gain), flip=True)


def _oriented_weight(layer: Layer) -> Tensor:
    w = layer.weights.wide.to(layer.x.dtype)
    w = _oriented(w, layer.passes, layer.settings.flip_weight)
    return w.contiguous(memory_format=LAST)


def _convolution(layer: Layer, z: Tensor) -> Tensor:
    """u by torch's convolution, with the filters before and after it; channels_last."""
    p = layer.passes
    z = z if p.before is None else _fir(z, layer.filter, p.before)
    w = _oriented_weight(layer)
    u = torch.ops.aten.convolution(z, w, None, *_convolution_arguments(p))
    u = u.contiguous(memory_format=LAST)
    for fir in p.after:
        u = _fir(u, layer.filter, fir)
    return u


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients that are needed, in the arguments' memory formats; the others are empty."""
    *tensors, settings, needs = arguments
    inputs = (x, *tensors[:7])
    if needs[3] or needs[4]:  # regions are not learned: no kernels for their gradients
        return reference.backward(dy, y, x, *arguments)
    layer = _layer(x, *tensors, settings)
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
    d = _demodulation(layer) if demodulate else None
    need_d = demodulate and (need_w or need_s)
    # u is read back from y where y is precise enough: see formula._recovers
    u = None if not need_d or given == torch.float32 else _convolved(layer, _plain(layer))
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
    epilogue = _epilogue(layer, d)  # held: its tensors must outlive the call
    _cpu.module().modulated_conv2d_epilogue_backward(
        *map(address, (dy, y, u, *sums)), *epilogue.arguments(),
        n, h * w, o, DTYPE_CODES[y.dtype],
    )  # fmt: skip
    return sums


def _convolution_gradients(
    layer: Layer,
    sums: Sums,
    d: Tensor | None,
    scale: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, ds and dW, with the part of the demodulation in the last two."""
    need_x, need_s, need_w = needs
    ds = torch.empty_like(layer.styles) if need_s else None
    dx = torch.empty_like(layer.x) if need_x else None
    body = {"winograd": _by_winograd, "product": _by_product, "convolution": _by_convolution}
    by = body[layer.body]
    if not sums.du.numel():
        raise AssertionError("an empty batch is served before")
    if sums.d is None:
        return dx, ds, by(layer, sums.du, dx, ds, None, need_w)
    demod = ds if ds is None else torch.zeros_like(ds)
    (o, i), s, q = layer.channels, layer.styles, layer.weights.squares()
    _cpu.module().modulated_conv2d_demodulation_backward(
        *map(address, (q, s, d, sums.d, demod, scale)),
        s.shape[0] * s.shape[1], o, i, DTYPE_CODES[s.dtype],
    )  # fmt: skip
    dw = by(layer, sums.du, dx, ds, scale, need_w)
    return dx, ds if ds is None else ds.add_(demod), dw


def _by_winograd(layer, du, dx, ds, scale, need_w) -> Tensor | None:
    common = (layer.weights, layer.styles, layer.regions_in)
    if dx is not None or ds is not None:
        winograd.input_gradient(du, layer.x, *common, dx, ds)
    return winograd.weight_gradient(layer.x, du, *common, scale) if need_w else None


def _by_product(layer, du, dx, ds, scale, need_w) -> Tensor | None:
    g, x = _rows(du), _rows(layer.x)  # [N, HW, O], [N, HW, I]
    if dx is not None:
        torch.bmm(g, _weights_of_images(layer), out=_rows(dx))
    if ds is None and not need_w:
        return None
    products = torch.bmm(g.mT, x).to(layer.wide)  # [N, O, I]
    w = layer.weights.wide[:, :, 0, 0]
    if ds is not None:
        torch.sum(products * w, 1, keepdim=True, out=ds)
    return _with_demodulation(layer, (products * layer.styles).sum(0)[:, :, None, None], scale)


def _by_convolution(layer, du, dx, ds, scale, need_w) -> Tensor | None:
    p, chain = layer.passes, layer.chain
    for i, fir in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = _fir_adjoint(du, layer.filter, fir, chain[i - 1])
    z = _scaled(layer) if need_w else layer.x  # unread without dW
    z = z if p.before is None or not need_w else _fir(z, layer.filter, p.before)
    if p.before is not None and not need_w:
        z = layer.images(layer.x, layer.channels[1], chain[1])
    need_z = dx is not None or ds is not None
    dz, dw, _ = torch.ops.aten.convolution_backward(
        du, z, _oriented_weight(layer), None, *_convolution_arguments(p), [need_z, need_w, False]
    )
    if need_z:
        if p.before is not None:
            dz = _fir_adjoint(dz, layer.filter, p.before, chain[0])
        dz = dz.contiguous(memory_format=LAST)
        n, i, h, w = layer.x.shape
        _cpu.module().modulated_conv2d_scale_backward(
            *map(address, (dz, layer.x, dx, ds, layer.styles, layer.regions_in)),
            layer.styles.shape[1], n, h * w, i, DTYPE_CODES[dz.dtype],
        )  # fmt: skip
    if not need_w:
        return None
    dw = _oriented(dw, p, layer.settings.flip_weight)
    return _with_demodulation(layer, dw.to(layer.wide), scale)


def _with_demodulation(layer: Layer, dw: Tensor, scale: Tensor | None) -> Tensor:
    """dW + 2 W·scale."""
    if scale is None:
        return dw
    return torch.addcmul(dw, layer.weights.wide, scale[:, :, None, None], value=2)


def _noise_gradients(layer: Layer, t: Tensor) -> tuple[Tensor, Tensor]:
    """dnoise and dstrength from t = Σ_o dv."""
    t = t if layer.noise.shape[0] == t.shape[0] else t.sum(0, keepdim=True)
    dstrength = (t * layer.noise).sum()
    return t if layer.strength is None else layer.strength * t, dstrength
