"""bias_act in Triton.

The kernels see a matrix. Where channels are adjacent its columns are the channels; in planes every
(n, c) is a row. A bias then belongs to a column or to a row (`IN_ROWS`), and its gradient is a sum
along the other axis.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwm_fast.ops import _triton
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import Activation
from rwm_fast.ops.bias_act.call import Backward, Forward

_TILE = 1024  # elements of a tile: 16 bytes a thread in half precision
_PROGRAMS = 2048  # that fill a GPU; each leaves partial sums, so no more than needed
_LEAST = 8192  # elements for each row of partial sums: its traffic is about 2 % of theirs
_SUM_ROWS, _SUM_CHANNELS = 256, 16

# ---- kernels


@triton.jit
def forward_kernel(x, bias, y, rows, cols, channels, slope, gain, clamp, IN_ROWS: tl.constexpr,
                   BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """y = clamp(act(x + bias)·gain), one tile."""
    across = tl.cdiv(cols, BC)
    row = (tl.program_id(0) // across).to(tl.int64) * BR + tl.arange(0, BR)
    col = (tl.program_id(0) % across).to(tl.int64) * BC + tl.arange(0, BC)
    here = (row < rows)[:, None] & (col < cols)[None, :]
    at = row[:, None] * cols + col[None, :]
    t = tl.load(x + at, mask=here).to(tl.float32)
    if bias is not None:
        if IN_ROWS:
            t += tl.load(bias + row % channels)[:, None]
        else:
            t += tl.load(bias + col, mask=col < cols)[None, :]
    result = tl.where(t > 0, t, t * slope) * gain
    if clamp is not None:  # comparisons, not a minimum: they keep NaN
        result = tl.where(result > clamp, clamp, tl.where(result < -clamp, -clamp, result))
    tl.store(y + at, result.to(y.dtype.element_ty), mask=here)


@triton.jit
def backward_kernel(dy, y, dx, partials, rows, cols, length, slope, gain, clamp,
                    IN_ROWS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """dx, and sums of it over a piece, `length` long, of the axis that has one bias.

    partials: a row for each piece (in planes: and each image). y, dx or partials may be None.
    """
    groups = tl.cdiv(rows, BR) if IN_ROWS else tl.cdiv(cols, BC)
    group = (tl.program_id(0) % groups).to(tl.int64)
    piece = (tl.program_id(0) // groups).to(tl.int64)
    row = (group * BR if IN_ROWS else piece * length) + tl.arange(0, BR)
    col = (piece * length if IN_ROWS else group * BC) + tl.arange(0, BC)
    total = tl.zeros((BR, BC), tl.float32)
    for _ in range(0, tl.cdiv(length, BC if IN_ROWS else BR)):
        here = (row < rows)[:, None] & (col < cols)[None, :]
        at = row[:, None] * cols + col[None, :]
        dt = tl.load(dy + at, mask=here, other=0).to(tl.float32) * gain
        if y is not None:
            result = tl.load(y + at, mask=here, other=0).to(tl.float32)
            dt = tl.where(result > 0, dt, dt * slope)
            if clamp is not None:
                dt = tl.where(tl.abs(result) >= clamp, 0.0, dt)
        if dx is not None:
            tl.store(dx + at, dt.to(dx.dtype.element_ty), mask=here)
        total += dt
        if IN_ROWS:
            col += BC
        else:
            row += BR
    if partials is not None:
        if IN_ROWS:
            tl.store(partials + piece * rows + row, tl.sum(total, 1), mask=row < rows)
        else:
            tl.store(partials + piece * cols + col, tl.sum(total, 0), mask=col < cols)


@triton.jit
def sum_kernel(partials, out, rows, channels, BR: tl.constexpr, BC: tl.constexpr):
    """out[c] = Σ partials[:, c], tile after tile, so in a fixed order."""
    col = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BR, BC), tl.float32)
    for start in range(0, rows, BR):
        row = start + tl.arange(0, BR)
        here = (row < rows)[:, None] & (col < channels)[None, :]
        at = row[:, None].to(tl.int64) * channels + col[None, :]
        total += tl.load(partials + at, mask=here, other=0)
    tl.store(out + col, tl.sum(total, 0), mask=col < channels)


# ---- the backend


def supports(call: Call) -> str | None:
    """Any layout, in half precision or float32."""
    return _triton.supports(call)


class Matrix(NamedTuple):
    """A dense tensor as the kernels see it, and the tile they cut it into."""

    rows: int
    cols: int
    in_rows: bool
    tile: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, order: torch.memory_format) -> Matrix:
        n, c, *space = x.shape
        size = math.prod(space)
        in_rows = order is not torch.channels_last and size > 1
        rows, cols = (n * c, size) if in_rows else (n * size, c)
        wide = _triton.pow2(cols, _TILE if in_rows else 128)
        return cls(rows, cols, in_rows, (_triton.pow2(rows, _TILE // wide), wide))

    def constants(self) -> dict[str, Any]:
        return {"IN_ROWS": self.in_rows, "BR": self.tile[0], "BC": self.tile[1]}

    def pieces(self, summed: bool) -> tuple[int, int, int]:
        """Groups across the summed axis, pieces along it, and their length in elements."""
        across, along = (self.rows, self.cols) if self.in_rows else (self.cols, self.rows)
        wide, step = self.tile if self.in_rows else self.tile[::-1]
        groups, steps = _triton.cdiv(across, wide), _triton.cdiv(along, step)
        if summed:
            most = min(_PROGRAMS // groups, self.rows * self.cols // (_LEAST * groups))
            each = _triton.cdiv(steps, max(1, most))
        else:
            each = 1
        return groups, _triton.cdiv(steps, each), each * step


@functools.lru_cache
def _numbers(activation: Activation, dtype: torch.dtype) -> tuple[float, float, float | None]:
    """Slope, gain and clamp as the kernels read them.

    The clamp is rounded as the results are, so that the backward pass recognises a clamped one.
    """
    slope, gain, _ = activation.numbers()
    clamp = activation.clamp
    rounded = None if clamp is None else torch.tensor(clamp, dtype=dtype).item()
    return float(slope), float(gain), rounded


def forward(call: Forward) -> None:
    """y = clamp(act(x + bias)·gain)."""
    x, matrix = call.x, Matrix.of(call.x, call.order)
    groups, pieces, _ = matrix.pieces(summed=False)
    arguments = (
        *(x, call.bias, call.y, matrix.rows, matrix.cols, x.shape[1]),
        *_numbers(call.activation, call.dtype),
    )
    _triton.launch(forward_kernel, groups * pieces, x.device, *arguments, **matrix.constants())


def backward(call: Backward) -> None:
    """dx and dbias."""
    dy, dbias, channels = call.dy, call.dbias, call.dy.shape[1]
    matrix = Matrix.of(dy, call.order)
    groups, pieces, length = matrix.pieces(summed=dbias is not None)
    rows = pieces * matrix.rows // channels if matrix.in_rows else pieces
    partials = None if dbias is None else dbias.new_empty(rows, channels)
    arguments: tuple[Any, ...] = (dy, call.y, call.dx, partials, matrix.rows, matrix.cols, length)
    arguments = (*arguments, *_numbers(call.activation, call.dtype))
    _triton.launch(backward_kernel, groups * pieces, dy.device, *arguments, **matrix.constants())
    if dbias is not None:
        programs = _triton.cdiv(channels, _SUM_CHANNELS)
        arguments = (partials, dbias, rows, channels)
        tile = {"BR": _SUM_ROWS, "BC": _SUM_CHANNELS}
        _triton.launch(sum_kernel, programs, dy.device, *arguments, **tile)
