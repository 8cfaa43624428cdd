"""upfirdn2d in C++ on the CPU (csrc/upfirdn2d/cpu.cpp): one read and one write of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _backend, _extension
from rwm_fast.ops._memory import addresses
from rwm_fast.ops.upfirdn2d.call import Call, resampling_record
from rwm_fast.ops.upfirdn2d.geometry import filter_size, output_size


def supports(call: _backend.Call) -> str | None:
    """Everything the operator takes, where the module can be used."""
    return _extension.why_not_cpu()


def forward(call: Call) -> None:
    """Upsample with zeros, pad or crop, filter, keep every down-th."""
    x, filter, y, up, down, padding, flip, gain, order, _, _ = call
    _run(x, y, filter, up, down, padding, flip, gain, order)


def apply(
    x: Tensor,  # [N, C, H, W], dense in `order`
    filter: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
    order: torch.memory_format,
) -> Tensor:
    """The result in the same order, for arguments that were checked already."""
    n, c, h, w = x.shape
    size = (n, c, *output_size(h, w, filter_size(filter), up, down, padding))
    y = torch.empty(size, dtype=x.dtype, memory_format=order)
    _run(x, y, filter, up, down, padding, flip, gain, order)
    return y


def _run(x, y, filter, up, down, padding, flip, gain, order) -> None:
    taps = torch.ones(1, dtype=torch.float64) if filter is None else filter.double()
    sizes, module = taps.shape, _extension.cpu()
    settings = (*up, *down, padding[0], padding[2], sizes[0], sizes[-1])
    resampling = resampling_record(module, x.shape, y.shape, settings, order, x.dtype)
    module.upfirdn2d(resampling, *addresses(x, taps, y), len(sizes) == 1, flip, gain)
