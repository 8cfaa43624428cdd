"""The registered operator behind upfirdn2d and its derivative formula; knows no backend.

The operator is linear in x. Its adjoint is the operator itself with `up` and `down` exchanged, the
filter flipped and the padding that brings back the input size: so every order of derivative exists.
"""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops import _dispatch, _memory
from rwm_fast.ops._registry import register
from rwm_fast.ops.upfirdn2d import reference
from rwm_fast.ops.upfirdn2d.call import call_of
from rwm_fast.ops.upfirdn2d.geometry import adjoint_padding, filter_size, output_size

OP = "upfirdn2d"


def _forward(x, filter, up, down, padding, flip_filter, gain) -> Tensor:
    call = call_of(x, filter, up, down, padding, flip_filter, gain)
    backend = _dispatch.choose(OP, call)
    if not call.x.numel():
        call.y.zero_()
    elif call.y.numel():
        backend.forward(call)
    return call.y


def _forward_fake(x, filter, up, down, padding, flip_filter, gain):
    n, c, h, w = x.shape
    h, w = output_size(h, w, filter_size(filter), up, down, padding)
    return _memory.empty(x, (n, c, h, w))


def _save_forward(ctx, inputs, output) -> None:
    x, filter, ctx.up, ctx.down, padding, flip_filter, ctx.gain = inputs
    ctx.flip_filter = not flip_filter
    sizes = x.shape[2:], output.shape[2:], filter_size(filter)
    ctx.padding = adjoint_padding(*sizes, ctx.up, ctx.down, padding)
    ctx.save_for_backward(filter)


def _forward_derivative(ctx, dy: Tensor):
    (filter,) = ctx.saved_tensors
    dx = None
    if ctx.needs_input_grad[0]:
        dx = upfirdn2d(dy, filter, ctx.down, ctx.up, ctx.padding, ctx.flip_filter, ctx.gain)
    return dx, None, None, None, None, None, None


upfirdn2d = register(
    "upfirdn2d(Tensor x, Tensor? filter, int[] up, int[] down, SymInt[] padding,"
    " bool flip_filter, float gain) -> Tensor",
    _forward,
    _forward_fake,
    backward=_forward_derivative,
    setup_context=_save_forward,
    truth=reference.upfirdn2d,
)
