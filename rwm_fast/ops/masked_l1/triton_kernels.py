"""masked_l1 in Triton. Notation of autograd.py: h, g, a, m.

The kernels see images [N, C, S] and a mask value for each (n, s). That is the planar order; a mask
of the images' own shape is N = C = 1; in channels_last the images are one row of elements, N = C =
1, and `SHARE` = C neighbours have one mask value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwm_fast.ops import _check, _layout, _triton
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import dense
from rwm_fast.ops._triton_jit import sign_

OP = "masked_l1"
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
    """partials[program] = the terms of every so many-th block; signs as `reference.encode`."""
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


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any layout, in half precision or float32."""
    return _triton.supports(tensors)


def _images(order: torch.memory_format, **images: Tensor) -> list[Tensor]:
    """Three images of one shape, dtype and device."""
    first = images["hybrid"]
    _check.require(first.ndim == 4, OP, "hybrid must be [N, C, H, W]", first)
    about = (first.device, first.shape, _triton.DTYPES, order)
    rule = f"the images must be {str(first.dtype).removeprefix('torch.')}"
    for x in images.values():
        _check.require(x.dtype == first.dtype, OP, rule, x)
    return [dense(OP, name, x, *about) for name, x in images.items()]


def _mask(mask: Tensor, like: Tensor, dtype: torch.dtype, order: torch.memory_format) -> Tensor:
    """The mask beside images of one dtype: [N, 1, H, W] or [N, C, H, W]."""
    _check.tensor(OP, "mask", mask)
    n, c, h, w = like.shape
    shape = (n, 1 if mask.ndim == 4 and mask.shape[1] == 1 else c, h, w)
    return dense(OP, "mask", mask, like.device, shape, (dtype, torch.float32), order)


def _shape(like: Tensor, mask: Tensor, order: torch.memory_format) -> tuple[int, int, int, int]:
    """Images, channels and spots as the kernels see them, and neighbours with one mask value."""
    n, c, h, w = like.shape
    if mask.shape[1] == c:
        return 1, 1, like.numel(), 1
    return (1, 1, like.numel(), c) if order is torch.channels_last else (n, c, h * w, 1)


def forward(
    hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the signs if asked for, in one pass; a second launch adds up partial sums."""
    _check.floating(OP, "hybrid", hybrid)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    signs = _layout.empty(hybrid, h.shape if save else (0,), torch.uint8)
    if not h.numel():
        return h.new_full((), float("nan"), dtype=torch.float32), signs
    images, channels, spots, share = _shape(h, m, order)
    blocks = images * _triton.cdiv(spots, _BLOCK)
    programs = min(blocks, _MAX_PROGRAMS)
    partials = h.new_empty(programs, dtype=torch.float32)
    loss = h.new_empty((), dtype=torch.float32)
    arguments = (h, g, a, m, signs if save else None, partials, blocks, channels, spots)
    _triton.launch(forward_kernel, programs, h.device, *arguments, SHARE=share, BLOCK=_BLOCK)
    arguments = (partials, loss, programs, h.numel())
    _triton.launch(mean_kernel, 1, h.device, *arguments, BLOCK=_BLOCK)
    return loss, signs


def backward(
    dloss: Tensor, signs: Tensor, mask: Tensor, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; the others are empty."""
    _check.tensor(OP, "signs", signs)
    _check.require(signs.ndim == 4, OP, "signs must be [N, C, H, W]", signs)
    _check.require(dtype in _triton.DTYPES, OP, "dtype must not be float64", str(dtype))
    _check.require(len(needs) == 3, OP, "needs must be three truth values", str(needs))
    order = _layout.memory_format(signs)
    grads = [_layout.empty(signs, signs.shape if need else (0,), dtype) for need in needs]
    s = dense(OP, "signs", signs, signs.device, signs.shape, (torch.uint8,), order)
    m = _mask(mask, s, dtype, order)
    dloss = dense(OP, "dloss", dloss, s.device, (), (accumulator(dtype),))
    if s.numel() and any(needs):
        images, channels, spots, share = _shape(s, m, order)
        wanted = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
        arguments = (dloss, s, m, *wanted, channels, spots, s.numel())
        programs = images * _triton.cdiv(spots, _BLOCK)
        _triton.launch(backward_kernel, programs, s.device, *arguments, SHARE=share, BLOCK=_BLOCK)
    return tuple(grads)


def mask_backward(
    dloss: Tensor, hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor
) -> Tensor:
    """The mask's gradient, summed over the channels that share it."""
    _check.floating(OP, "hybrid", hybrid)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    dloss = dense(OP, "dloss", dloss, h.device, (), (accumulator(h.dtype),))
    dm = torch.empty_like(m)
    if h.numel():
        images, channels, spots, share = _shape(h, m, order)
        strides = (spots, 1)
        if share > 1:  # channels_last: the sum walks over neighbours
            channels, spots, strides = share, spots // share, (1, share)
        arguments = (dloss, h, g, a, m, dm, channels, spots, *strides, h.numel())
        programs = images * _triton.cdiv(spots, _BLOCK)
        _triton.launch(mask_backward_kernel, programs, h.device, *arguments, BLOCK=_BLOCK)
    return dm
