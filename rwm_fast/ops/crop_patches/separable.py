"""crop_patches as two matrix products, for what torch.func and forward-mode AD follow.

`grid_sample` has no forward derivative, and no batching rule for its backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops.crop_patches.reference import sampling_grid


def _weights(boxes: Tensor, size: int, sides: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Bilinear weights [N, P, S, W] along x and [N, P, S, H] along y."""
    grid = sampling_grid(boxes, size, dtype).unflatten(1, (boxes.shape[1], size))
    found = []
    for side, points in zip(sides, (grid[:, :, 0, :, 0], grid[:, :, :, 0, 1]), strict=True):
        pixels = ((points + 1) * side - 1) / 2  # [N, P, S]
        places = torch.arange(side, dtype=dtype, device=boxes.device)
        found.append((1 - (pixels[..., None] - places).abs()).clamp(min=0))
    return found


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """y = W_y · x · W_xᵀ, [N, P, C, S, S]."""
    dtype, (height, width) = accumulator(image.dtype), image.shape[2:]
    x, y = _weights(boxes, size, (width, height), dtype)
    return torch.einsum("npih,nchw,npjw->npcij", y, image.to(dtype), x).to(image.dtype)


def adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """W_yᵀ · dy · W_x summed over the patches, [N, C, H, W]."""
    dtype = accumulator(dpatches.dtype)
    x, y = _weights(boxes, dpatches.shape[-1], (width, height), dtype)
    dimage = torch.einsum("npih,npcij,npjw->nchw", y, dpatches.to(dtype), x)
    return dimage.to(dpatches.dtype)
