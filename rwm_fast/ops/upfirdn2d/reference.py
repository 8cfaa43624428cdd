"""The truth for upfirdn2d, in plain torch.

Both resamplings are one depthwise convolution over all channels: with a stride for `down`,
transposed for `up`, so that no zero is ever multiplied and no channel is folded into the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops.upfirdn2d.geometry import filter_size, output_size


def upfirdn2d(
    x: Tensor,  # [N, C, H, W]
    filter: Tensor | None,  # [fw] or [fh, fw]
    up: Sequence[int],  # x, y
    down: Sequence[int],
    padding: Sequence[int],  # x before, x after, y before, y after
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Upsample with zeros, pad or crop, filter, keep every down-th; differentiable by torch."""
    if not x.numel():  # torch's convolutions refuse it
        n, c, h, w = x.shape
        size = output_size(h, w, filter_size(filter), up, down, padding)
        return x.sum() + x.new_zeros((n, c, *size))
    kernel = taps(filter, x, flip_filter, gain)  # [fh, fw]
    if up[0] == 1 and up[1] == 1:
        return _convolve(pad(x, padding), kernel, down)
    return _convolve_upsampled(x, kernel, up, padding)[:, :, :: down[1], :: down[0]]


def may_be_misread(x: Tensor) -> bool:
    """Whether torch's bfloat16 convolution on CPUs may read past the map: NaN, and other bits at
    every call, came of maps 1 to 5 wide with a larger filter or a stride; with AMX, torch 2.13.
    Such maps are convolved in float32.
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and min(x.shape[2:]) <= 5


def taps(filter: Tensor | None, x: Tensor, flip_filter: bool, gain: float) -> Tensor:
    """The filter as a 2-D correlation kernel of x's dtype: a 1-D filter f stands for f ⊗ f."""
    if filter is None:
        return x.new_full((1, 1), gain)
    kernel = filter.outer(filter) if filter.ndim == 1 else filter
    kernel = kernel if flip_filter else kernel.flip((0, 1))
    return (kernel * gain).to(x.dtype)


def _convolve(x: Tensor, kernel: Tensor, down: Sequence[int]) -> Tensor:
    if may_be_misread(x):
        return _convolve(x.float(), kernel.float(), down).to(x.dtype)
    channels = x.shape[1]
    weight = kernel.expand(channels, 1, *kernel.shape)  # [C, 1, fh, fw]
    return F.conv2d(x, weight, stride=(down[1], down[0]), groups=channels)


def _convolve_upsampled(
    x: Tensor, kernel: Tensor, up: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A transposed convolution answers as if padded by a filter less one; crop or pad the rest."""
    if may_be_misread(x):
        return _convolve_upsampled(x.float(), kernel.float(), up, padding).to(x.dtype)
    channels, (fh, fw) = x.shape[1], kernel.shape
    weight = kernel.flip((0, 1)).expand(channels, 1, fh, fw)
    z = F.conv_transpose2d(x, weight, stride=(up[1], up[0]), groups=channels)
    px0, px1, py0, py1 = padding
    before_x, before_y = px0 - (fw - 1), py0 - (fh - 1)
    return pad(z, (before_x, px1 - (fw - up[0]), before_y, py1 - (fh - up[1])))


def pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Zeros around the image; a negative number crops, afterwards: maybe all of the image."""
    if any(p > 0 for p in padding):
        x = F.pad(x, [max(p, 0) for p in padding])
    if any(p < 0 for p in padding):
        x = F.pad(x, [min(p, 0) for p in padding])
    return x
