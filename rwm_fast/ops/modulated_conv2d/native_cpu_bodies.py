"""The convolution of modulated_conv2d on the CPU, forward and backward, in three ways.

- 3×3, also doubling and halving: Winograd in C++ with everything else inside it (`winograd`);
- 1×1 with one style: a matrix product with the weights of each image, W·s;
- the rest: torch's convolution, filters and scales in passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _cpu
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d import winograd
from rwm_fast.ops.modulated_conv2d._geometry import Fir, _convolution_arguments, _oriented
from rwm_fast.ops.modulated_conv2d.native_cpu_layer import LAST, Epilogue, Layer, plain_epilogue
from rwm_fast.ops.upfirdn2d import native as upfirdn2d
from rwm_fast.ops.upfirdn2d.autograd import adjoint_padding


def convolved(layer: Layer, epilogue: Epilogue) -> Tensor:
    """The convolution of a·x and the epilogue, channels_last."""
    if layer.body == "winograd" and not layer.passes.after:
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
        x, a, regions_in = _winograd_input(layer)
        winograd.forward(x, y, layer.weights, a, regions_in, epilogue.arguments())
        return y
    if layer.body == "product":
        u = torch.bmm(_rows(layer.x), _weights_of_images(layer).mT)  # [N, HW, O]
        y = layer.images(layer.x, layer.channels[0], layer.chain[-1])
    elif layer.body == "winograd":
        u = layer.images(layer.x, layer.channels[0], layer.chain[1])
        plain = plain_epilogue(layer).arguments()
        winograd.forward(layer.x, u, layer.weights, layer.styles, layer.regions_in, plain)
        u = y = _fir(u, layer.filter, *layer.passes.after)
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


def _winograd_input(layer: Layer) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the kernels read before a filter, and the scales they apply to it.

    A halving filters first; scales of whole channels may come after the filter as well.
    """
    if layer.weights.body.stride != winograd.DOWN:
        return layer.x, layer.styles, layer.regions_in
    z, a = (layer.x, layer.styles) if layer.regions_in is None else (_scaled(layer), None)
    return _fir(z, layer.filter, layer.passes.before), a, None


def by_winograd(layer, du, dx, ds, scale, need_w) -> Tensor | None:
    p, chain, weights = layer.passes, layer.chain, layer.weights
    if weights.body.stride == winograd.UP:
        du = _fir_adjoint(du, layer.filter, *p.after, chain[1])
    need_z = dx is not None or ds is not None
    if need_z and weights.body.stride == winograd.DOWN:
        dz = layer.images(du, layer.channels[1], chain[1])
        winograd.input_gradient(du, dz, weights, None, None, dz, None)
        _scale_backward(layer, _fir_adjoint(dz, layer.filter, p.before, chain[0]), dx, ds)
    elif need_z:
        winograd.input_gradient(du, layer.x, weights, layer.styles, layer.regions_in, dx, ds)
    if not need_w:
        return None
    x, a, regions_in = _winograd_input(layer)
    return winograd.weight_gradient(x, du, weights, a, regions_in, scale)


def _scale_backward(layer: Layer, dz: Tensor, dx: Tensor | None, ds: Tensor | None) -> None:
    """dx = a·dz, ds_k = Σ_p r_k x·dz; dz channels_last."""
    n, i, h, w = layer.x.shape
    _cpu.module().modulated_conv2d_scale_backward(
        *map(address, (dz, layer.x, dx, ds, layer.styles, layer.regions_in)),
        layer.styles.shape[1], n, h * w, i, DTYPE_CODES[dz.dtype],
    )  # fmt: skip


def by_product(layer, du, dx, ds, scale, need_w) -> Tensor | None:
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


def by_convolution(layer, du, dx, ds, scale, need_w) -> Tensor | None:
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
        _scale_backward(layer, dz.contiguous(memory_format=LAST), dx, ds)
    if not need_w:
        return None
    dw = _oriented(dw, p, layer.settings.flip_weight)
    return _with_demodulation(layer, dw.to(layer.wide), scale)


def _with_demodulation(layer: Layer, dw: Tensor, scale: Tensor | None) -> Tensor:
    """dW + 2 W·scale."""
    if scale is None:
        return dw
    return torch.addcmul(dw, layer.weights.wide, scale[:, :, None, None], value=2)
