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

from rwm_fast.ops._registry import needed

Arguments = Sequence[object]  # stride, padding, dilation, transposed, output padding, groups


def _plain() -> bool:
    """Whether torch's own derivatives must do: nothing is recorded, or something traces."""
    return (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def convolution(x: Tensor, w: Tensor, arguments: Arguments, bias: Tensor | None = None) -> Tensor:
    """B(x, w) + bias."""
    if _plain():
        return torch.ops.aten.convolution(x, w, bias, *arguments)
    return _Convolution.apply(x, w, bias, arguments)


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


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, bias: Tensor | None, arguments: Arguments) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        ctx.arguments = arguments
        return torch.ops.aten.convolution(x, w, bias, *arguments)

    @staticmethod
    def backward(ctx, dy: Tensor | None):
        if dy is None:
            return None, None, None, None
        *needs, need_bias = needed(ctx, 3)
        dx, dw = convolution_backward(dy, *ctx.saved_tensors, ctx.arguments, tuple(needs))
        return dx, dw, dy.sum((0, 2, 3)) if need_bias else None, None


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
