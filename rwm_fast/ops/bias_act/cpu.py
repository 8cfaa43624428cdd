"""bias_act in C++ on the CPU (csrc/bias_act/cpu.cpp): one pass forward, one pass backward."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import DTYPE_CODES, addresses
from rwm_fast.ops.bias_act.call import Backward, Forward


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Forward) -> None:
    """y = clamp(act(x + bias)·gain)."""
    _extension.cpu().bias_act_forward(
        *addresses(call.x, call.bias, call.y),
        *call.extents,
        *call.activation.numbers(),
        DTYPE_CODES[call.dtype],
    )


def backward(call: Backward) -> None:
    """dx and dbias."""
    _extension.cpu().bias_act_backward(
        *addresses(call.dy, call.y, call.dx, call.dbias),
        *call.extents,
        *call.activation.numbers(),
        DTYPE_CODES[call.dtype],
    )
