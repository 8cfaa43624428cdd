"""masked_l1 in C++ on the CPU (csrc/masked_l1/cpu.cpp)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import DTYPE_CODES, addresses
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, extents


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Forward) -> None:
    """The loss, and the signs if asked for, in one pass."""
    h, g, a, mask, loss, signs, order, _, dtype = call
    _extension.cpu().masked_l1_forward(
        *addresses(h, g, a, mask, signs, loss),
        *extents(h, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
    )


def backward(call: Backward) -> None:
    """The images' gradients that are wanted, in one pass."""
    dloss, signs, mask, grads, order, _, dtype = call
    _extension.cpu().masked_l1_backward(
        *addresses(dloss, signs, mask, *grads),
        *extents(signs, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
    )


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient, summed over the channels that share it."""
    dloss, h, g, a, mask, dmask, order, _, dtype = call
    _extension.cpu().masked_l1_mask_backward(
        *addresses(dloss, h, g, a, mask, dmask),
        *extents(h, mask, order),
        DTYPE_CODES[dtype],
        DTYPE_CODES[mask.dtype],
    )
