"""The registered operators behind bias_act and their derivative formulas; knows no backend.

The backward operator reads the slope from the sign of the stored y and the clamp from its size. It
is linear in dy and its adjoint is itself, so every order of derivative exists. In y it is constant
almost everywhere.
"""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops import _dispatch, _memory
from rwm_fast.ops._absent import absent_gradients, beside
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import Activation
from rwm_fast.ops._registry import needed, register
from rwm_fast.ops.bias_act import reference
from rwm_fast.ops.bias_act.call import backward_call, forward_call

OP = "bias_act"

# ---- rwm_fast::bias_act


def _forward(x, bias, activation, slope, gain, clamp) -> Tensor:
    call = forward_call(x, bias, Activation(activation, slope, gain, clamp))
    backend = _dispatch.choose(OP, call)
    if x.numel():
        backend.forward(call)
    return call.y


def _forward_fake(x, bias, activation, slope, gain, clamp):
    return _memory.empty(x, x.shape)


def _save_forward(ctx, inputs, output) -> None:
    _, bias, *ctx.settings = inputs
    activation, _, _, clamp = ctx.settings
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.added = bias if absent_gradients.zeros else None
    # a linear layer's derivative does not look at y: spare the memory
    ctx.save_for_backward(None if activation == "linear" and clamp is None else output)


def _forward_derivative(ctx, dy: Tensor):
    (y,) = ctx.saved_tensors
    needs = needed(ctx, 2, costly=(1,))
    dx, dbias = bias_act_backward(dy, y, *ctx.settings, needs)
    dx, dbias = beside((dx, dbias), (ctx.added,))
    return (
        dx if needs[0] else None,
        dbias.to(ctx.bias_dtype) if needs[1] else None,
        *[None] * 4,
    )


bias_act = register(
    "bias_act(Tensor x, Tensor? bias, str activation, float slope, float gain, float? clamp)"
    " -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
    truth=reference.bias_act,
)

# ---- rwm_fast::bias_act_backward


def _backward(dy, y, activation, slope, gain, clamp, needs):
    call = backward_call(dy, y, Activation(activation, slope, gain, clamp), needs)
    dx, dbias = call.dx, call.dbias
    backend = _dispatch.choose(OP, call)
    if not dy.numel():
        if dbias is not None:
            dbias.zero_()
    elif needs[0] or needs[1]:
        backend.backward(call)
    if dx is None:
        dx = dy.new_empty(0)
    return dx, dy.new_empty(0, dtype=accumulator(dy.dtype)) if dbias is None else dbias


def _backward_fake(dy, y, activation, slope, gain, clamp, needs):
    wide = accumulator(dy.dtype)
    dx = _memory.empty(dy if y is None else y, dy.shape) if needs[0] else dy.new_empty(0)
    return dx, dy.new_empty(dy.shape[1] if needs[1] else 0, dtype=wide)


def _backward_truth(dy, y, activation, slope, gain, clamp, needs):
    wide = dy.to(accumulator(dy.dtype))
    dx = reference.activate_backward(wide, y, activation, slope, gain, clamp)
    return dx.to(dy.dtype), reference.over_channels(dx)


def _save_backward(ctx, inputs, output) -> None:
    dy, y, *ctx.settings, _ = inputs
    ctx.shape, ctx.dtype = dy.shape, dy.dtype
    ctx.save_for_backward(y)


def _backward_derivative(ctx, u: Tensor | None, v: Tensor | None):
    """With cotangents u of dx and v of dbias: d_dy is the same operator applied to u + v."""
    (y,) = ctx.saved_tensors
    cotangent = u if u is not None and u.numel() else None
    if v is not None and v.numel():
        v = reference.along_channels(v.to(ctx.dtype), len(ctx.shape))
        cotangent = v.expand(ctx.shape) if cotangent is None else cotangent + v
    if cotangent is None:
        return (None,) * 7
    op = bias_act_backward
    d_dy, _ = op(cotangent, y, *ctx.settings, [True, False])
    return d_dy, *[None] * 6


bias_act_backward = register(
    "bias_act_backward(Tensor dy, Tensor? y, str activation, float slope, float gain,"
    " float? clamp, bool[] needs) -> (Tensor dx, Tensor dbias)",
    _backward,
    _backward_fake,
    backward=_backward_derivative,
    setup_context=_save_backward,
    truth=_backward_truth,
)
