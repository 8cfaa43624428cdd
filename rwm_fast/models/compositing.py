"""Around an edit: planes from masks, a smaller picture to work on, a soft border."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feathered(mask: Tensor, pixels: float) -> Tensor:
    """`mask` [N, 1, H, W] in [0, 1] with a ramp outside its border: 1 inside, 0 from `pixels`
    (rounded up to an even number) on. 0 leaves the mask as it is."""
    radius = math.ceil(pixels / 2)
    if radius == 0:
        return mask
    side = 2 * radius + 1
    grown = F.max_pool2d(mask, side, stride=1, padding=radius)
    # A mean over windows centred on the grown border: the ramp is as wide as the window.
    return F.avg_pool2d(grown, side, stride=1, padding=radius, count_include_pad=False)


def composite(image: Tensor, edited: Tensor, mask: Tensor, pixels: float) -> Tensor:
    """The edit inside the feathered mask, the untouched image outside, bit for bit."""
    return image.lerp(edited, feathered(mask, pixels).to(image.dtype))


def exclusive(masks: Sequence[Tensor]) -> Tensor:
    """K masks [N, 1, H, W] in [0, 1] as planes [N, K, H, W] that add up to at most 1: where they
    overlap, the later one wins."""
    left, planes = torch.ones_like(masks[0]), []
    for mask in reversed(masks):
        planes.append(mask * left)
        left = left * (1 - mask)
    return torch.cat(planes[::-1], dim=1)


def resized(image: Tensor, short_side: int) -> Tensor:
    """`image` [N, C, H, W] with its short side reduced to `short_side` pixels; never enlarged, 0
    leaves it as it is."""
    height, width = image.shape[2:]
    scale = short_side / min(height, width)
    if not 0 < scale < 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)
