"""The passes around a convolution on the CPU, where a body does not do them itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import LAST, NOTHING, Epilogue, addresses, blend_record, epilogue_record
from rwm_fast.ops.modulated_conv2d.geometry import Fir, Size
from rwm_fast.ops.modulated_conv2d.layer import Layer, Needs
from rwm_fast.ops.modulated_conv2d.torch_convolution import adjoint
from rwm_fast.ops.upfirdn2d import cpu as upfirdn2d
from rwm_fast.ops.upfirdn2d.geometry import filter_size


def scaled(layer: Layer) -> Tensor:
    """z = a·x."""
    z, a = torch.empty_like(layer.x), blend_record(_extension.cpu(), layer.styles, layer.regions_in)
    _extension.cpu().modulated_conv2d_scale(layer.body.records.input, *addresses(layer.x, z), a)
    return z


def unscaled(layer: Layer, dz: Tensor, needs: Needs) -> tuple[Tensor | None, Tensor | None]:
    """dx = a·dz, ds_k = Σ_p r_k x·dz, from the gradient dz of the convolution's input."""
    dz = before_filter(layer, dz).contiguous(memory_format=LAST)
    dx = torch.empty_like(layer.x) if needs.x else None
    ds = torch.empty_like(layer.styles) if needs.styles else None
    a = blend_record(_extension.cpu(), layer.styles, layer.regions_in)
    _extension.cpu().modulated_conv2d_scale_backward(
        layer.body.records.input, *addresses(dz, layer.x, dx, ds), a
    )
    return dx, ds


def finish(layer: Layer, u: Tensor, epilogue: Epilogue, y: Tensor | None = None) -> Tensor:
    """The epilogue of u, written to y, or to u itself."""
    y = u if y is None else y
    if epilogue is not NOTHING or y is not u:
        _extension.cpu().modulated_conv2d_epilogue(
            layer.body.records.output, *addresses(u, y), epilogue_record(_extension.cpu(), epilogue)
        )
    return y


def before_filter(layer: Layer, dz: Tensor) -> Tensor:
    """The gradient in front of the filter before the convolution, from that behind it."""
    f = layer.geometry.passes.before
    return dz if f is None else fir_adjoint(dz, layer.filter, f, layer.geometry.chain[0])


def with_demodulation(layer: Layer, dw: Tensor, scale: Tensor | None) -> Tensor:
    """dW + 2 W·scale."""
    if scale is None:
        return dw
    return torch.addcmul(dw, layer.body.weights.wide, scale[:, :, None, None], value=2)


def fir(x: Tensor, filter: Tensor | None, f: Fir, flip: bool = False) -> Tensor:
    """One pass of the filter on channels_last images."""
    filter = filter if f.filtered else None
    if filter is None and f.up == f.down == f.gain == 1 and not any(f.padding):
        return x  # of a halving without filter
    up, down = (f.up,) * 2, (f.down,) * 2
    return upfirdn2d.apply(x, filter, up, down, f.padding, flip, f.gain, LAST)


def fir_adjoint(dy: Tensor, filter: Tensor | None, f: Fir, size: Size) -> Tensor:
    """The transpose of `fir` on images of the given height and width."""
    taps = filter_size(filter if f.filtered else None)
    return fir(dy, filter, adjoint(f, size, dy.shape[2:], taps), flip=True)
