"""The convolution of modulated_conv2d on the CPU, forward and backward, in four ways.

- 3×3, also doubling: Winograd in C++ with everything else inside it (`winograd`);
- 1×1 with one style: a matrix product with the weights of each image, W·s;
- other convolutions, halvings too: by definition in C++ (`direct`);
- doublings of other kernels, and bfloat16 on matrix units: torch's convolution.

Filters, and scales that vary within an image, are passes of their own but in the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _cpu
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d import direct, winograd
from rwm_fast.ops.modulated_conv2d._geometry import Fir, _convolution_arguments, _oriented
from rwm_fast.ops.modulated_conv2d.native_cpu_layer import LAST, Epilogue, Layer, plain_epilogue
from rwm_fast.ops.upfirdn2d import native as upfirdn2d
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding

Needs = tuple[bool, bool, bool]  # of dx, ds and dW
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def convolved(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution of a·x and the epilogue, channels_last."""
    if layer.body == "winograd" and not layer.passes.after:
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
        scales = layer.styles, layer.regions_in
        winograd.forward(layer.x, y, layer.weights, *scales, epilogue.arguments())
        return y
    if layer.body == "product":
        u = torch.bmm(_rows(layer.x), _weights_of_images(layer).mT)  # [N, HW, O]
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
    elif layer.body == "winograd":
        u = layer.images(layer.x, layer.channels[0], layer.chain[1])
        plain = plain_epilogue(layer).arguments()
        winograd.forward(layer.x, u, layer.weights, layer.styles, layer.regions_in, plain)
        u = y = _fir(u, layer.filter, *layer.passes.after)
    elif layer.body == "direct":
        u = y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
        z, a = _filtered_input(layer)
        direct.forward(z, u, layer.weights, a, layer.passes)
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


def _does_nothing(filter: Tensor | None, fir: Fir) -> bool:
    """Whether a pass neither filters nor moves a pixel: that of a halving without filter."""
    filtered = fir.filtered and filter is not None
    return not filtered and fir.up == fir.down == fir.gain == 1 and not any(fir.padding)


def _fir(x: Tensor, filter: Tensor | None, fir: Fir, flip: bool = False) -> Tensor:
    if _does_nothing(filter, fir):
        return x
    up, down = (fir.up,) * 2, (fir.down,) * 2
    filter = filter if fir.filtered else None
    y = upfirdn2d.forward(x, filter, up, down, fir.padding, flip, fir.gain)
    return y.contiguous(memory_format=LAST)


def _fir_adjoint(dy: Tensor, filter: Tensor | None, fir: Fir, size: Sequence[int]) -> Tensor:
    """The transpose of `_fir` on images of the given height and width."""
    if _does_nothing(filter, fir):
        return dy
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


def _filtered_input(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """What `direct` reads: the input after the filter before the convolution, and the scale that is
    still to be applied. That of regions comes before the filter, and so does one style's, which is
    then the same to the last bit as a region everywhere; a constant needs no pass of its own.
    """
    x, a, before = layer.x, layer.styles, layer.passes.before
    if layer.regions_in is not None or not (before is None or layer.constant):
        x, a = _scaled(layer), None
    return (x if before is None else _fir(x, layer.filter, before)), a


def by_winograd(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    p, weights = layer.passes, layer.weights
    need_x, need_s, need_w = needs
    if weights.body.stride == winograd.UP:
        du = _fir_adjoint(du, layer.filter, *p.after, layer.chain[1])
    scales = layer.styles, layer.regions_in
    dx, ds = _empty_gradients(layer, needs)
    if need_x or need_s:
        winograd.input_gradient(du, layer.x, weights, *scales, dx, ds)
    if not need_w:
        return dx, ds, None
    return dx, ds, winograd.weight_gradient(layer.x, du, weights, *scales, scale)


def by_direct(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    p, weights = layer.passes, layer.weights
    need_x, need_s, need_w = needs
    dx = ds = dw = None
    if need_x or need_s:
        dz = layer.images(du, layer.channels[1], layer.chain[p.before is not None])
        last = not need_s and layer.regions_in is None  # nothing asks for dz without the scale
        direct.input_gradient(du, dz, weights, layer.styles if last else None, p)
        if not last:
            dx, ds = _input_gradients(layer, dz, needs)
        else:
            dx = _before_filter(layer, dz)
    if need_w:
        z, a = _filtered_input(layer)
        dw = direct.weight_gradient(z, du, weights, a, scale, p)
    return dx, ds, dw


def _before_filter(layer: Layer, dz: Tensor) -> Tensor:
    """The gradient in front of the filter before the convolution, from that behind it."""
    before = layer.passes.before
    return dz if before is None else _fir_adjoint(dz, layer.filter, before, layer.chain[0])


def _empty_gradients(layer: Layer, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """Room for dx and ds."""
    return (
        torch.empty_like(layer.x) if needs[0] else None,
        torch.empty_like(layer.styles) if needs[1] else None,
    )


def _input_gradients(layer: Layer, dz: Tensor, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """dx = a·dz, ds_k = Σ_p r_k x·dz, from the gradient dz of the convolution's input."""
    dx, ds = _empty_gradients(layer, needs)
    dz = _before_filter(layer, dz).contiguous(memory_format=LAST)
    n, i, h, w = layer.x.shape
    _cpu.module().modulated_conv2d_scale_backward(
        *map(address, (dz, layer.x, dx, ds, layer.styles, layer.regions_in)),
        layer.styles.shape[1], n, h * w, i, DTYPE_CODES[dz.dtype],
    )  # fmt: skip
    return dx, ds


def by_product(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    g, x = _rows(du), _rows(layer.x)  # [N, HW, O], [N, HW, I]
    need_x, need_s, need_w = needs
    dx, ds = _empty_gradients(layer, needs)
    if need_x:
        torch.bmm(g, _weights_of_images(layer), out=_rows(dx))
    if not (need_s or need_w):
        return dx, ds, None
    products = torch.bmm(g.mT, x).to(layer.wide)  # [N, O, I]
    w = layer.weights.wide[:, :, 0, 0]
    if need_s:
        torch.sum(products * w, 1, keepdim=True, out=ds)
    if not need_w:
        return dx, ds, None
    dw = (products * layer.styles).sum(0)[:, :, None, None]
    return dx, ds, _with_demodulation(layer, dw, scale)


def by_convolution(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    p, chain = layer.passes, layer.chain
    need_x, need_s, need_w = needs
    for i, fir in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = _fir_adjoint(du, layer.filter, fir, chain[i - 1])
    z = _scaled(layer) if need_w else layer.x  # unread without dW
    z = z if p.before is None or not need_w else _fir(z, layer.filter, p.before)
    if p.before is not None and not need_w:
        z = layer.images(layer.x, layer.channels[1], chain[1])
    need_z = need_x or need_s
    dz, dw, _ = torch.ops.aten.convolution_backward(
        du, z, _oriented_weight(layer), None, *_convolution_arguments(p), [need_z, need_w, False]
    )
    dx, ds = _input_gradients(layer, dz, needs) if need_z else (None, None)
    if need_w:
        dw = _oriented(dw, p, layer.settings.flip_weight)
        dw = _with_demodulation(layer, dw.to(layer.wide), scale)
    return dx, ds, dw if need_w else None


def _with_demodulation(layer: Layer, dw: Tensor, scale: Tensor | None) -> Tensor:
    """dW + 2 W·scale."""
    if scale is None:
        return dw
    return torch.addcmul(dw, layer.weights.wide, scale[:, :, None, None], value=2)
