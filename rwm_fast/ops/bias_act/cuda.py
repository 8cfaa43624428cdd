"""bias_act in CUDA (csrc/bias_act/cuda.cu): one pass forward, one pass backward, one over sums."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import DTYPE_CODES, addresses, place
from rwm_fast.ops.bias_act.call import Backward, Forward


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
    _extension.cuda().bias_act_forward(
        *addresses(call.x, call.bias, call.y),
        *call.extents,
        *call.activation.numbers(),
        DTYPE_CODES[call.dtype],
        *place(call.x),
    )


def backward(call: Backward) -> None:
    """dx and dbias."""
    outer, channels, inner = call.extents
    chunks = _chunks(outer, channels, inner)
    partials = None
    if call.dbias is not None:
        rows = chunks if inner == 1 else chunks * outer
        partials = call.dbias.new_empty(rows, channels)
    _extension.cuda().bias_act_backward(
        *addresses(call.dy, call.y, call.dx, call.dbias, partials),
        *call.extents,
        chunks,
        *call.activation.numbers(),
        DTYPE_CODES[call.dtype],
        *place(call.dy),
    )
