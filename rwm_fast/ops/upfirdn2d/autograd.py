"""The registered operator behind upfirdn2d and its derivative formula; knows no backend.

The operator is linear in x. Its adjoint is the operator itself with `up` and `down` exchanged, the
filter flipped and the padding that brings back the input size: so every order of derivative exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rwm_fast.ops import _dispatch, _layout
from rwm_fast.ops._registry import register
from rwm_fast.ops.upfirdn2d.reference import filter_size, output_size

OP = "upfirdn2d"


def adjoint_padding(
    size: Sequence[int],  # H, W of the input
    out_size: Sequence[int],
    filter: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    """The padding of the adjoint: p₀' = f − 1 − p₀, p₁' = in·up − out·down + p₀ − up + 1."""
    (h, w), (oh, ow), (fh, fw) = size, out_size, filter_size(filter)
    px0, _, py0, _ = padding
    return [
        fw - px0 - 1,
        w * up[0] - ow * down[0] + px0 - up[0] + 1,
        fh - py0 - 1,
        h * up[1] - oh * down[1] + py0 - up[1] + 1,
    ]


def _forward(x, filter, up, down, padding, flip_filter, gain):
    facts = {"up": up, "down": down, "padding": padding}
    backend = _dispatch.choose(OP, (x, filter), **facts)
    return backend.forward(x, filter, up, down, padding, flip_filter, gain)


def _forward_fake(x, filter, up, down, padding, flip_filter, gain):
    h, w = output_size(*x.shape[2:], filter, up, down, padding)
    return _layout.empty(x, (*x.shape[:2], h, w))


def _save_forward(ctx, inputs, output) -> None:
    x, filter, ctx.up, ctx.down, padding, flip_filter, ctx.gain = inputs
    ctx.flip_filter = not flip_filter
    ctx.padding = adjoint_padding(x.shape[2:], output.shape[2:], filter, ctx.up, ctx.down, padding)
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
)
