"""crop_patches by `gather`, for what torch.func and forward-mode AD follow.

`grid_sample` has no forward derivative, and no batching rule for its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops.crop_patches.reference import sampling_grid


def _corners(
    boxes: Tensor, size: int, sides: tuple[int, int], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the four pixels around every point: places in an image of one row [N, 1, P·S·S], and
    bilinear weights, 0 outside of the image."""
    points = sampling_grid(boxes, size, dtype).flatten(1, 2)[:, None]  # [N, 1, P·S·S, 2]
    height, width = sides
    x, y = ((points[..., i] + 1) * side / 2 - 0.5 for i, side in enumerate((width, height)))
    left, top = x.floor(), y.floor()
    for column in (left, left + 1):
        for row in (top, top + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            place = (row * width + column).masked_fill(~inside, 0)
            yield place.long(), weight.masked_fill(~inside, 0)


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """y = sum over the corners of weight · x[place], [N, P, C, S, S]."""
    dtype, (n, c, height, width) = accumulator(image.dtype), image.shape
    pixels = image.to(dtype).flatten(2)
    patches = pixels.new_zeros(n, c, boxes.shape[1] * size * size)
    for place, weight in _corners(boxes, size, (height, width), dtype):
        values = pixels.gather(2, place.expand(-1, c, -1))
        patches = patches + torch.where(weight == 0, 0, weight * values)
    return patches.unflatten(2, (boxes.shape[1], size, size)).transpose(1, 2).to(image.dtype)


def adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """dx[place] += weight · dy over patches and corners, [N, C, H, W]."""
    dtype, (n, _, c, size, _) = accumulator(dpatches.dtype), dpatches.shape
    dy = dpatches.to(dtype).transpose(1, 2).flatten(2)  # [N, C, P·S·S]
    dimage = dy.new_zeros(n, c, height * width)
    for place, weight in _corners(boxes, size, (height, width), dtype):
        dimage = dimage.scatter_add(2, place.expand(-1, c, -1), weight * dy)
    return dimage.unflatten(2, (height, width)).to(dpatches.dtype)
