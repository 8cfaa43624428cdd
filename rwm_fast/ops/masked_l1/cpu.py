"""masked_l1 in C++ on the CPU (csrc/masked_l1/cpu.cpp)."""

from __future__ import annotations

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import addresses
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, images_record


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Forward) -> None:
    """The loss, and the signs if asked for, in one pass."""
    h, g, a, mask, loss, signs, order, _, dtype = call
    module = _extension.cpu()
    images = images_record(module, h.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_forward(images, *addresses(h, g, a, mask, signs, loss))


def backward(call: Backward) -> None:
    """The images' gradients that are wanted, in one pass."""
    dloss, signs, mask, grads, order, _, dtype = call
    module = _extension.cpu()
    images = images_record(module, signs.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_backward(images, *addresses(dloss, signs, mask, *grads))


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient, summed over the channels that share it."""
    dloss, h, g, a, mask, dmask, order, _, dtype = call
    module = _extension.cpu()
    images = images_record(module, h.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_mask_backward(images, *addresses(dloss, h, g, a, mask, dmask))
