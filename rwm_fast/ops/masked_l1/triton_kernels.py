"""masked_l1 in Triton. Notation of autograd.py: h, g, a, m.

The kernels see images [N, C, S] and a mask value for each (n, s). That is the planar order; a mask
of the images' own shape is N = C = 1; in channels_last the images are one row of elements, N = C =
1, and `SHARE` = C neighbours have one mask value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwm_fast.ops import _triton
from rwm_fast.ops._backend import Call
from rwm_fast.ops._triton_jit import sign_
from rwm_fast.ops.masked_l1.call import Backward, Forward, MaskBackward, extents

_BLOCK = 1024  # spots a program looks at together: 16 bytes a thread in half precision
_MAX_PROGRAMS = 4096  # of the forward pass; one partial sum each

# ---- kernels


@triton.jit
def place_(block, spots, SHARE: tl.constexpr, BLOCK: tl.constexpr):
    """Image, offsets in the image and in the mask, and what exists, of one block of spots."""
    per_image = tl.cdiv(spots, BLOCK)
    n = block // per_image
    start = (block % per_image).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    # One 64-bit division a block; the lanes divide by a small constant in 32 bits.
    first = start // SHARE
    shared = first + ((start - first * SHARE).to(tl.int32) + lane) // SHARE
    return n.to(tl.int64), start + lane, shared, start + lane < spots


@triton.jit
def load_(pointer, at, here):
    """float32; 0 where there is nothing, which adds nothing to a sum."""
    return tl.load(pointer + at, mask=here, other=0).to(tl.float32)


@triton.jit
def forward_kernel(h, g, a, m, signs, partials, blocks, channels, spots, SHARE: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """partials[program] = the terms of every so many-th block; signs as `call.encode`."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(program, blocks, tl.num_programs(0)):
        n, spot, shared, here = place_(block, spots, SHARE, BLOCK)
        mask = load_(m, n * spots + shared, here)
        for c in range(0, channels):
            at = (n * channels + c) * spots + spot
            here_h = load_(h, at, here)
            inside = here_h - load_(g, at, here)
            outside = here_h - load_(a, at, here)
            total += tl.abs(mask) * tl.abs(inside) + tl.abs(1 - mask) * tl.abs(outside)
            if signs is not None:
                code = (sign_(inside) + 1) + 4 * (sign_(outside) + 1)
                tl.store(signs + at, code.to(tl.uint8), mask=here)
    tl.store(partials + program, tl.sum(total, 0))


@triton.jit
def mean_kernel(partials, loss, count, size, BLOCK: tl.constexpr):
    """loss = Σ partials / size, in index order, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(partials + at, mask=at < count, other=0).to(tl.float64)
    tl.store(loss, (tl.sum(total, 0) / tl.cast(size, tl.float64)).to(tl.float32))


@triton.jit
def backward_kernel(dloss, signs, m, dh, dg, da, channels, spots, size, SHARE: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """dh = c(|m|s₁ + |1−m|s₂), dg = −c|m|s₁, da = −c|1−m|s₂; those that are None are not wanted."""
    n, spot, shared, here = place_(tl.program_id(0), spots, SHARE, BLOCK)
    mask = load_(m, n * spots + shared, here)
    scale = tl.load(dloss) / tl.cast(size, tl.float32)
    p_size, q_size = scale * tl.abs(mask), scale * tl.abs(1 - mask)
    for c in range(0, channels):
        at = (n * channels + c) * spots + spot
        code = tl.load(signs + at, mask=here, other=5).to(tl.int32)
        p = p_size * ((code & 3) - 1).to(tl.float32)
        q = q_size * ((code >> 2) - 1).to(tl.float32)
        if dh is not None:
            tl.store(dh + at, (p + q).to(dh.dtype.element_ty), mask=here)
        if dg is not None:
            tl.store(dg + at, (-p).to(dg.dtype.element_ty), mask=here)
        if da is not None:
            tl.store(da + at, (-q).to(da.dtype.element_ty), mask=here)


@triton.jit
def mask_backward_kernel(dloss, h, g, a, m, dm, channels, spots, channel_stride, spot_stride, size,
                         BLOCK: tl.constexpr):  # fmt: skip
    """dm = c·Σ_c (sign(m)|h − g| − sign(1 − m)|h − a|), one lane a mask value."""
    n, spot, _, here = place_(tl.program_id(0), spots, 1, BLOCK)
    mask = load_(m, n * spots + spot, here)
    total = tl.zeros((BLOCK,), tl.float32)
    at = n * channels * spots + spot * spot_stride
    for _ in range(0, channels):
        here_h = load_(h, at, here)
        p = sign_(mask) * tl.abs(here_h - load_(g, at, here))
        total += p - sign_(1 - mask) * tl.abs(here_h - load_(a, at, here))
        at += channel_stride
    scale = tl.load(dloss) / tl.cast(size, tl.float32)
    tl.store(dm + n * spots + spot, (scale * total).to(dm.dtype.element_ty), mask=here)


# ---- the backend


def supports(call: Call) -> str | None:
    """Any layout, in half precision or float32."""
    return _triton.supports(call)


def _extents(images: Tensor, mask: Tensor, order: torch.memory_format) -> tuple[int, int, int, int]:
    """Images, channels and spots as the kernels see them, and neighbours with one mask value."""
    n, c, spots, last = extents(images.shape, mask.shape, order)
    return (1, 1, images.numel(), c) if last else (n, c, spots, 1)


def forward(call: Forward) -> None:
    """The loss, and the signs if asked for, in one pass; a second launch adds up partial sums."""
    h = call.hybrid
    images, channels, spots, share = _extents(h, call.mask, call.order)
    blocks = images * _triton.cdiv(spots, _BLOCK)
    programs = min(blocks, _MAX_PROGRAMS)
    partials = call.loss.new_empty(programs)
    arguments = (*call[:4], call.signs, partials, blocks, channels, spots)
    _triton.launch(forward_kernel, programs, h.device, *arguments, SHARE=share, BLOCK=_BLOCK)
    loss, size = call.loss, h.numel()
    _triton.launch(mean_kernel, 1, h.device, partials, loss, programs, size, BLOCK=_BLOCK)


def backward(call: Backward) -> None:
    """The images' gradients that are wanted, in one pass."""
    signs = call.signs
    images, channels, spots, share = _extents(signs, call.mask, call.order)
    arguments = (call.dloss, signs, call.mask, *call.grads, channels, spots, signs.numel())
    programs = images * _triton.cdiv(spots, _BLOCK)
    _triton.launch(backward_kernel, programs, signs.device, *arguments, SHARE=share, BLOCK=_BLOCK)


def mask_backward(call: MaskBackward) -> None:
    """The mask's gradient, summed over the channels that share it."""
    h = call.hybrid
    images, channels, spots, last = extents(h.shape, call.mask.shape, call.order)
    strides = (1, channels) if last else (spots, 1)
    arguments = (*call[:6], channels, spots, *strides, h.numel())
    programs = images * _triton.cdiv(spots, _BLOCK)
    _triton.launch(mask_backward_kernel, programs, h.device, *arguments, BLOCK=_BLOCK)
