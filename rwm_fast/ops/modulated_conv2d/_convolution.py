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

import torch
from torch import Tensor

from rwm_fast.ops._registry import wanted

Arguments = Sequence[object]  # stride, padding, dilation, transposed, output padding, groups


def _plain() -> bool:
    """Whether torch's own derivatives must do: nothing is recorded, or something traces."""
    return (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def convolution(x: Tensor, w: Tensor, arguments: Arguments) -> Tensor:
    """B(x, w)."""
    if _plain():
        return torch.ops.aten.convolution(x, w, None, *arguments)
    return _Convolution.apply(x, w, arguments)


def convolution_backward(
    dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Bx(dy, w) and Bw(dy, x), None where not needed; of x or w that is not read, the shape."""
    if _plain():
        options = (*arguments, [*needs, False])
        grads = torch.ops.aten.convolution_backward(dy, x, w, None, *options)
    else:
        grads = _Gradients.apply(dy, x, w, arguments, needs)
    return grads[0] if needs[0] else None, grads[1] if needs[1] else None


def _weight_gradient(dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments) -> Tensor:
    """Bw(dy, x) summed over quarters of the batch.

    Over all of it oneDNN adds up in one order: 18 roundings of error for 8 images of 31 × 37, and 3
    this way. The gradients of a penalty are sums of squares, and feel it.
    """
    parts = zip(dy.chunk(4), x.chunk(4), strict=True)
    sums = [convolution_backward(*part, w, arguments, (False, True))[1] for part in parts]
    return sum(sums[1:], sums[0])


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, arguments: Arguments) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        ctx.arguments = arguments
        return torch.ops.aten.convolution(x, w, None, *arguments)

    @staticmethod
    def backward(ctx, dy: Tensor | None):
        if dy is None:
            return None, None, None
        needs = tuple(wanted(ctx, (0, 1)))
        return *convolution_backward(dy, *ctx.saved_tensors, ctx.arguments, needs), None


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy: Tensor, x: Tensor, w: Tensor, arguments: Arguments, needs):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, w)
        ctx.arguments = arguments
        options = (*arguments, [*needs, False])
        return torch.ops.aten.convolution_backward(dy, x, w, None, *options)[:2]

    @staticmethod
    def backward(ctx, u: Tensor | None, v: Tensor | None):
        dy, x, w = ctx.saved_tensors
        need_dy, need_x, need_w = wanted(ctx, (0, 1, 2))
        d_dy = d_x = d_w = None
        if need_dy and u is not None:
            d_dy = convolution(u, w, ctx.arguments)
        if need_dy and v is not None:
            more = convolution(x, v, ctx.arguments)
            d_dy = more if d_dy is None else d_dy + more
        if need_x and v is not None:
            d_x, _ = convolution_backward(dy, x, v, ctx.arguments, (True, False))
        if need_w and u is not None:
            d_w = _weight_gradient(dy, u, w, ctx.arguments)
        return d_dy, d_x, d_w, None, None
