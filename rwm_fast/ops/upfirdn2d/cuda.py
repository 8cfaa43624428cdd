"""upfirdn2d in CUDA (csrc/upfirdn2d/cuda.cu), with an epilogue for layers that need one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _backend, _extension
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import LAST, NOTHING, Epilogue, addresses, epilogue_record, place
from rwm_fast.ops.upfirdn2d.call import Call, resampling_record

_STRIP_TAPS = 4  # kTaps in csrc/upfirdn2d/kernel.cuh


def supports(call: _backend.Call) -> str | None:
    """Everything the operator takes, where the CUDA module was built and there is a GPU."""
    return _extension.why_not_cuda()


def forward(call: Call) -> None:
    """Upsample with zeros, pad or crop, filter, keep every down-th."""
    taps = correlation(call.x, call.filter, call.flip, call.gain)
    run(call.x, call.y, call.order, taps, call.up, call.down, call.padding)


def run(
    x: Tensor,
    y: Tensor,
    order: torch.memory_format,
    taps: tuple[Tensor, ...],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    epilogue: Epilogue = NOTHING,
) -> None:
    """Write y from x, both dense in one order; an epilogue only where `serves` says yes."""
    module, sizes = _extension.cuda(), (taps[-1].shape[0], taps[0].shape[-1])
    settings = (*up, *down, padding[0], padding[2], *sizes)
    resampling = resampling_record(module, x.shape, y.shape, settings, order, x.dtype)
    if serves(taps, up, down):
        after = epilogue_record(module, epilogue)
        rows = _rows(x, y, order)
        module.upfirdn2d_separable(resampling, *addresses(x, *taps, y), rows, after, *place(x))
    else:
        kernel = taps[0] if len(taps) == 1 else taps[1].outer(taps[0])  # [fh, fw]
        module.upfirdn2d_general(resampling, *addresses(x, kernel, y), *place(x))


def correlation(
    x: Tensor, filter: Tensor | None, flip_filter: bool, gain: float
) -> tuple[Tensor, Tensor] | tuple[Tensor]:
    """Taps of a correlation with the gain in them: along x and along y, or in two dimensions."""
    dtype = accumulator(x.dtype)
    taps = x.new_ones(1, dtype=dtype) if filter is None else filter.to(dtype)
    taps = taps if flip_filter else taps.flip(tuple(range(taps.ndim)))
    scaled = taps if gain == 1 else taps * gain
    return (taps.contiguous(), scaled.contiguous()) if taps.ndim == 1 else (scaled.contiguous(),)


def serves(taps: tuple[Tensor, ...], up: Sequence[int], down: Sequence[int]) -> bool:
    """Whether the fast kernels do: separable, up to 4 taps, up 2, down 2 or neither, no float64."""
    if len(taps) == 1 or len(taps[0]) > _STRIP_TAPS or taps[0].dtype == torch.float64:
        return False
    return up[0] == up[1] and down[0] == down[1] and (up[0], down[0]) in ((1, 1), (2, 1), (1, 2))


def _rows(x: Tensor, y: Tensor, order: torch.memory_format) -> int:
    """Output rows of a thread; even.

    Long strips read fewer rows twice, but a GPU wants about two thousand threads on each of its
    hundred or so multiprocessors.
    """
    width = 16 // x.element_size() if order is LAST else 1
    rows = 16
    while rows > 2 and y.numel() // width // rows < 1 << 18:
        rows //= 2
    return rows
