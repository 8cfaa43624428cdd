"""bias_act in plain torch, for any device and dtype."""

from __future__ import annotations

from rwm_fast.ops._backend import Call
from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act.call import Backward, Forward
from rwm_fast.ops.bias_act.reference import activate_backward, bias_act, over_channels


def supports(call: Call) -> str | None:
    """Everything the operator takes."""
    return None


def forward(call: Forward) -> None:
    """The truth."""
    call.y.copy_(bias_act(call.x, call.bias, *call.activation))


def backward(call: Backward) -> None:
    """dx, and dbias in the accumulator's dtype."""
    wide = call.dy.to(accumulator(call.dtype))
    dt = activate_backward(wide, call.y, *call.activation)
    if call.dx is not None:
        call.dx.copy_(dt)
    if call.dbias is not None:
        call.dbias.copy_(over_channels(dt))
