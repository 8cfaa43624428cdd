"""masked_l1 in CUDA (csrc/masked_l1/cuda.cu)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import DTYPE_CODES, addresses, place, ticket
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, extents

_MAX_BLOCKS = 4096  # kMaxBlocks in csrc/masked_l1/kernel.cuh


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def forward(call: Forward) -> None:
    """The loss, and the signs if asked for, in one launch."""
    h, g, a, mask, loss, signs, order, _, dtype = call
    partials = loss.new_empty(_MAX_BLOCKS)
    _extension.cuda().masked_l1_forward(
        *addresses(h, g, a, mask, signs, partials, ticket(h), loss),
        *extents(h, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
        *place(h),
    )


def backward(call: Backward) -> None:
    """The images' gradients that are wanted, in one launch."""
    dloss, signs, mask, grads, order, _, dtype = call
    _extension.cuda().masked_l1_backward(
        *addresses(dloss, signs, mask, *grads),
        *extents(signs, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
        *place(signs),
    )


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient, summed over the channels that share it."""
    dloss, h, g, a, mask, dmask, order, _, dtype = call
    _extension.cuda().masked_l1_mask_backward(
        *addresses(dloss, h, g, a, mask, dmask),
        *extents(h, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
        *place(h),
    )
