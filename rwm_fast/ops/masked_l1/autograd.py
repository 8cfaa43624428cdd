"""The registered operators behind masked_l1 and their derivative formulas; knows no backend.

Notation: h, g, a, m as in the contract; s₁ = sign(h − g), s₂ = sign(h − a), c = dL/|I|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._registry import register
from rwm_fast.ops.masked_l1.reference import decode

OP = "masked_l1"

# ---- rwm_fast::masked_l1


def _forward(h: Tensor, g: Tensor, a: Tensor, m: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    return _dispatch.choose(OP, (h, g, a, m)).forward(h, g, a, m, save)


def _forward_fake(h: Tensor, g: Tensor, a: Tensor, m: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    loss = h.new_empty((), dtype=accumulator(h.dtype))
    return loss, torch.empty_like(h, dtype=torch.uint8) if save else h.new_empty(
        0, dtype=torch.uint8
    )


def _save_forward(ctx, inputs, output) -> None:
    h, g, a, m, _ = inputs
    images = (h, g, a) if ctx.needs_input_grad[3] else ()
    ctx.dtype = h.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(m, output[1], *images)


def _forward_derivative(ctx, dloss: Tensor | None, _dsigns):
    m, signs, *images = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = [None, None, None]
    if any(needs[:3]):
        out = masked_l1_backward(dloss, signs, m, ctx.dtype, list(needs[:3]))
        grads = [grad if need else None for grad, need in zip(out, needs[:3], strict=True)]
    dm = masked_l1_mask_backward(dloss, *images, m) if needs[3] else None
    return *grads, dm, None


masked_l1 = register(
    "masked_l1(Tensor hybrid, Tensor inside, Tensor outside, Tensor mask, bool save)"
    " -> (Tensor loss, Tensor signs)",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
)

# ---- rwm_fast::masked_l1_backward


def _backward(dloss: Tensor, signs: Tensor, m: Tensor, dtype: torch.dtype, needs: list[bool]):
    return _dispatch.choose(OP, (signs, m, dloss)).backward(dloss, signs, m, dtype, needs)


def _backward_fake(dloss: Tensor, signs: Tensor, m: Tensor, dtype: torch.dtype, needs: list[bool]):
    return tuple(
        torch.empty_like(signs, dtype=dtype) if need else signs.new_empty(0, dtype=dtype)
        for need in needs
    )


def _save_backward(ctx, inputs, output) -> None:
    dloss, signs, m, _, ctx.needs = inputs
    ctx.save_for_backward(dloss, signs, m)


def _backward_derivative(ctx, u_h: Tensor | None, u_g: Tensor | None, u_a: Tensor | None):
    """With cotangents u: d_dL = Σ(|m|s₁(u_h − u_g) + |1−m|s₂(u_h − u_a))/|I|; d_m likewise."""
    dloss, signs, m = ctx.saved_tensors
    zero = dloss.new_zeros(())
    u_h, u_g, u_a = (
        zero if u is None or not u.numel() else u.to(dloss.dtype) for u in (u_h, u_g, u_a)
    )
    s_inside, s_outside = decode(signs, dloss.dtype)
    p, q = s_inside * (u_h - u_g), s_outside * (u_h - u_a)
    mask = m.to(dloss.dtype)
    # An empty batch gives an empty sum: 0, not 0/0.
    d_dloss = (mask.abs() * p + (1 - mask).abs() * q).sum() / max(signs.numel(), 1)
    d_m = (dloss / signs.numel()) * (mask.sign() * p - (1 - mask).sign() * q)
    d_m = d_m.sum(1, keepdim=True) if m.shape[1] != signs.shape[1] else d_m
    return d_dloss, None, d_m.to(m.dtype), None, None


masked_l1_backward = register(
    "masked_l1_backward(Tensor dloss, Tensor signs, Tensor mask, ScalarType dtype, bool[] needs)"
    " -> (Tensor dhybrid, Tensor dinside, Tensor doutside)",
    _backward,
    _backward_fake,
    backward=_backward_derivative,
    setup_context=_save_backward,
)

# ---- rwm_fast::masked_l1_mask_backward


def _mask_backward(dloss: Tensor, h: Tensor, g: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return _dispatch.choose(OP, (h, g, a, m)).mask_backward(dloss, h, g, a, m)


def _mask_backward_fake(dloss: Tensor, h: Tensor, g: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return torch.empty_like(m)


def _save_mask_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _mask_backward_derivative(ctx, u: Tensor):
    """With cotangent u: d_h = c·u(sign(m)s₁ − sign(1−m)s₂); d_g, d_a its parts; zero in m."""
    dloss, h, g, a, m = ctx.saved_tensors
    h, g, a, mask, u = (t.to(dloss.dtype) for t in (h, g, a, m, u))
    p, q = u * mask.sign(), u * (1 - mask).sign()
    d_dloss = (p * (h - g).abs() - q * (h - a).abs()).sum() / max(h.numel(), 1)
    scale = dloss / h.numel()
    dp, dq = scale * p * (h - g).sign(), scale * q * (h - a).sign()
    dtype = ctx.saved_tensors[1].dtype
    return d_dloss, (dp - dq).to(dtype), -dp.to(dtype), dq.to(dtype), None


masked_l1_mask_backward = register(
    "masked_l1_mask_backward(Tensor dloss, Tensor hybrid, Tensor inside, Tensor outside,"
    " Tensor mask) -> Tensor",
    _mask_backward,
    _mask_backward_fake,
    backward=_mask_backward_derivative,
    setup_context=_save_mask_backward,
)
