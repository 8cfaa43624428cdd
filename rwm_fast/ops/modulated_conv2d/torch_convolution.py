"""Torch's convolution, differentiable to any order by exactly the calls that are asked for.

Torch's own double backward answers zeros for whatever its result does not depend on, and they are
then pushed through the whole forward graph of a network; and it computes the weights' gradient as a
convolution whose filter is an image. Here an absent cotangent stays absent, and every derivative is
one of the three calls of a first-order pass: with B(x, w) bilinear,

    dx = Bx(dy, w), dw = Bw(dy, x);  ⟨u, dx⟩ has the gradients B(u, w) in dy, Bw(dy, u) in w;
    ⟨v, dw⟩ has B(x, v) in dy, Bx(dy, v) in x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _torch_private
from rwm_fast.ops._absent import absent_gradients, beside
from rwm_fast.ops._registry import needed
from rwm_fast.ops.modulated_conv2d.geometry import Fir, Geometry, Plan, Size
from rwm_fast.ops.upfirdn2d.geometry import adjoint_padding, filter_size
from rwm_fast.ops.upfirdn2d.reference import may_be_misread, upfirdn2d

Arguments = Sequence[Any]  # stride, padding, dilation, transposed, output padding, groups


def _plain() -> bool:
    """Whether torch's own derivatives must do: nothing is recorded, or something traces."""
    return (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or _torch_private.in_transform()
    )


def is_misread(x: Tensor, w: Tensor, arguments: Arguments) -> bool:
    """Whether torch's convolution may read past the map."""
    larger = lambda: max(w.shape[2:]) > min(x.shape[2:]) or max(arguments[0]) > 1
    return may_be_misread(x) and larger()


def _convolved(x: Tensor, w: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
    """Torch's convolution, in float32 where its own would read past the map."""
    if not is_misread(x, w, arguments):
        return torch.ops.aten.convolution(x, w, bias, *arguments)
    wide = (t if t is None else t.float() for t in (x, w, bias))
    return torch.ops.aten.convolution(*wide, *arguments).to(x.dtype)


def _convolved_backward(dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments, needs) -> Any:
    """Its derivative, likewise: dx and dw."""
    options = (None, *arguments, [*needs, False])
    if not is_misread(x, w, arguments):
        return torch.ops.aten.convolution_backward(dy, x, w, *options)[:2]
    wide = (t.float() for t in (dy, x, w))
    grads = torch.ops.aten.convolution_backward(*wide, *options)[:2]
    return tuple(g if g is None else g.to(x.dtype) for g in grads)


def _in_order(w: Tensor, arguments: Arguments) -> Tensor:
    """The weight in one of torch's two orders. Of a weight of one column or row torch 2.13 takes
    other strides for channels_last, and then fails backward."""
    if arguments[3] or w.is_contiguous():
        return w
    _, i, _, kw = w.shape
    return w if w.stride()[1:] == (1, kw * i, i) else w.contiguous()


def convolution(x: Tensor, w: Tensor, arguments: Arguments, bias: Tensor | None = None) -> Tensor:
    """B(x, w) + bias."""
    w = _in_order(w, arguments)
    if _plain():
        return _convolved(x, w, bias, arguments)
    return _Convolution.apply(x, w, bias, arguments)


def convolution_backward(
    dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Bx(dy, w) and Bw(dy, x), None where not needed; of x or w that is not read, the shape."""
    grads: Any
    w = _in_order(w, arguments)
    if _plain():
        grads = _convolved_backward(dy, x, w, arguments, needs)
    else:
        grads = _Gradients.apply(dy, x, w, arguments, needs)
    return grads[0] if needs[0] else None, grads[1] if needs[1] else None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        ctx.arguments = arguments
        ctx.added = bias if absent_gradients.zeros else None
        return _convolved(x, w, bias, arguments)

    @staticmethod
    def backward(ctx, dy: Tensor | None):
        if dy is None:
            return None, None, None, None
        *needs, need_bias = needed(ctx, 3)
        x, w = ctx.saved_tensors
        dx, dw = convolution_backward(dy, x, w, ctx.arguments, (needs[0], needs[1]))
        db = dy.sum((0, 2, 3)) if need_bias else None
        return *beside((dx, dw, db), (ctx.added,)), None


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments, needs):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, w)
        ctx.arguments = arguments
        return _convolved_backward(dy, x, w, arguments, needs)

    @staticmethod
    def backward(ctx, u: Tensor | None, v: Tensor | None):
        dy, x, w = ctx.saved_tensors
        need_dy, need_x, need_w = needed(ctx, 3)
        d_dy = d_x = d_w = None
        if need_dy and u is not None:
            d_dy = convolution(u, w, ctx.arguments)
        if need_dy and v is not None:
            more = convolution(x, v, ctx.arguments)
            d_dy = more if d_dy is None else d_dy + more
        if need_x and v is not None:
            d_x, _ = convolution_backward(dy, x, v, ctx.arguments, (True, False))
        if need_w and u is not None:
            _, d_w = convolution_backward(dy, u, w, ctx.arguments, (False, True))
        return d_dy, d_x, d_w, None, None


# ---- with the filters around it: the resampled convolution of geometry.py


def resampled(
    z: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw], z's dtype
    filter: Tensor | None,
    p: Plan,
    flip_weight: bool,
) -> Tensor:
    """u [N, O, H, W]; differentiable by torch to any order."""
    z = z if p.before is None else fir(z, filter, p.before)
    u = convolution(z, oriented(weight, p, flip_weight), p.convolution)
    for after in p.after:
        u = fir(u, filter, after)
    return u


def resampled_backward(
    du: Tensor,  # [N, O, H, W]
    z: Tensor,  # [N, I, h, w]
    weight: Tensor,  # [O, I, kh, kw], z's dtype
    filter: Tensor | None,
    g: Geometry,
    flip_weight: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The adjoint: dz and dW (None where not needed); differentiable by torch to any order."""
    p = g.passes
    for i, after in reversed(tuple(enumerate(p.after, start=-len(p.after)))):
        du = fir_adjoint(du, filter, after, g.chain[i - 1])
    z_in = z if p.before is None else fir(z, filter, p.before)
    w = oriented(weight, p, flip_weight)
    dz, dweight = convolution_backward(du, z_in, w, p.convolution, needs)
    if dz is not None and p.before is not None:
        dz = fir_adjoint(dz, filter, p.before, g.chain[0])
    # turning the weight is its own adjoint
    return dz, None if dweight is None else oriented(dweight, p, flip_weight)


def oriented(weight: Tensor, p: Plan, flip_weight: bool) -> Tensor:
    """The weight as torch's convolution wants it: a transposed one scatters, so turns it over."""
    weight = weight.flip((2, 3)) if flip_weight == p.transposed else weight
    return weight.transpose(0, 1) if p.transposed else weight


def fir(x: Tensor, filter: Tensor | None, f: Fir) -> Tensor:
    """One pass of the filter, in plain torch."""
    filter = filter if f.filtered else None
    return upfirdn2d(x, filter, (f.up,) * 2, (f.down,) * 2, f.padding, False, f.gain)


def fir_adjoint(dy: Tensor, filter: Tensor | None, f: Fir, size: Size) -> Tensor:
    """The transpose of `fir` on images of the given height and width."""
    filter = filter if f.filtered else None
    back = adjoint(f, size, dy.shape[2:], filter_size(filter))
    up, down = (back.up,) * 2, (back.down,) * 2
    return upfirdn2d(dy, filter, up, down, back.padding, True, back.gain)


def adjoint(f: Fir, size: Size, result: Sequence[int], taps: Size) -> Fir:
    """The pass that takes gradients back: from the result's size to `size`, the filter flipped."""
    up, down = (f.up,) * 2, (f.down,) * 2
    padding = adjoint_padding(size, result, taps, up, down, f.padding)
    return Fir(f.down, f.up, padding, f.filtered, f.gain)
