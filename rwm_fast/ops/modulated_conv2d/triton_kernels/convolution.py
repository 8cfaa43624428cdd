"""Triton kernels of modulated_conv2d that multiply matrices: forward and the two gradients.

Strides, transposed convolutions and paddings are arguments of one kernel each; optional tensors are
None. The product itself is `multiply_` in tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rwm_fast.ops._triton_jit import dot_, scale_
from rwm_fast.ops.modulated_conv2d.triton_kernels.tiles import blend_, epilogue_, multiply_, place_


@triton.jit
def convolution(
    x, w, s, regions_in, y, scale, regions_out, noise, strength, bias, clamp,
    slope, gain, noise_step, H, W, OH, OW, CI, CO, PY, PX,
    KH: tl.constexpr, KW: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    STYLES: tl.constexpr, ACTIVE: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """y = epilogue(conv(W, a·x)); a program makes BH × BW pixels by BO channels."""
    n, _, h0, w0, co0, phase_y, phase_x = place_(OH, OW, CO, UP, BH, BW, BO)
    u = multiply_(
        x, w, s, regions_in, n, h0, w0, co0, phase_y, phase_x, H, W, CI, CO, PY, PX,
        KH, KW, UP, DOWN, STYLES, TMA, PRECISION, BH, BW, BO, BI,
    )  # fmt: skip
    row = tl.arange(0, BH * BW)
    i = (h0 + row // BW) * UP + phase_y
    j = (w0 + row % BW) * UP + phase_x
    o = co0 + tl.arange(0, BO)
    in_image = (i < OH) & (j < OW)
    in_channels = o < CO
    p = i * OW + j
    n = n.to(tl.int64)
    v = epilogue_(
        u, n, p, o, in_image, in_channels,
        scale, regions_out, noise, strength, bias, clamp, slope, gain, noise_step, OH * OW, CO,
        STYLES, ACTIVE,
    )  # fmt: skip
    at = y + n * OH * OW * CO + p[:, None] * CO + o[None, :]
    tl.store(at, v.to(y.dtype.element_ty), in_image[:, None] & in_channels[None, :])


@triton.jit
def input_gradient(
    g, w, x, s, regions, dx, style_sums, region_sums, N, H, W, OH, OW, CI, CO, PY, PX,
    KH: tl.constexpr, KW: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    STYLES: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """dz = conv(Wᵀ, g), dx = a·dz, and this tile's part of Σ_p r_k·x·dz and of Σ_c s_k·x·dz.

    The adjoint of a convolution is one: sizes and channels are named as in `convolution`, so the
    result is [N, OH, OW, CO] and g has CI channels. style_sums [N, phases·tiles, K, CO];
    region_sums [channel tiles, N, K, OH·OW]; without s: dx = dz.
    """
    n, t, h0, w0, co0, phase_y, phase_x = place_(OH, OW, CO, UP, BH, BW, BO)
    dz = multiply_(
        g, w, None, None, n, h0, w0, co0, phase_y, phase_x, H, W, CI, CO, PY, PX,
        KH, KW, UP, DOWN, STYLES, TMA, PRECISION, BH, BW, BO, BI,
    )  # fmt: skip
    row = tl.arange(0, BH * BW)
    i = (h0 + row // BW) * UP + phase_y
    j = (w0 + row % BW) * UP + phase_x
    o = co0 + tl.arange(0, BO)
    in_image = (i < OH) & (j < OW)
    in_channels = o < CO
    inside = in_image[:, None] & in_channels[None, :]
    p = i * OW + j
    tiles = tl.cdiv(tl.cdiv(OH, UP), BH) * tl.cdiv(tl.cdiv(OW, UP), BW)
    tile = (n.to(tl.int64) * UP * UP + phase_y * UP + phase_x) * tiles + t
    n = n.to(tl.int64)
    at = n * OH * OW * CO + p[:, None] * CO + o[None, :]
    if style_sums is not None or region_sums is not None:
        da = tl.load(x + at, inside, 0.0).to(tl.float32) * dz
        for k in tl.static_range(STYLES):
            part = da
            if regions is not None:
                r = tl.load(regions + (n * STYLES + k) * OH * OW + p, mask=in_image, other=0.0)
                part = da * r[:, None]
            if style_sums is not None:
                tl.store(style_sums + (tile * STYLES + k) * CO + o, tl.sum(part, 0), in_channels)
            if region_sums is not None:
                v = tl.load(s + (n * STYLES + k) * CO + o, mask=in_channels, other=0.0)
                run = (co0 // BO) * N + n
                sums = region_sums + (run * STYLES + k) * OH * OW + p
                tl.store(sums, tl.sum(da * v[None, :], 1), in_image)
    if dx is not None:
        if s is not None:
            dz = dz * blend_(s, regions, n, p, o, in_image, in_channels, OH * OW, CO, STYLES)
        tl.store(dx + at, dz.to(dx.dtype.element_ty), inside)


@triton.jit
def weight_gradient(
    x, g, s, regions, parts, N, H, W, GH, GW, CI, CO, PY, PX,
    KH: tl.constexpr, KW: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    STYLES: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """parts[split, tap, i, o] = Σ (a·x)[p + tap, i]·g[p, o] over this split's pixels of all images.

    x [N, H, W, CI], g [N, GH, GW, CO]. Of a transposed convolution (UP = 2) x stays and g moves:
    Σ (a·x)[p, i]·g[2p + tap, o]. A program has one tap, BI × BO channels and the tiles of BH × BW
    pixels from lo to hi, at least one.
    """
    pid = tl.program_id(0)
    split = tl.program_id(1)
    tiles_i = tl.cdiv(CI, BI)
    tap = (pid // tiles_i) % (KH * KW)
    ci0 = (pid % tiles_i) * BI
    co0 = (pid // (tiles_i * (KH * KW))) * BO
    dy = tap // KW
    dx = tap % KW
    LH = GH if UP == 1 else H
    LW = GW if UP == 1 else W
    tiles_x = tl.cdiv(LW, BW)
    tiles = tl.cdiv(LH, BH) * tiles_x
    # In 64 bits: splits times tiles.
    lo = (split.to(tl.int64) * (N * tiles) // tl.num_programs(1)).to(tl.int32)
    hi = ((split.to(tl.int64) + 1) * (N * tiles) // tl.num_programs(1)).to(tl.int32)
    row = tl.arange(0, BH * BW)
    c = ci0 + tl.arange(0, BI)
    o = co0 + tl.arange(0, BO)
    acc = tl.zeros((BI, BO), tl.float32)
    for step in range(0, tl.maximum(hi - lo, 1)):  # maximum: see multiply_
        n = (lo + step) // tiles
        t = (lo + step) % tiles
        h0 = (t // tiles_x) * BH
        w0 = (t % tiles_x) * BW
        i = h0 + row // BW
        j = w0 + row % BW
        in_loop = (i < LH) & (j < LW)
        y = i * DOWN + dy - PY if UP == 1 else i
        z = j * DOWN + dx - PX if UP == 1 else j
        in_image = in_loop & (y >= 0) & (y < H) & (z >= 0) & (z < W)
        if TMA:
            a = x.load([n, h0 + dy - PY, w0 + dx - PX, ci0]).reshape(BH * BW, BI)
            b = g.load([n, h0, w0, co0]).reshape(BH * BW, BO)
        else:
            a_at = n.to(tl.int64) * H * W * CI + (y * W + z)[:, None] * CI + c[None, :]
            a = tl.load(x + a_at, in_image[:, None] & (c < CI)[None, :], 0.0)
            gp = i * GW + j if UP == 1 else (2 * i + dy) * GW + 2 * j + dx
            b_at = n.to(tl.int64) * GH * GW * CO + gp[:, None] * CO + o[None, :]
            b = tl.load(g + b_at, in_loop[:, None] & (o < CO)[None, :], 0.0)
        if regions is not None:
            scale = blend_(
                s, regions, n.to(tl.int64), y * W + z, c, in_image, c < CI, H * W, CI, STYLES
            )
            a = (a.to(tl.float32) * scale).to(a.dtype)
        elif s is not None:
            a = scale_(a, tl.load(s + n * CI + c, mask=c < CI, other=0.0)[None, :])
        acc = dot_(a.T, b, acc, PRECISION)
    at = ((split.to(tl.int64) * (KH * KW) + tap) * CI + c[:, None]) * CO + o[None, :]
    tl.store(parts + at, acc, (c < CI)[:, None] & (o < CO)[None, :])
