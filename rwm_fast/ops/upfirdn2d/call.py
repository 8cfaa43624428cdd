"""The call of upfirdn2d, checked here and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _memory
from rwm_fast.ops.upfirdn2d.geometry import filter_size, output_size

OP = "upfirdn2d"


class Call(NamedTuple):
    """y = x upsampled by zeros, padded or cropped, filtered, every down-th sample of it."""

    x: Tensor  # [N, C, H, W], dense in `order`
    filter: Tensor | None  # [fw] or [fh, fw], dense, of any floating dtype
    y: Tensor  # [N, C, oh, ow], to be written
    up: Sequence[int]  # x, y
    down: Sequence[int]
    padding: Sequence[int]  # x before, x after, y before, y after
    flip: bool
    gain: float
    order: torch.memory_format
    device: torch.device
    dtype: torch.dtype


def call_of(
    x: Tensor,
    filter: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> Call:
    """The call; raises TypeError or ValueError where an argument does not fit."""
    _check.floating(OP, "x", x)
    shape, device, dtype = x.shape, x.device, x.dtype
    if len(shape) != 4 or len(up) != 2 or len(down) != 2 or len(padding) != 4:
        _check.require(len(shape) == 4, OP, "x must be [N, C, H, W]", x)
        numbers = f"{len(up)}, {len(down)} and {len(padding)}"
        rule = "up, down and padding must be two, two and four numbers"
        _check.require(False, OP, rule, numbers)
    if filter is not None:
        _check.tensor(OP, "filter", filter)
        if filter.ndim not in (1, 2) or not filter.numel():
            rule = "filter must be [F] or [FH, FW] with at least one tap"
            _check.require(False, OP, rule, filter)
        filter = _memory.dense(OP, "filter", filter, device, filter.shape, _check.FLOATS)
    if up[0] < 1 or up[1] < 1 or down[0] < 1 or down[1] < 1:
        _check.require(False, OP, "factors must be at least 1", f"{up} and {down}")
    h, w = output_size(shape[2], shape[3], filter_size(filter), up, down, padding)
    if h < 0 or w < 0:  # the gradient of an image without pixels has none either
        rule = "the padded image must be at least as large as the filter"
        _check.require(False, OP, rule, x)
    size = (shape[0], shape[1], h, w)
    x, order = _memory.in_own_order(OP, "x", x)
    y = torch.empty(size, dtype=dtype, device=device, memory_format=order)
    return Call(x, filter, y, up, down, padding, flip, gain, order, device, dtype)


@functools.lru_cache(256)
def resampling_record(
    module: ModuleType,
    size: Sequence[int],
    out_size: Sequence[int],
    settings: tuple[int, ...],  # up x, y, down x, y, padding before x, y, taps y, x
    order: torch.memory_format,
    dtype: torch.dtype,
) -> Any:
    """The same without addresses, for the C++ and the CUDA module: csrc/upfirdn2d/records.h."""
    n, c, *inside = size
    images = (n, c) if order is _memory.LAST else (n * c, 1)
    up_x, up_y, down_x, down_y, pad_x, pad_y, *taps = settings
    factors = (up_y, up_x), (down_y, down_x), (pad_y, pad_x), taps
    code = _memory.DTYPE_CODES[dtype]
    return module.Resampling(*images, inside, out_size[2:], *factors, code)
