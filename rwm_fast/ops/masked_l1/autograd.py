"""The registered operators behind masked_l1 and their derivative formulas; knows no backend.

Notation: h, g, a, m as in the contract; s₁ = sign(h − g), s₂ = sign(h − a), c = dL/|I|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch, _memory
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._registry import register
from rwm_fast.ops.masked_l1 import eager, reference
from rwm_fast.ops.masked_l1.call import backward_call, decode, forward_call, mask_backward_call

OP = "masked_l1"

# ---- rwm_fast::masked_l1


def _forward(h, g, a, m, save: bool) -> tuple[Tensor, Tensor]:
    call = forward_call(h, g, a, m, save)
    backend = _dispatch.choose(OP, call)
    if h.numel():
        backend.forward(call)
    else:
        call.loss.fill_(float("nan"))
    return call.loss, h.new_empty(0, dtype=torch.uint8) if call.signs is None else call.signs


def _forward_fake(h, g, a, m, save: bool):
    loss = h.new_empty((), dtype=accumulator(h.dtype))
    return loss, _memory.empty(h, h.shape, torch.uint8, save)


def _save_forward(ctx, inputs, output) -> None:
    h, g, a, m, _ = inputs
    images = (h, g, a) if ctx.needs_input_grad[3] else ()
    ctx.dtype = h.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(m, output[1], *images)


def _forward_derivative(ctx, dloss: Tensor | None, _dsigns):
    m, signs, *images = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dh = dg = da = dm = None
    if needs[0] or needs[1] or needs[2]:
        dh, dg, da = masked_l1_backward(dloss, signs, m, ctx.dtype, list(needs[:3]))
    if needs[3]:
        dm = masked_l1_mask_backward(dloss, *images, m)
    return (
        dh if needs[0] else None,
        dg if needs[1] else None,
        da if needs[2] else None,
        dm,
        None,
    )


masked_l1 = register(
    "masked_l1(Tensor hybrid, Tensor inside, Tensor outside, Tensor mask, bool save)"
    " -> (Tensor loss, Tensor signs)",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
    truth=lambda h, g, a, m, save: (reference.masked_l1(h, g, a, m), None),
)

# ---- rwm_fast::masked_l1_backward


def _backward(dloss, signs, m, dtype, needs) -> tuple[Tensor, ...]:
    call = backward_call(dloss, signs, m, dtype, needs)
    backend = _dispatch.choose(OP, call)
    if signs.numel() and (needs[0] or needs[1] or needs[2]):
        backend.backward(call)
    dh, dg, da = call.grads
    return (
        signs.new_empty(0, dtype=dtype) if dh is None else dh,
        signs.new_empty(0, dtype=dtype) if dg is None else dg,
        signs.new_empty(0, dtype=dtype) if da is None else da,
    )


def _backward_fake(dloss, signs, m, dtype, needs):
    return tuple(_memory.empty(signs, signs.shape, dtype, need) for need in needs)


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
    truth=lambda dloss, signs, m, dtype, _: tuple(
        g.to(dtype) for g in eager.image_gradients(dloss, signs, m)
    ),
)

# ---- rwm_fast::masked_l1_mask_backward


def _mask_backward(dloss, h, g, a, m) -> Tensor:
    call = mask_backward_call(dloss, h, g, a, m)
    backend = _dispatch.choose(OP, call)
    if h.numel():
        backend.mask_backward(call)
    else:
        call.dmask.zero_()
    return call.dmask


def _mask_backward_fake(dloss, h, g, a, m):
    return _memory.empty(h, m.shape, m.dtype)


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
    truth=lambda dloss, h, g, a, m: eager.mask_gradient(dloss, h, g, a, m).to(m.dtype),
)
