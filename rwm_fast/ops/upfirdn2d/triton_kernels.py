"""upfirdn2d in Triton: images [M, H, W, C]; a planar tensor is one with M = N·C and C = 1."""

from __future__ import annotations

import triton
import triton.language as tl

from rwm_fast.ops import _backend, _triton
from rwm_fast.ops._memory import LAST
from rwm_fast.ops.upfirdn2d.call import Call
from rwm_fast.ops.upfirdn2d.geometry import filter_size

_TILE = {True: 2048, False: 1024}  # elements of a program; many channels share an address
_CHANNELS = 32  # most of them in a tile: a larger area of pixels has less of an edge to read twice
_UNROLLED = 8  # most taps along x for which the loop is unrolled

# ---- kernels


@triton.jit
def tap_(taps, phase, base, UP: tl.constexpr, FLIP: tl.constexpr, COUNT: tl.constexpr):
    """Tap base + phase of a filter, counted backwards for a convolution; 0 where there is none.

    Every thread loads the same UP taps and takes one: a gather would have to change its layout to
    meet the samples, through shared memory.
    """
    value = tl.zeros(phase.shape, tl.float32)
    for u in tl.static_range(UP):
        at = base + u
        index = at if FLIP else COUNT - 1 - at
        one = tl.load(taps + index, mask=at < COUNT, other=0).to(tl.float32)
        value = tl.where(phase == u, one, value)
    return value


@triton.jit
def weight_(taps, phase_x, phase_y, s, t, UP_X: tl.constexpr, UP_Y: tl.constexpr,
            FW: tl.constexpr, FH: tl.constexpr, FLIP: tl.constexpr,
            OUTER: tl.constexpr):  # fmt: skip
    """Of the s-th sample down and the t-th across that a filter meets, for each pixel."""
    if taps is None:
        return tl.full(phase_x.shape, 1.0, tl.float32)
    elif OUTER:
        return tap_(taps, phase_y, s * UP_Y, UP_Y, FLIP, FH) * tap_(
            taps, phase_x, t * UP_X, UP_X, FLIP, FW
        )
    else:
        i, j = phase_y + s * UP_Y, phase_x + t * UP_X
        there = (i < FH) & (j < FW)
        at = i * FW + j
        at = at if FLIP else FH * FW - 1 - at
        return tl.load(taps + at, mask=there, other=0).to(tl.float32)


@triton.jit
def first_(at, lift, UP: tl.constexpr):
    """⌈at / UP⌉, the first sample that a filter at `at` meets; `lift` keeps dividends positive."""
    return (at + lift * UP + UP - 1) // UP - lift


@triton.jit
def column_(x, weight, start, meets, column, width, channels, channel, there):
    """weight · (the samples that one tap meets): [pixels, channels]."""
    meets = meets & (column >= 0) & (column < width)
    at = start + column.to(tl.int64) * channels
    # Where a tap meets no sample nothing is read: no 0·NaN.
    value = tl.load(x + at[:, None] + channel, mask=meets[:, None] & there, other=0)
    return weight[:, None] * value.to(tl.float32)


@triton.jit
def filter_kernel(x, taps, y, rows, height, width, out_height, out_width, channels, pad_x, pad_y,
                  lift_x, lift_y, gain, UP_X: tl.constexpr, UP_Y: tl.constexpr,
                  DOWN_X: tl.constexpr, DOWN_Y: tl.constexpr, FW: tl.constexpr, FH: tl.constexpr,
                  FLIP: tl.constexpr, OUTER: tl.constexpr, UNROLL: tl.constexpr,
                  BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """out[o] = Σ_j f[j]·upsampled[o·down + j − pad], upsampled[i·up] = in[i], along both axes.

    taps: [FH, FW], or [FW] for its outer product with itself (OUTER), or None for one tap of 1. A
    tile is BH of the `rows` of all images, one below the other, BW columns and BC channels.
    """
    program, across, columns = tl.program_id(0), tl.cdiv(channels, BC), tl.cdiv(out_width, BW)
    channel = ((program % across) * BC + tl.arange(0, BC))[None, :]
    there = channel < channels
    pixel = tl.arange(0, BH * BW)
    out_column = (program // across % columns) * BW + pixel % BW
    # One 64-bit division a tile; the lanes divide in 32 bits.
    top = (program // across // columns).to(tl.int64) * BH
    image = top // out_height
    local = (top - image * out_height).to(tl.int32) + pixel // BW
    image, out_row = image + local // out_height, local % out_height
    inside = (top + pixel // BW < rows) & (out_column < out_width)

    at_x, at_y = out_column * DOWN_X - pad_x, out_row * DOWN_Y - pad_y
    left, above = first_(at_x, lift_x, UP_X), first_(at_y, lift_y, UP_Y)
    phase_x, phase_y = left * UP_X - at_x, above * UP_Y - at_y
    total = tl.zeros((BH * BW, BC), tl.float32)
    for s in range(0, (FH + UP_Y - 1) // UP_Y):
        row = above + s
        meets = inside & (row >= 0) & (row < height) & (phase_y + s * UP_Y < FH)
        start = (image * height + row) * width * channels
        if UNROLL:
            for t in tl.static_range((FW + UP_X - 1) // UP_X):
                weight = weight_(taps, phase_x, phase_y, s, t, UP_X, UP_Y, FW, FH, FLIP, OUTER)
                seen = meets & (phase_x + t * UP_X < FW)
                total += column_(x, weight, start, seen, left + t, width, channels, channel, there)
        else:
            for t in range(0, (FW + UP_X - 1) // UP_X):
                weight = weight_(taps, phase_x, phase_y, s, t, UP_X, UP_Y, FW, FH, FLIP, OUTER)
                seen = meets & (phase_x + t * UP_X < FW)
                total += column_(x, weight, start, seen, left + t, width, channels, channel, there)
    at = ((top + pixel // BW) * out_width + out_column) * channels
    result = (total * gain).to(y.dtype.element_ty)
    tl.store(y + at[:, None] + channel, result, mask=inside[:, None] & there)


# ---- the backend


def supports(call: _backend.Call) -> str | None:
    """Any layout, factor and filter, for images in half precision or float32."""
    return _triton.supports(call)


def _tiles(rows: int, width: int, channels: int) -> tuple[int, dict[str, int]]:
    """Number of programs, and the output rows, columns and channels of each."""
    block = _triton.pow2(channels, _CHANNELS)
    pixels = _TILE[block >= 8] // block
    wide = _triton.pow2(width, max(8, pixels // 16))
    high = _triton.pow2(rows, pixels // wide)
    programs = _triton.cdiv(rows, high) * _triton.cdiv(width, wide) * _triton.cdiv(channels, block)
    return programs, {"BH": high, "BW": wide, "BC": block}


def forward(call: Call) -> None:
    """Upsample with zeros, pad or crop, filter, keep every down-th."""
    x, taps, y, up, down, padding, flip, gain, order, device, _ = call
    n, c, height, width = x.shape
    images, channels = (n, c) if order is LAST else (n * c, 1)
    size, (fh, fw) = y.shape[2:], filter_size(taps)
    rows = images * size[0]
    programs, tiles = _tiles(rows, size[1], channels)
    pads = padding[0], padding[2]
    lifts = [_triton.cdiv(max(pad, 0), factor) for pad, factor in zip(pads, up, strict=True)]
    _triton.launch(
        filter_kernel,
        programs,
        device,
        *(x, taps, y, rows, height, width, *size, channels, *pads, *lifts, float(gain)),
        UP_X=up[0],
        UP_Y=up[1],
        DOWN_X=down[0],
        DOWN_Y=down[1],
        FW=fw,
        FH=fh,
        FLIP=flip,
        OUTER=taps is not None and taps.ndim == 1,
        UNROLL=_triton.cdiv(fw, up[0]) <= _UNROLLED,
        **tiles,
    )
