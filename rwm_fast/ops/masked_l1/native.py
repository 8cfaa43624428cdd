"""masked_l1 in C++ on the CPU (csrc/masked_l1/cpu.cpp) and, through `native_cuda`, in CUDA.

The C++ kernels check nothing, so every function here checks everything, every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.masked_l1 import native_cuda

OP = "masked_l1"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype and layout, where the module for the tensors' device can be used."""
    return native_cuda.supports(tensors) if tensors[0].is_cuda else _cpu.why_not()


def _shape(shape: Sequence[int], mask: Tensor, order: torch.memory_format):
    """Images, channels and spots as the kernels see them, and whether channels are innermost."""
    n, c, h, w = shape
    if mask.shape[1] == c:
        return 1, 1, n * c * h * w, False
    return (1, c, n * h * w, True) if order is torch.channels_last else (n, c, h * w, False)


def _mask(mask: Tensor, like: Tensor, dtype: torch.dtype, order: torch.memory_format) -> Tensor:
    """The mask beside images of one dtype: [N, 1, H, W] or [N, C, H, W]."""
    _check.tensor(OP, "mask", mask)
    n, c, h, w = like.shape
    shared = mask.ndim == 4 and mask.shape[1] == 1
    dtypes = (dtype, torch.float32) if dtype.itemsize == 2 else (dtype,)
    return _cpu.dense(OP, "mask", mask, (n, 1 if shared else c, h, w), dtypes, order)


def _images(order: torch.memory_format, **images: Tensor) -> list[Tensor]:
    """Three images of one shape and one dtype."""
    first = images["hybrid"]
    _check.require(first.ndim == 4, OP, "hybrid must be [N, C, H, W]", first)
    shape, dtype = first.shape, first.dtype
    return [_cpu.dense(OP, name, x, shape, (dtype,), order) for name, x in images.items()]


def forward(
    hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the signs if asked for, in one pass."""
    _check.floating(OP, "hybrid", hybrid)
    if hybrid.is_cuda:
        return native_cuda.forward(hybrid, inside, outside, mask, save)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    signs = _layout.empty(hybrid, h.shape if save else (0,), torch.uint8)
    if not h.numel():
        return h.new_full((), float("nan"), dtype=accumulator(h.dtype)), signs
    loss = h.new_empty((), dtype=accumulator(h.dtype))
    _cpu.module().masked_l1_forward(
        *map(address, (h, g, a, m, signs if save else None, loss)),
        *_shape(h.shape, m, order),
        DTYPE_CODES[h.dtype],
        DTYPE_CODES[m.dtype],
    )
    return loss, signs


def backward(
    dloss: Tensor, signs: Tensor, mask: Tensor, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that are needed; the others are empty."""
    _check.tensor(OP, "signs", signs)
    if signs.is_cuda:
        return native_cuda.backward(dloss, signs, mask, dtype, needs)
    _check.require(signs.ndim == 4, OP, "signs must be [N, C, H, W]", signs)
    _check.require(dtype in _check.FLOATS, OP, "dtype must be a floating one", str(dtype))
    _check.require(len(needs) == 3, OP, "needs must be three truth values", str(needs))
    order = _layout.memory_format(signs)
    grads = [_layout.empty(signs, signs.shape if need else (0,), dtype) for need in needs]
    s = _cpu.dense(OP, "signs", signs, signs.shape, (torch.uint8,), order)
    m = _mask(mask, s, dtype, order)
    dloss = _cpu.dense(OP, "dloss", dloss, (), (accumulator(dtype),))
    if s.numel():
        _cpu.module().masked_l1_backward(
            *map(address, (dloss, s, m)),
            *(address(g) if need else 0 for g, need in zip(grads, needs, strict=True)),
            *_shape(s.shape, m, order),
            DTYPE_CODES[dtype],
            DTYPE_CODES[m.dtype],
        )
    return tuple(grads)


def mask_backward(
    dloss: Tensor, hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor
) -> Tensor:
    """The mask's gradient, summed over the channels that share it."""
    _check.floating(OP, "hybrid", hybrid)
    if hybrid.is_cuda:
        return native_cuda.mask_backward(dloss, hybrid, inside, outside, mask)
    order = _layout.memory_format(hybrid)
    h, g, a = _images(order, hybrid=hybrid, inside=inside, outside=outside)
    m = _mask(mask, h, h.dtype, order)
    dloss = _cpu.dense(OP, "dloss", dloss, (), (accumulator(h.dtype),))
    dm = torch.empty_like(m)
    if h.numel():
        _cpu.module().masked_l1_mask_backward(
            *map(address, (dloss, h, g, a, m, dm)),
            *_shape(h.shape, m, order),
            DTYPE_CODES[h.dtype],
            DTYPE_CODES[m.dtype],
        )
    return dm
