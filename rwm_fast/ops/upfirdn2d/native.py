"""C++ on the CPU and, through `native_cuda`, CUDA: one read and one write of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _extension, _layout
from rwm_fast.ops.upfirdn2d import native_cuda
from rwm_fast.ops.upfirdn2d.reference import filter_size, output_size


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
    if x.is_cuda:
        return native_cuda.forward(x, filter, up, down, padding, flip_filter, gain)
    order = _layout.memory_format(x)
    x = x.contiguous(memory_format=order)
    taps = x.new_ones(1) if filter is None else filter
    taps = taps.to(torch.float64).contiguous()
    size = output_size(*x.shape[2:], filter, up, down, padding)
    rule = "the padded image must be at least as large as the filter"
    _check.require(min(size) > 0 and min(*up, *down) > 0, "upfirdn2d", rule, x)
    y = _layout.empty(x, (*x.shape[:2], *size))
    _extension.cpu().upfirdn2d(
        x.data_ptr(),
        taps.data_ptr(),
        y.data_ptr(),
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
