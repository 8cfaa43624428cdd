"""bias_act in C++ on the CPU (csrc/bias_act/cpu.cpp): one pass forward, one pass backward."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import activation_record, addresses
from rwm_fast.ops.bias_act.call import Backward, Forward, planes_record


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Forward) -> None:
    """y = clamp(act(x + bias)·gain)."""
    x, bias, y, order, activation, _, dtype = call
    module = _extension.cpu()
    planes = planes_record(module, x.shape, order, dtype)
    act = activation_record(module, activation)
    module.bias_act_forward(planes, act, *addresses(x, bias, y))


def backward(call: Backward) -> None:
    """dx and dbias."""
    dy, y, dx, dbias, order, activation, _, dtype = call
    module = _extension.cpu()
    planes = planes_record(module, dy.shape, order, dtype)
    act = activation_record(module, activation)
    module.bias_act_backward(planes, act, *addresses(dy, y, dx, dbias))
