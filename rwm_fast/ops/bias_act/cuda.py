"""bias_act in CUDA (csrc/bias_act/cuda.cu): one pass forward, one pass backward, one over sums."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import activation_record, addresses, place
from rwm_fast.ops.bias_act.call import Backward, Forward, planes_record


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def _chunks(outer: int, channels: int, inner: int) -> int:
    """Pieces of the sum over rows, or over each plane: for a GPU to fill, and few to add up."""
    if inner == 1:
        return min(512, -(-outer // 64))
    return min(-(-inner // 4096), -(-1024 // (outer * channels)))


def forward(call: Forward) -> None:
    """y = clamp(act(x + bias)·gain)."""
    x, bias, y, order, activation, _, dtype = call
    module = _extension.cuda()
    planes = planes_record(module, x.shape, order, dtype)
    act = activation_record(module, activation)
    module.bias_act_forward(planes, act, *addresses(x, bias, y), *place(x))


def backward(call: Backward) -> None:
    """dx and dbias."""
    dy, y, dx, dbias, order, activation, _, dtype = call
    module = _extension.cuda()
    planes = planes_record(module, dy.shape, order, dtype)
    act = activation_record(module, activation)
    chunks = _chunks(planes.outer, planes.channels, planes.inner)
    partials = None
    if dbias is not None:
        rows = chunks if planes.inner == 1 else chunks * planes.outer
        partials = dbias.new_empty(rows, planes.channels)
    buffers = addresses(dy, y, dx, dbias, partials)
    module.bias_act_backward(planes, act, *buffers, chunks, *place(dy))
