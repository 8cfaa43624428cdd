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
    for dim in (2, 3) if radius else ():
        mask = _grown(mask, radius, dim)
    # A mean over windows centred on the grown border: the ramp is as wide as the window.
    for dim in (2, 3) if radius else ():
        mask = _mean(mask, radius, dim)
    return mask


def _grown(x: Tensor, radius: int, dim: int) -> Tensor:
    """The largest of x ≥ 0 in windows of 2·radius + 1 along an axis, in a logarithm of passes."""
    borders = [radius, radius] if dim == 3 else [0, 0, radius, radius]
    x, span, side = F.pad(x, borders), 1, 2 * radius + 1
    while span < side:
        step = min(span, side - span)
        left = x.shape[dim] - step
        x, span = torch.maximum(x.narrow(dim, 0, left), x.narrow(dim, step, left)), span + step
    return x


def _mean(x: Tensor, radius: int, dim: int) -> Tensor:
    """The mean of x in windows of 2·radius + 1 along an axis, cut at the border; 0 and 1 are exact
    where the window holds nothing else, for sums are taken in float64."""
    length = x.shape[dim]
    at = torch.arange(length, device=x.device)
    first, last = (at - radius).clamp_min(0), (at + radius + 1).clamp_max(length)
    sums = F.pad(x.double().cumsum(dim), [1, 0] if dim == 3 else [0, 0, 1, 0])
    total = sums.index_select(dim, last) - sums.index_select(dim, first)
    count = (last - first).to(total)
    return total.div_(count if dim == 3 else count[:, None]).to(x.dtype)


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
