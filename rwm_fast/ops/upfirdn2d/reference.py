"""The truth for upfirdn2d, in plain torch, and the raw function of the reference backend.

Both resamplings are one depthwise convolution over all channels: with a stride for `down`,
transposed for `up`, so that no zero is ever multiplied and no channel is folded into the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._layout import memory_format


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any device, any dtype, any layout."""
    return None


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
    kernel = taps(filter, x, flip_filter, gain)  # [fh, fw]
    if up[0] == 1 and up[1] == 1:
        return _convolve(_pad(x, padding), kernel, down)
    return _convolve_upsampled(x, kernel, up, padding)[:, :, :: down[1], :: down[0]]


def forward(
    x: Tensor,
    filter: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """The same in channels_last, where depthwise convolutions are several times faster."""
    z = x.contiguous(memory_format=torch.channels_last)
    y = upfirdn2d(z, filter, up, down, padding, flip_filter, gain)
    return y.contiguous(memory_format=memory_format(x))


def taps(filter: Tensor | None, x: Tensor, flip_filter: bool, gain: float) -> Tensor:
    """The filter as a 2-D correlation kernel of x's dtype: a 1-D filter f stands for f ⊗ f."""
    if filter is None:
        return x.new_full((1, 1), gain)
    kernel = filter.outer(filter) if filter.ndim == 1 else filter
    kernel = kernel if flip_filter else kernel.flip((0, 1))
    return (kernel * gain).to(x.dtype)


def output_size(
    height: int,
    width: int,
    filter: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the result."""
    fh, fw = filter_size(filter)
    px0, px1, py0, py1 = padding
    return (
        (height * up[1] + py0 + py1 - fh) // down[1] + 1,
        (width * up[0] + px0 + px1 - fw) // down[0] + 1,
    )


def filter_size(filter: Tensor | None) -> tuple[int, int]:
    """Taps along y and along x."""
    return (1, 1) if filter is None else (filter.shape[0], filter.shape[-1])


def _convolve(x: Tensor, kernel: Tensor, down: Sequence[int]) -> Tensor:
    channels = x.shape[1]
    weight = kernel.expand(channels, 1, *kernel.shape)  # [C, 1, fh, fw]
    return F.conv2d(x, weight, stride=(down[1], down[0]), groups=channels)


def _convolve_upsampled(
    x: Tensor, kernel: Tensor, up: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A transposed convolution answers as if padded by a filter less one; crop or pad the rest."""
    channels, (fh, fw) = x.shape[1], kernel.shape
    weight = kernel.flip((0, 1)).expand(channels, 1, fh, fw)
    z = F.conv_transpose2d(x, weight, stride=(up[1], up[0]), groups=channels)
    px0, px1, py0, py1 = padding
    before_x, before_y = px0 - (fw - 1), py0 - (fh - 1)
    return _pad(z, (before_x, px1 - (fw - up[0]), before_y, py1 - (fh - up[1])))


def _pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Zeros around the image; a negative number crops."""
    return F.pad(x, list(padding)) if any(p != 0 for p in padding) else x
