"""crop_patches in Triton: bilinear crops, and their adjoint in gather form.

A plane or a channel lies at `channel` strides, a pixel at `pixel` strides: [.., C, H, W] or
channels_last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rwm_fast.ops import _triton
from rwm_fast.ops._backend import Call
from rwm_fast.ops._memory import LAST
from rwm_fast.ops.crop_patches.call import Adjoint, Crop

_TILE = 512  # samples times channels of a program of the crop
_SAMPLES = 128  # most samples of it: one a thread, for loads and stores alike
_PIXELS = 128  # of a program of the adjoint; 32 in a row, so that few patches reach a tile
_CHANNELS = 16  # most channels of a tile; fewer than a program has lanes for neighbouring samples

# ---- kernels


@triton.jit
def number_(value):
    """float32; a cast, since Triton makes an argument of 1 a constant, which has no `.to`."""
    return tl.cast(value, tl.float32)


@triton.jit
def position_(centre, half, k, size, extent):
    """Pixel coordinate of sample k of `size` along an axis of `extent` pixels.

    Beyond ±4 a point sees only zeros, whatever the extent; so must one that is not a number.
    """
    u = (2 * k + 1).to(tl.float32) / size - 1.0
    point = centre + half * u
    point = tl.where(point == point, tl.minimum(tl.maximum(point, -4.0), 4.0), 4.0)
    return ((point + 1.0) * extent - 1.0) * 0.5


@triton.jit
def weight_(at, pixel):
    """Bilinear weight of a pixel at a coordinate: of its two neighbours; 0 for all others."""
    first = tl.floor(at)
    right = at - first
    first = first.to(tl.int32)
    return tl.where(pixel == first, 1.0 - right, tl.where(pixel == first + 1, right, 0.0))


@triton.jit
def forward_kernel(image, boxes, patches, per_image, channels, height, width, size,
                   in_channel, in_pixel, out_channel, out_pixel,
                   BK: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """BK samples of one patch, BC channels at a time."""
    samples = tl.cast(size, tl.int64) * size
    tiles = tl.cast(tl.cdiv(samples, BK), tl.int32)
    patch = tl.program_id(0) // tiles
    # One 64-bit division a tile; the lanes divide in 32 bits.
    start = (tl.program_id(0) % tiles).to(tl.int64) * BK
    top = start // size
    local = (start - top * size).to(tl.int32) + tl.arange(0, BK)
    i, j = top.to(tl.int32) + local // size, local % size
    inside = start + tl.arange(0, BK) < samples
    box = boxes + patch.to(tl.int64) * 4
    count, wide, high = number_(size), number_(width), number_(height)
    at_x = position_(tl.load(box), tl.load(box + 2), j, count, wide)
    at_y = position_(tl.load(box + 1), tl.load(box + 3), i, count, high)
    left, above = tl.floor(at_x), tl.floor(at_y)
    t_x, t_y = at_x - left, at_y - above
    x, y = left.to(tl.int32), above.to(tl.int32)
    plane = tl.cast(channels, tl.int64) * height * width
    source = image + (patch // per_image).to(tl.int64) * plane
    target = patches + patch * samples * channels + (start + tl.arange(0, BK)) * out_pixel
    for base in range(0, channels, BC):
        channel = (base + tl.arange(0, BC)).to(tl.int64)
        there = inside[:, None] & (channel < channels)[None, :]
        total = tl.zeros((BK, BC), tl.float32)
        for r in tl.static_range(2):
            for q in tl.static_range(2):
                weight = (t_y if r == 1 else 1.0 - t_y) * (t_x if q == 1 else 1.0 - t_x)
                row, column = y + r, x + q
                # What lies outside is not read, so no neighbour's NaN comes in.
                seen = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                at = (row.to(tl.int64) * width + column) * in_pixel
                pointer = source + at[:, None] + channel[None, :] * in_channel
                value = tl.load(pointer, mask=there & seen[:, None], other=0)
                total += weight[:, None] * value.to(tl.float32)
        pointer = target[:, None] + channel[None, :] * out_channel
        tl.store(pointer, total.to(patches.dtype.element_ty), mask=there)


@triton.jit
def reach_(centre, half, size, extent):
    """Where samples fall along an axis: pixel = start + k·step up to rounding, as its inverse.

    start, 1 / step, and a slack in samples that covers rounding. Where rounding could hide a sample
    (a box of almost no extent, or one that is not finite) the slack is all samples.
    """
    step = half * extent / size
    start = ((centre + half * (1.0 / size - 1.0) + 1.0) * extent - 1.0) * 0.5
    inverse = 1.0 / tl.where(step == 0.0, 1e-30, step)
    # 16 units in the last place of float32
    slack = 2e-6 * (tl.abs(start) + extent + size * tl.abs(step)) * tl.abs(inverse)
    sound = slack < 1.0
    return tl.where(sound, start, 0.0), tl.where(sound, inverse, 0.0), tl.where(sound, slack, size)


@triton.jit
def first_(start, inverse, slack, low, high):
    """The least sample that may see one of the pixels low to high (it may be negative)."""
    a, b = (low - 1 - start) * inverse, (high + 1 - start) * inverse
    # All samples are within a size or so of the image; further out a number may not fit an int.
    return tl.ceil(tl.maximum(tl.minimum(a, b) - slack, -1e9))


@triton.jit
def trips_(start, inverse, slack, low, high, size):
    """How many samples at most may see any one of the pixels low to high: 0 if none sees one."""
    first = first_(start, inverse, slack, low, high)
    length = (high - low + 2) * tl.abs(inverse) + 2.0 * slack
    none = (first > size - 1.0) | (first + length < 0.0)
    one = tl.minimum(2.0 * tl.abs(inverse) + 2.0 * slack, size - 1.0)  # samples, less one
    return tl.where(none, 0, one.to(tl.int32) + 1)


@triton.jit
def adjoint_kernel(dpatches, boxes, dimage, per_image, channels, height, width, size,
                   in_channel, in_pixel, out_channel, out_pixel,
                   BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """BH × BW pixels, BC channels: patches in index order, samples row by row."""
    tiles, across, down = tl.cdiv(channels, BC), tl.cdiv(width, BW), tl.cdiv(height, BH)
    program, lane = tl.program_id(0), tl.arange(0, BH * BW)
    channel = (program % tiles) * BC + tl.arange(0, BC)
    left = (program // tiles % across) * BW
    top = (program // tiles // across % down) * BH
    n = (program // tiles // across // down).to(tl.int64)
    x, y = left + lane % BW, top + lane // BW
    here = ((x < width) & (y < height))[:, None] & (channel < channels)[None, :]
    channel = channel.to(tl.int64)[None, :]
    count, wide, high = number_(size), number_(width), number_(height)
    total = tl.zeros((BH * BW, BC), tl.float32)
    for p in range(0, per_image):
        patch = n * per_image + p
        cx, cy = tl.load(boxes + patch * 4), tl.load(boxes + patch * 4 + 1)
        half_x, half_y = tl.load(boxes + patch * 4 + 2), tl.load(boxes + patch * 4 + 3)
        start_x, inverse_x, slack_x = reach_(cx, half_x, count, wide)
        start_y, inverse_y, slack_y = reach_(cy, half_y, count, high)
        trips_x = trips_(start_x, inverse_x, slack_x, left, left + BW - 1, count)
        trips_y = trips_(start_y, inverse_y, slack_y, top, top + BH - 1, count)
        first_j = tl.maximum(first_(start_x, inverse_x, slack_x, x, x), 0.0).to(tl.int32)
        first_i = tl.maximum(first_(start_y, inverse_y, slack_y, y, y), 0.0).to(tl.int32)
        source = dpatches + patch * size * size * channels + channel * in_channel
        for s in range(0, tl.where(trips_x > 0, trips_y, 0)):
            i = first_i + s
            weight_y = weight_(position_(cy, half_y, i, count, high), y)
            weight_y = tl.where(i < size, weight_y, 0.0)
            for t in range(0, trips_x):
                j = first_j + t
                weight = weight_y * weight_(position_(cx, half_x, j, count, wide), x)
                # A sample with weight 0 is not read: its NaN is not this pixel's.
                seen = (weight != 0.0) & (j < size)
                at = (i.to(tl.int64) * size + j) * in_pixel
                value = tl.load(source + at[:, None], mask=seen[:, None] & here, other=0)
                total += tl.where(seen, weight, 0.0)[:, None] * value.to(tl.float32)
    at = (y.to(tl.int64) * width + x) * out_pixel + n * height * width * channels
    pointer = dimage + at[:, None] + channel * out_channel
    tl.store(pointer, total.to(dimage.dtype.element_ty), mask=here)


# ---- the backend


def supports(call: Call) -> str | None:
    """Any layout, for images in half precision or float32."""
    return _triton.supports(call)


def _strides(order: torch.memory_format, channels: int, pixels: int) -> tuple[int, int]:
    """Of a channel and of a pixel."""
    return (1, channels) if order is LAST else (pixels, 1)


def forward(call: Crop) -> None:
    """The patches, each sample drawn from up to four pixels."""
    image, patches, order = call.image, call.patches, call.order
    (n, p, c, size, _), (h, w) = patches.shape, image.shape[2:]
    block = _triton.pow2(c, _CHANNELS) if order is LAST else 1
    samples = _triton.pow2(size * size, min(_SAMPLES, _TILE // block))
    programs = n * p * _triton.cdiv(size * size, samples)
    strides = (*_strides(order, c, h * w), *_strides(order, c, size * size))
    arguments = (image, call.boxes.float(), patches, p, c, h, w, size, *strides)
    _triton.launch(forward_kernel, programs, image.device, *arguments, BK=samples, BC=block)


def adjoint(call: Adjoint) -> None:
    """The image's gradient, every pixel gathered from the samples that saw it."""
    dpatches, dimage, order = call.dpatches, call.dimage, call.order
    (n, c, height, width), p, size = dimage.shape, call.boxes.shape[1], dpatches.shape[-1]
    tile = {"BW": _triton.pow2(width, 32), "BC": _triton.pow2(c, 4)}
    tile["BH"] = _triton.pow2(height, _PIXELS // tile["BW"])
    programs = n * _triton.cdiv(height, tile["BH"]) * _triton.cdiv(width, tile["BW"])
    programs *= _triton.cdiv(c, tile["BC"])
    strides = (*_strides(order, c, size * size), *_strides(order, c, height * width))
    arguments = (dpatches, call.boxes.float(), dimage, p, c, height, width, size, *strides)
    _triton.launch(adjoint_kernel, programs, dimage.device, *arguments, **tile)
