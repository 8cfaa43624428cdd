"""masked_l1 in CUDA (csrc/masked_l1/cuda.cu)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import addresses, place
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, images_record

_MAX_BLOCKS = 4096  # kMaxBlocks in csrc/masked_l1/kernel.cuh
_WORDS = 4 + 2 * _MAX_BLOCKS  # the ticket in 16 bytes, then partial sums of up to 8 bytes each


def supports(call: Call) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def forward(call: Forward) -> None:
    """The loss, and the signs if asked for, in one launch."""
    h, g, a, mask, loss, signs, order, _, dtype = call
    module = _extension.cuda()
    images = images_record(module, h.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_forward(
        images, *addresses(h, g, a, mask, signs, loss, _workspace(h)), *place(h)
    )


def backward(call: Backward) -> None:
    """The images' gradients that are wanted, in one launch."""
    dloss, signs, mask, grads, order, _, dtype = call
    module = _extension.cuda()
    images = images_record(module, signs.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_backward(images, *addresses(dloss, signs, mask, *grads), *place(signs))


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient, summed over the channels that share it."""
    dloss, h, g, a, mask, dmask, order, _, dtype = call
    module = _extension.cuda()
    images = images_record(module, h.shape, mask.shape, order, dtype, mask.dtype)
    module.masked_l1_mask_backward(images, *addresses(dloss, h, g, a, mask, dmask), *place(h))


def _workspace(x: Tensor) -> Tensor:
    """A ticket for the blocks of a launch to count in, and their partial sums.

    The ticket is 0, and the last block sets it back. Launches on a stream follow one another and
    share a workspace; a captured graph may be replayed on any stream, so it has its own.
    """
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(_WORDS, dtype=torch.int32, device=x.device)
    return _workspace_of_stream(x.device, place(x)[1])


@functools.cache
def _workspace_of_stream(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(_WORDS, dtype=torch.int32, device=device)
