"""upfirdn2d in CUDA (csrc/upfirdn2d/cuda.cu); `native` comes here with CUDA tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _cuda, _layout
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.upfirdn2d.reference import output_size

OP = "upfirdn2d"
_STRIP_TAPS = 4  # kTaps in csrc/upfirdn2d/kernel.cuh


class Epilogue(NamedTuple):
    """act(scale ⊙ y + strength·noise + bias)·gain, clamped; all tensors in the accumulator's dtype.

    It goes with channels_last images only.
    """

    scale: Tensor | None = None  # [N, K, C]
    regions: Tensor | None = None  # [N, K, H, W]
    noise: Tensor | None = None  # [N or 1, 1, H, W]
    strength: Tensor | None = None  # []
    bias: Tensor | None = None  # [C]
    active: bool = False
    settings: tuple[float, float, float] = (1.0, 1.0, math.nan)  # slope, gain, clamp

    def arguments(self) -> tuple:
        """As the launchers take them."""
        shared = self.noise is None or self.noise.shape[0] == 1
        return (
            *map(address, (self.scale, self.regions, self.noise, self.strength, self.bias)),
            1 if self.scale is None else self.scale.shape[1],
            0 if shared else self.noise[0].numel(),
            self.active,
            *self.settings,
        )


NOTHING = Epilogue()


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any dtype, layout, factor and filter, where the CUDA module was built and there is a GPU."""
    return _cuda.why_not()


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
    _check.require(x.ndim == 4, OP, "x must be [N, C, H, W]", x)
    size = output_size(*x.shape[2:], filter, up, down, padding)
    rule = "the padded image must be at least as large as the filter"
    _check.require(min(size) > 0 and min(*up, *down) > 0, OP, rule, x)
    order = _layout.memory_format(x)
    y = _layout.empty(x, (*x.shape[:2], *size))
    x = _cuda.dense(OP, "x", x, x.device, x.shape, (x.dtype,), order)
    if y.numel():
        run(x, y, order, correlation(x, filter, flip_filter, gain), up, down, padding)
    return y


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
    place = (DTYPE_CODES[x.dtype], *_cuda.place(x))
    if serves(taps, up, down):
        factor = up[0] if up[0] > 1 else -down[0] if down[0] > 1 else 1
        rows = _rows(x, y, order)
        arguments = (*geometry, len(taps[0]), factor, rows, *epilogue.arguments(), *place)
        _cuda.module().upfirdn2d_separable(*map(address, (x, *taps, y)), *arguments)
    else:
        kernel = taps[0] if len(taps) == 1 else taps[1].outer(taps[0])  # [fh, fw]
        arguments = (*geometry, kernel.shape[1], kernel.shape[0], *up, *down, *place)
        _cuda.module().upfirdn2d_general(*map(address, (x, kernel, y)), *arguments)


def correlation(
    x: Tensor, filter: Tensor | None, flip_filter: bool, gain: float
) -> tuple[Tensor, Tensor] | tuple[Tensor]:
    """Taps of a correlation with the gain in them: along x and along y, or in two dimensions."""
    dtype = accumulator(x.dtype)
    taps = x.new_ones(1, dtype=dtype) if filter is None else filter.to(dtype)
    _check.require(taps.device == x.device, OP, f"filter must be on {x.device}", taps)
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
    images = (n, c) if order is torch.channels_last else (n * c, 1)
    return *images, *x.shape[2:], *y.shape[2:], padding[0], padding[2]


def _rows(x: Tensor, y: Tensor, order: torch.memory_format) -> int:
    """Output rows of a thread; even.

    Long strips read fewer rows twice, but a GPU wants about two thousand threads on each of its
    hundred or so multiprocessors.
    """
    width = 16 // x.element_size() if order is torch.channels_last else 1
    rows = 16
    while rows > 2 and y.numel() // width // rows < 1 << 18:
        rows //= 2
    return rows
