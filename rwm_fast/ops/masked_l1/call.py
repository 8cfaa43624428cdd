"""The three calls of masked_l1: their arguments are checked here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _memory
from rwm_fast.ops._check import accumulator

OP = "masked_l1"


class Forward(NamedTuple):
    """The loss, and the signs of h − g and h − a (`encode`)."""

    hybrid: Tensor  # [N, C, H, W], dense in `order`
    inside: Tensor
    outside: Tensor
    mask: Tensor  # [N, 1 or C, H, W], dense in `order`; the images' dtype, or float32 beside half
    loss: Tensor  # [], in the accumulator's dtype, to be written
    signs: Tensor | None  # uint8 like hybrid, to be written; None where not asked for
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


class Backward(NamedTuple):
    """dh = c(|m|s₁ + |1−m|s₂), dg = −c|m|s₁, da = −c|1−m|s₂, c = dL/|I|."""

    dloss: Tensor  # [], in the accumulator's dtype
    signs: Tensor  # uint8 [N, C, H, W], dense in `order`
    mask: Tensor
    grads: tuple[Tensor | None, Tensor | None, Tensor | None]  # of h, g, a, to be written, or None
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


class MaskBackward(NamedTuple):
    """dm = c(sign(m)|h − g| − sign(1 − m)|h − a|), summed over channels that share the mask."""

    dloss: Tensor
    hybrid: Tensor
    inside: Tensor
    outside: Tensor
    mask: Tensor
    dmask: Tensor  # like mask, to be written
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


def extents(
    shape: Sequence[int], mask_shape: Sequence[int], order: torch.memory_format
) -> tuple[int, int, int, bool]:
    """Images, channels and spots as the kernels see them, and whether channels are innermost."""
    n, c, h, w = shape
    if mask_shape[1] == c:
        return 1, 1, n * c * h * w, False
    return (1, c, n * h * w, True) if order is torch.channels_last else (n, c, h * w, False)


@functools.lru_cache(256)
def images_record(
    module: ModuleType,
    shape: Sequence[int],
    mask_shape: Sequence[int],
    order: torch.memory_format,
    dtype: torch.dtype,
    mask_dtype: torch.dtype,
) -> Any:
    """The same for the C++ and the CUDA module: `MaskedImages` of csrc/masked_l1/records.h."""
    codes = _memory.DTYPE_CODES[dtype], _memory.DTYPE_CODES[mask_dtype]
    return module.MaskedImages(*extents(shape, mask_shape, order), *codes)


def encode(sign_inside: Tensor, sign_outside: Tensor) -> Tensor:
    """One byte an element: bits 0–1 hold sign(h − g) + 1, bits 2–3 hold sign(h − a) + 1."""
    return (sign_inside + 1).to(torch.uint8) | ((sign_outside + 1).to(torch.uint8) << 2)


def decode(signs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two signs, −1, 0 or 1, in the dtype asked for."""
    return (signs & 3).to(dtype) - 1, (signs >> 2).to(dtype) - 1


def forward_call(h: Tensor, g: Tensor, a: Tensor, m: Tensor, save: bool) -> Forward:
    """The forward call; raises TypeError or ValueError where an argument does not fit."""
    h, g, a, m, order, device, dtype = _arguments(h, g, a, m)
    loss = h.new_empty((), dtype=accumulator(dtype))
    signs = torch.empty_like(h, dtype=torch.uint8, memory_format=order) if save else None
    return Forward(h, g, a, m, loss, signs, order, device, dtype)


def backward_call(
    dloss: Tensor, signs: Tensor, m: Tensor, dtype: torch.dtype, needs: Sequence[bool]
) -> Backward:
    """The images' gradients, in the dtype given; raises where an argument does not fit."""
    _check.tensor(OP, "signs", signs)
    if signs.ndim != 4 or dtype not in _check.FLOATS or len(needs) != 3:
        _check.require(signs.ndim == 4, OP, "signs must be [N, C, H, W]", signs)
        _check.require(len(needs) == 3, OP, "needs must be three truth values", str(needs))
        _check.require(False, OP, "dtype must be a floating one", str(dtype))
    if signs.dtype != torch.uint8:
        _check.require(False, OP, "signs must be uint8", signs)
    device, (signs, order) = signs.device, _memory.in_own_order(OP, "signs", signs)
    m = _mask(m, signs.shape, device, dtype, order)
    dloss = _memory.dense(OP, "dloss", dloss, device, (), (accumulator(dtype),))
    dh, dg, da = needs
    grads = (
        torch.empty_like(signs, dtype=dtype, memory_format=order) if dh else None,
        torch.empty_like(signs, dtype=dtype, memory_format=order) if dg else None,
        torch.empty_like(signs, dtype=dtype, memory_format=order) if da else None,
    )
    return Backward(dloss, signs, m, grads, order, device, dtype)


def mask_backward_call(dloss: Tensor, h: Tensor, g: Tensor, a: Tensor, m: Tensor) -> MaskBackward:
    """The mask's gradient; raises TypeError or ValueError where an argument does not fit."""
    h, g, a, m, order, device, dtype = _arguments(h, g, a, m)
    dloss = _memory.dense(OP, "dloss", dloss, device, (), (accumulator(dtype),))
    dm = torch.empty_like(m, memory_format=order)
    return MaskBackward(dloss, h, g, a, m, dm, order, device, dtype)


def _arguments(h: Tensor, g: Tensor, a: Tensor, m: Tensor) -> tuple:
    """Three images of one shape and dtype, and their mask, dense; order, device and dtype."""
    _check.floating(OP, "hybrid", h)
    shape, device, dtype = h.shape, h.device, h.dtype
    if len(shape) != 4:
        _check.require(False, OP, "hybrid must be [N, C, H, W]", h)
    h, order = _memory.in_own_order(OP, "hybrid", h)
    g = _memory.dense(OP, "inside", g, device, shape, (dtype,), order)
    a = _memory.dense(OP, "outside", a, device, shape, (dtype,), order)
    return h, g, a, _mask(m, shape, device, dtype, order), order, device, dtype


def _mask(
    m: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    order: torch.memory_format,
) -> Tensor:
    _check.tensor(OP, "mask", m)
    if m.ndim == 4 and m.shape[1] == 1:
        shape = (shape[0], 1, shape[2], shape[3])
    dtypes = (dtype,) if dtype.itemsize > 2 else (dtype, torch.float32)
    return _memory.dense(OP, "mask", m, device, shape, dtypes, order)
