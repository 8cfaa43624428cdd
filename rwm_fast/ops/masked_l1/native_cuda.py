"""masked_l1 in CUDA (csrc/masked_l1/cuda.cu); `native` comes here with CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES

OP = "masked_l1"
_MAX_BLOCKS = 4096  # kMaxBlocks in csrc/masked_l1/kernel.cuh


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype and layout, where the CUDA module was built and there is a GPU."""
    return _cuda.why_not()


def _shape(like: Tensor, mask: Tensor, order: torch.memory_format) -> tuple[int, int, int, bool]:
    """Images, channels and spots as the kernels see them, and whether channels are innermost."""
    n, c, h, w = like.shape
    if mask.shape[1] == c:
        return 1, 1, like.numel(), False
    return (1, c, n * h * w, True) if order is torch.channels_last else (n, c, h * w, False)


def _mask(mask: Tensor, like: Tensor, dtype: torch.dtype, order: torch.memory_format) -> Tensor:
    """The mask beside images of one dtype: [N, 1, H, W] or [N, C, H, W]."""
    _check.tensor(OP, "mask", mask)
    n, c, h, w = like.shape
    shape = (n, 1 if mask.ndim == 4 and mask.shape[1] == 1 else c, h, w)
    dtypes = (dtype, torch.float32) if dtype.itemsize == 2 else (dtype,)
    return _cuda.dense(OP, "mask", mask, like.device, shape, dtypes, order)


def _images(order: torch.memory_format, **images: Tensor) -> list[Tensor]:
    """Three images of one shape, dtype and device."""
    first = images["hybrid"]
    _check.require(first.ndim == 4, OP, "hybrid must be [N, C, H, W]", first)
    about = (first.device, first.shape, (first.dtype,), order)
    return [_cuda.dense(OP, name, x, *about) for name, x in images.items()]


def forward(
    hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the signs if asked for, in one launch."""
    _check.floating(OP, "hybrid", hybrid)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    signs = _layout.empty(hybrid, h.shape if save else (0,), torch.uint8)
    dtype = accumulator(h.dtype)
    if not h.numel():
        return h.new_full((), float("nan"), dtype=dtype), signs
    loss, partials = h.new_empty((), dtype=dtype), h.new_empty(_MAX_BLOCKS, dtype=dtype)
    ticket = _cuda.ticket(h)
    _cuda.module().masked_l1_forward(
        *map(address, (h, g, a, m, signs if save else None, partials, ticket, loss)),
        *_shape(h, m, order),
        DTYPE_CODES[h.dtype],
        DTYPE_CODES[m.dtype],
        *_cuda.place(h),
    )
    return loss, signs


def backward(
    dloss: Tensor, signs: Tensor, mask: Tensor, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; the others are empty."""
    _check.tensor(OP, "signs", signs)
    _check.require(signs.ndim == 4, OP, "signs must be [N, C, H, W]", signs)
    _check.require(dtype in _check.FLOATS, OP, "dtype must be a floating one", str(dtype))
    _check.require(len(needs) == 3, OP, "needs must be three truth values", str(needs))
    order = _layout.memory_format(signs)
    grads = [_layout.empty(signs, signs.shape if need else (0,), dtype) for need in needs]
    s = _cuda.dense(OP, "signs", signs, signs.device, signs.shape, (torch.uint8,), order)
    m = _mask(mask, s, dtype, order)
    dloss = _cuda.dense(OP, "dloss", dloss, s.device, (), (accumulator(dtype),))
    if s.numel():
        _cuda.module().masked_l1_backward(
            *map(address, (dloss, s, m)),
            *(address(g) if need else 0 for g, need in zip(grads, needs, strict=True)),
            *_shape(s, m, order),
            DTYPE_CODES[dtype],
            DTYPE_CODES[m.dtype],
            *_cuda.place(s),
        )
    return tuple(grads)


def mask_backward(
    dloss: Tensor, hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor
) -> Tensor:
    """The mask's gradient, summed over the channels that share it."""
    _check.floating(OP, "hybrid", hybrid)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    dloss = _cuda.dense(OP, "dloss", dloss, h.device, (), (accumulator(h.dtype),))
    dm = torch.empty_like(m)
    if h.numel():
        _cuda.module().masked_l1_mask_backward(
            *map(address, (dloss, h, g, a, m, dm)),
            *_shape(h, m, order),
            DTYPE_CODES[h.dtype],
            DTYPE_CODES[m.dtype],
            *_cuda.place(h),
        )
    return dm
