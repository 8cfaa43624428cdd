"""torch's convolution, with derivatives of every order that are convolutions of the same kinds.

A convolution y = W∗x, its input gradient dx = Wᵀ∗dy and its weight gradient dW = x⋆dy are each
linear in both arguments, and the derivatives of each are the other two. torch instead derives the
second derivative by a forward convolution whose kernel is as large as the image, and hands zeros
down for what does not count: R1 takes a third longer by that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._registry import is_plain, needed


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """W∗x + bias; x [N, I, H, W], weight [O, I, k, k] and bias [O] of one dtype."""
    inputs = (x, weight) if bias is None else (x, weight, bias)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if recorded and is_plain(inputs):
        return _Forward.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride=stride, padding=padding)


def _gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: int
) -> Tensor:
    """The gradient of x (0) or of the weight (1). Of the one sought only the shape is read."""
    mask = [which == 0, which == 1, False]
    settings = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, mask)[which]


class _Forward(torch.autograd.Function):
    """y = W∗x + bias."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding
        ctx.set_materialize_grads(False)
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 5
        x, weight = ctx.saved_tensors
        need_x, need_w, need_bias = needed(ctx, 3)
        dx = _InputGradient.apply(dy, weight, _like(x), *ctx.settings) if need_x else None
        dw = _WeightGradient.apply(dy, x, _like(weight), *ctx.settings) if need_w else None
        return dx, dw, dy.sum((0, 2, 3)) if need_bias else None, None, None


class _InputGradient(torch.autograd.Function):
    """dx = Wᵀ∗dy, of the shape of `x`."""

    @staticmethod
    def forward(ctx, dy, weight, x, stride, padding):
        ctx.save_for_backward(dy, weight)
        ctx.settings = stride, padding
        ctx.set_materialize_grads(False)
        return _gradient(dy, x, weight, stride, padding, 0)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return (None,) * 5
        dy, weight = ctx.saved_tensors
        need_dy, need_w = needed(ctx, 2)
        ddy = conv2d(u, weight, None, *ctx.settings) if need_dy else None
        dw = _WeightGradient.apply(dy, u, _like(weight), *ctx.settings) if need_w else None
        return ddy, dw, None, None, None


class _WeightGradient(torch.autograd.Function):
    """dW = x⋆dy, of the shape of `weight`."""

    @staticmethod
    def forward(ctx, dy, x, weight, stride, padding):
        ctx.save_for_backward(dy, x)
        ctx.settings = stride, padding
        ctx.set_materialize_grads(False)
        return _gradient(dy, x, weight, stride, padding, 1)

    @staticmethod
    def backward(ctx, v):
        if v is None:
            return (None,) * 5
        dy, x = ctx.saved_tensors
        need_dy, need_x = needed(ctx, 2)
        ddy = conv2d(x, v, None, *ctx.settings) if need_dy else None
        dx = _InputGradient.apply(dy, v, _like(x), *ctx.settings) if need_x else None
        return ddy, dx, None, None, None


def _like(x: Tensor) -> Tensor:
    """A tensor of this shape and layout that no graph knows; its numbers are not read."""
    return x.detach()
