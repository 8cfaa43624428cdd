"""Pasting an edit back over the untouched picture, with a soft border."""

import math

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
