"""Pieces of the Triton kernels of modulated_conv2d: scales, epilogue, the matrix product of a tile.

Images are channels_last: [N, H, W, C]. A tile is P pixels of one image by some channels. Symbols as
in layer.py; names in README.md, "In Triton".
"""

from __future__ import annotations

import triton
import triton.language as tl

from rwm_fast.ops._triton_jit import dot_, scale_


@triton.jit
def blend_(vectors, regions, n, p, c, in_image, in_channels, HW, C, STYLES: tl.constexpr):
    """Σ_k r_k(p)·v_k[c]: [P, C], or [1, C] without regions; float32."""
    if regions is None:
        v = tl.load(vectors + n * C + c, mask=in_channels, other=0.0)
        return v[None, :]
    else:
        total = tl.zeros((p.shape[0], c.shape[0]), tl.float32)
        for k in tl.static_range(STYLES):
            r = tl.load(regions + (n * STYLES + k) * HW + p, mask=in_image, other=0.0)
            v = tl.load(vectors + (n * STYLES + k) * C + c, mask=in_channels, other=0.0)
            total += r[:, None] * v[None, :]
        return total


@triton.jit
def epilogue_(
    v, n, p, c, in_image, in_channels,
    scale, regions, noise, strength, bias, clamp, slope, gain, noise_step, HW, C,
    STYLES: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """clamp(act(b·v + strength·noise + bias)·gain) of a float32 tile [P, C]; NaN stays NaN."""
    if scale is not None:
        v = v * blend_(scale, regions, n, p, c, in_image, in_channels, HW, C, STYLES)
    if noise is not None:
        t = tl.load(noise + n * noise_step + p, mask=in_image, other=0.0)
        if strength is not None:
            t = t * tl.load(strength)
        v = v + t[:, None]
    if bias is not None:
        v = v + tl.load(bias + c, mask=in_channels, other=0.0)[None, :]
    if ACTIVE:
        v = tl.where(v < 0, v * slope, v) * gain
    if clamp is not None:
        v = tl.where(v > clamp, clamp, v)
        v = tl.where(v < -clamp, -clamp, v)
    return v


@triton.jit
def place_(OH, OW, CO, UP: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr):
    """Which tile a program makes: image, tile in it, first row, column, channel, and the phase.

    Channel tiles are next to each other, so that they find their pixels in the cache. With UP = 2
    rows and columns count pairs of result pixels, and the phase says which of a pair; the phase of
    the most taps comes first.
    """
    tiles_x = tl.cdiv(tl.cdiv(OW, UP), BW)
    tiles = tl.cdiv(tl.cdiv(OH, UP), BH) * tiles_x
    tiles_c = tl.cdiv(CO, BO)
    pid = tl.program_id(0)
    per = tl.num_programs(0) // (UP * UP)
    phase = pid // per
    pid = pid % per
    tile = pid // tiles_c
    co0 = (pid % tiles_c) * BO
    t = tile % tiles
    return tile // tiles, t, (t // tiles_x) * BH, (t % tiles_x) * BW, co0, phase // UP, phase % UP


@triton.jit
def multiply_(
    x, w, s, regions, n, h0, w0, co0, phase_y, phase_x, H, W, CI, CO, PY, PX,
    KH: tl.constexpr, KW: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    STYLES: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """u = conv(W, a·x) of a tile, float32 [P, BO].

    x [N, H, W, CI] and w [CO, KH·KW, CI] are pointers or (TMA) descriptors with boxes
    [1, BH, BW, BI] and [BO, 1, BI], which give 0 outside. Pixel (i, j) of the result meets
    (i·DOWN + ky − PY, j·DOWN + kx − PX); with UP = 2 pixel (2i + phase_y, ·) meets (i − ty, ·) by
    the taps ky = 2·ty + phase_y: the phases of a transposed convolution share nine taps.

    One style scales the weight's tile: then the pixels go from memory to the tensor cores, and the
    weight passes through registers (the first operand may). Several scale the pixels' tile.
    """
    if UP == 1:
        nx = KW
        taps = KH * KW
    else:
        nx = (KW - phase_x + 1) // 2
        taps = ((KH - phase_y + 1) // 2) * nx
    row = tl.arange(0, BH * BW)
    i = h0 + row // BW
    j = w0 + row % BW
    o = co0 + tl.arange(0, BO)
    WEIGHT_FIRST: tl.constexpr = regions is None
    acc = tl.zeros((BO, BH * BW) if WEIGHT_FIRST else (BH * BW, BO), tl.float32)
    image = n.to(tl.int64) * H * W
    # A loop that might not run at all would leave a path on which the accumulator is no product:
    # then ptxas waits for every product (advisory C7515).
    for step in range(0, tl.maximum(tl.cdiv(CI, BI) * taps, 1)):
        c0 = (step // taps) * BI
        tap = step % taps
        ty = tap // nx
        tx = tap % nx
        if UP == 1:
            dy = ty - PY
            dx = tx - PX
        else:
            dy = -ty
            dx = -tx
            tap = (2 * ty + phase_y) * KW + 2 * tx + phase_x
        c = c0 + tl.arange(0, BI)
        in_channels = c < CI
        y = i * DOWN + dy
        z = j * DOWN + dx
        in_image = (y >= 0) & (y < H) & (z >= 0) & (z < W)
        if TMA:
            a = x.load([n, h0 + dy, w0 + dx, c0]).reshape(BH * BW, BI)
            b = w.load([co0, tap, c0]).reshape(BO, BI)
        else:
            a_at = (y * W + z)[:, None] * CI + c[None, :]
            a = tl.load(x + image * CI + a_at, in_image[:, None] & in_channels[None, :], 0.0)
            b_at = (o * (KH * KW) + tap)[:, None] * CI + c[None, :]
            b = tl.load(w + b_at, (o < CO)[:, None] & in_channels[None, :], 0.0)
        if WEIGHT_FIRST:
            if s is not None:
                b = scale_(b, tl.load(s + n * CI + c, mask=in_channels, other=0.0)[None, :])
            acc = dot_(b, a.T, acc, PRECISION)
        else:
            scale = blend_(
                s, regions, n.to(tl.int64), y * W + z, c, in_image, in_channels, H * W, CI, STYLES
            )
            acc = dot_((a.to(tl.float32) * scale).to(a.dtype), b.T, acc, PRECISION)
    return acc.T if WEIGHT_FIRST else acc
