"""Triton kernels of modulated_conv2d that pass over memory: filter, epilogue, backward, sums."""

from __future__ import annotations

import triton
import triton.language as tl

from rwm_fast.ops.modulated_conv2d.triton_kernels.tiles import blend_, epilogue_


@triton.jit
def resample(
    x, taps, y, scale, regions, noise, strength, bias, clamp,
    slope, gain, noise_step, H, W, OH, OW, C, PY, PX,
    FH: tl.constexpr, FW: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    STYLES: tl.constexpr, ACTIVE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = epilogue(Σ taps·x): zeros between pixels (UP), correlation, every DOWN-th; [N, ·, ·, C].

    x's first pixel is at (PY, PX) of the padded image; taps [FH, FW], float32.
    """
    tiles = tl.cdiv(OH * OW, BP)
    tiles_c = tl.cdiv(C, BC)
    pid = tl.program_id(0)
    n = (pid // tiles_c // tiles).to(tl.int64)
    p = (pid // tiles_c % tiles) * BP + tl.arange(0, BP)
    c = (pid % tiles_c) * BC + tl.arange(0, BC)
    in_result = p < OH * OW
    in_channels = c < C
    i = (p // OW) * DOWN - PY
    j = (p % OW) * DOWN - PX
    v = tl.zeros((BP, BC), tl.float32)
    for tap in tl.static_range(FH * FW):
        h = i + tap // FW
        w = j + tap % FW
        there = in_result & (h >= 0) & (h < H * UP) & (w >= 0) & (w < W * UP)
        if UP > 1:
            there = there & (h % UP == 0) & (w % UP == 0)
        at = x + n * H * W * C + ((h // UP) * W + w // UP)[:, None] * C + c[None, :]
        t = tl.load(at, there[:, None] & in_channels[None, :], 0.0).to(tl.float32)
        v += tl.load(taps + tap) * t
    v = epilogue_(
        v, n, p, c, in_result, in_channels,
        scale, regions, noise, strength, bias, clamp, slope, gain, noise_step, OH * OW, C,
        STYLES, ACTIVE,
    )  # fmt: skip
    at = y + n * OH * OW * C + p[:, None] * C + c[None, :]
    tl.store(at, v.to(y.dtype.element_ty), in_result[:, None] & in_channels[None, :])


@triton.jit
def scale_backward(
    g, y, u, scale, regions, noise, strength, bias, clamp,
    out, style_sums, channel_sums, pixel_sums, region_sums,
    slope, gain, noise_step, N, HW, C,
    STYLES: tl.constexpr, ACTIVE: tl.constexpr, RECOVER: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The adjoint of an epilogue on one tile: dv = act'(y)·gain·g, q = dv·u, out = b·dv, and sums.

    style_sums [N, tiles, K, C] Σ_p r_k·q; channel_sums [N, tiles, C] Σ_p dv; pixel_sums
    [channel tiles, N, HW] Σ_c dv; region_sums [channel tiles, N, K, HW] Σ_c scale_k·q. y may be
    None where nothing depends on it. RECOVER reads q from y: see eager._read_back.
    """
    tiles = tl.cdiv(HW, BP)
    tiles_c = tl.cdiv(C, BC)
    pid = tl.program_id(0)
    tile = (pid // tiles_c).to(tl.int64)
    n = tile // tiles
    p = (pid // tiles_c % tiles) * BP + tl.arange(0, BP)
    c = (pid % tiles_c) * BC + tl.arange(0, BC)
    run = (pid % tiles_c) * N + n
    in_image = p < HW
    in_channels = c < C
    inside = in_image[:, None] & in_channels[None, :]
    at = n * HW * C + p[:, None] * C + c[None, :]
    dy = tl.load(g + at, inside, 0.0).to(tl.float32)
    dv = dy * gain
    q = tl.zeros((BP, BC), tl.float32)
    if y is not None:
        answer = tl.load(y + at, inside, 0.0).to(tl.float32)
        q = dy * answer
        if ACTIVE:
            dv = tl.where(answer > 0, dv, dv * slope)
        if clamp is not None:
            clamped = tl.abs(answer) >= clamp
            dv = tl.where(clamped, 0.0, dv)
            q = tl.where(clamped, 0.0, q)
    b = tl.full((1, BC), 1.0, tl.float32)
    if scale is not None:
        b = blend_(scale, regions, n, p, c, in_image, in_channels, HW, C, STYLES)
    if RECOVER:
        if noise is not None:
            t = tl.load(noise + n * noise_step + p, mask=in_image, other=0.0)
            if strength is not None:
                t = t * tl.load(strength)
            q = q - dv * t[:, None]
        if bias is not None:
            q = q - dv * tl.load(bias + c, mask=in_channels, other=0.0)[None, :]
        q = q / tl.where(b == 0, 1.0, b)
    elif u is not None:
        q = dv * tl.load(u + at, inside, 0.0).to(tl.float32)
    if out is not None:
        tl.store(out + at, (dv * b).to(out.dtype.element_ty), inside)
    if channel_sums is not None:
        tl.store(channel_sums + tile * C + c, tl.sum(dv, 0), in_channels)
    if pixel_sums is not None:
        tl.store(pixel_sums + run * HW + p, tl.sum(dv, 1), in_image)
    if style_sums is not None or region_sums is not None:
        for k in tl.static_range(STYLES):
            if style_sums is not None:
                part = q
                if regions is not None:
                    r = tl.load(regions + (n * STYLES + k) * HW + p, mask=in_image, other=0.0)
                    part = q * r[:, None]
                sums = style_sums + (tile * STYLES + k) * C + c
                tl.store(sums, tl.sum(part, 0), in_channels)
            if region_sums is not None:
                v = tl.load(scale + (n * STYLES + k) * C + c, mask=in_channels, other=0.0)
                sums = region_sums + (run * STYLES + k) * HW + p
                tl.store(sums, tl.sum(q * v[None, :], 1), in_image)


@triton.jit
def sum_rows(parts, out, ROWS, COLUMNS, BR: tl.constexpr, BC: tl.constexpr):
    """out[g, c] = Σ_r parts[g, r, c] in an order that depends on the sizes only."""
    tiles = tl.cdiv(COLUMNS, BC)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * BC + tl.arange(0, BC)
    total = tl.zeros((BC,), tl.float32)
    for first in range(0, ROWS, BR):
        r = first + tl.arange(0, BR)
        at = (group * ROWS + r)[:, None] * COLUMNS + c[None, :]
        part = tl.load(parts + at, (r < ROWS)[:, None] & (c < COLUMNS)[None, :], 0.0)
        total += tl.sum(part, 0)
    tl.store(out + group * COLUMNS + c, total, c < COLUMNS)
