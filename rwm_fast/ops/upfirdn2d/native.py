"""C++ on the CPU and, through `native_cuda`, CUDA: one read and one write of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cpu, _extension, _layout
from rwm_fast.ops._cpu import address
from rwm_fast.ops.upfirdn2d import native_cuda
from rwm_fast.ops.upfirdn2d.reference import filter_size, output_size

OP = "upfirdn2d"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any floating dtype, layout, factor and filter, where the device's module can be used."""
    if tensors[0].is_cuda:
        return native_cuda.supports(tensors)
    if any(t is not None and t.device.type != "cpu" for t in tensors):
        return "the tensors are on several devices"
    return _extension.why_not_cpu()


def forward(
    x: Tensor,  # [N, C, H, W]
    filter: Tensor | None,  # [fw] or [fh, fw]
    up: Sequence[int],  # x, y
    down: Sequence[int],
    padding: Sequence[int],  # x before, x after, y before, y after
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Upsample with zeros, pad or crop, filter, keep every down-th, in x's memory format."""
    _check.floating(OP, "x", x)
    if x.is_cuda:
        return native_cuda.forward(x, filter, up, down, padding, flip_filter, gain)
    _check.require(x.ndim == 4, OP, "x must be [N, C, H, W]", x)
    order = _layout.memory_format(x)
    x = _cpu.dense(OP, "x", x, x.shape, (x.dtype,), order)
    taps = x.new_ones(1) if filter is None else filter
    _check.floating(OP, "filter", taps)
    _check.require(taps.ndim in (1, 2), OP, "filter must be [F] or [FH, FW]", taps)
    taps = _cpu.dense(OP, "filter", taps.to(torch.float64), taps.shape, (torch.float64,))
    _check.require(min(*up, *down) > 0, OP, "factors must be at least 1", f"{up} and {down}")
    size = output_size(*x.shape[2:], filter, up, down, padding)
    rule = "the padded image must be at least as large as the filter"
    _check.require(min(size) > 0, OP, rule, x)
    y = _layout.empty(x, (*x.shape[:2], *size))
    _extension.cpu().upfirdn2d(
        *map(address, (x, taps, y)),
        *x.shape,
        *size,
        order is torch.channels_last,
        *filter_size(filter),
        taps.ndim == 1,
        *up,
        *down,
        padding[0],
        padding[2],
        flip_filter,
        gain,
        _extension.DTYPE_CODES[x.dtype],
    )
    return y
