"""Around an edit: planes from masks, the size to work at, a soft border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def radius_of(pixels: float) -> int:
    """Half the width of a soft border, rounded up: `feathered` reaches twice as far."""
    return math.ceil(pixels / 2)


def feathered(mask: Tensor, pixels: float) -> Tensor:
    """`mask` [N, 1, H, W] in [0, 1] with a ramp outside its border: 1 inside, 0 from `pixels`
    (rounded up to an even number) on. 0 leaves the mask as it is."""
    radius = radius_of(pixels)
    if radius == 0:
        return mask
    side = 2 * radius + 1
    for kernel, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        mask = F.max_pool2d(mask, kernel, stride=1, padding=padding)
    # A mean over windows centred on the grown border: the ramp is as wide as the window.
    for kernel, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        mask = F.avg_pool2d(mask, kernel, stride=1, padding=padding, count_include_pad=False)
    return mask


def exclusive(masks: Sequence[Tensor]) -> Tensor:
    """K masks [N, 1, H, W] in [0, 1] as planes [N, K, H, W] that add up to at most 1: where they
    overlap, the later one wins."""
    left, planes = torch.ones_like(masks[0]), []
    for mask in reversed(masks):
        planes.append(mask * left)
        left = left * (1 - mask)
    return torch.cat(planes[::-1], dim=1)


def working_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(H, W) with the short side reduced to `short_side` pixels; never enlarged, 0 leaves it."""
    scale = short_side / min(size)
    if not 0 < scale < 1:
        return size
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def averaging(size: int, length: int) -> Tensor:
    """The matrix [size, length], float64, that reduces `length` pixels to `size`: triangles as
    wide as two of the new pixels, each row of sum 1."""
    scale = length / size
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale  # [size]
    pixel = torch.arange(length, dtype=torch.float64) + 0.5  # [length]
    weight = (1 - (pixel - centre[:, None]).abs() / scale).clamp_min(0)
    return weight / weight.sum(1, keepdim=True)
