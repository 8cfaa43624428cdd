"""upfirdn2d in CUDA (csrc/upfirdn2d/cuda.cu), with an epilogue for layers that need one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _backend, _extension
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import DTYPE_CODES, LAST, NOTHING, Epilogue, addresses, place
from rwm_fast.ops.upfirdn2d.call import Call

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
    geometry = _geometry(x, y, order, padding)
    where = (DTYPE_CODES[x.dtype], *place(x))
    if serves(taps, up, down):
        factor = up[0] if up[0] > 1 else -down[0] if down[0] > 1 else 1
        rows = _rows(x, y, order)
        arguments = (*geometry, len(taps[0]), factor, rows, *epilogue_arguments(epilogue), *where)
        _extension.cuda().upfirdn2d_separable(*addresses(x, *taps, y), *arguments)
    else:
        kernel = taps[0] if len(taps) == 1 else taps[1].outer(taps[0])  # [fh, fw]
        arguments = (*geometry, kernel.shape[1], kernel.shape[0], *up, *down, *where)
        _extension.cuda().upfirdn2d_general(*addresses(x, kernel, y), *arguments)


def epilogue_arguments(e: Epilogue) -> tuple:
    """As the launchers take it; it goes with channels_last images only."""
    numbers = e.activation.numbers()
    active = numbers[:2] != (1, 1) or e.activation.clamp is not None
    return *addresses(*e[:5]), e.styles, e.noise_step, active, *numbers


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


def _geometry(
    x: Tensor, y: Tensor, order: torch.memory_format, padding: Sequence[int]
) -> tuple[int, ...]:
    """Images, channels and sizes; planes are images of one channel."""
    n, c = x.shape[:2]
    images = (n, c) if order is LAST else (n * c, 1)
    return *images, *x.shape[2:], *y.shape[2:], padding[0], padding[2]


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
