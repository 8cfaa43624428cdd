"""The truth for crop_patches, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._check import accumulator


def sampling_grid(boxes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Points (cx + hw·u_j, cy + hh·u_i), u_k = (2k + 1)/S − 1, patches one above the other."""
    boxes = boxes.detach().to(dtype)[:, :, None, None]  # [N, P, 1, 1, 4]
    u = (2 * torch.arange(size, dtype=dtype, device=boxes.device) + 1) / size - 1  # [S]
    x = boxes[..., 0] + boxes[..., 2] * u  # [N, P, 1, S]
    y = boxes[..., 1] + boxes[..., 3] * u[:, None]  # [N, P, S, 1]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)  # [N, P, S, S, 2]
    # Points beyond ±4 see only zeros at any image size; a point that is not finite must, too.
    return grid.nan_to_num(4.0).clamp(-4, 4).flatten(1, 2)  # [N, P·S, S, 2]


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """One tall sampling grid for each image: the image is never copied. Differentiable by torch."""
    dtype = accumulator(image.dtype)
    grid = sampling_grid(boxes, size, dtype)
    tall = F.grid_sample(image.to(dtype), grid, align_corners=False)  # [N, C, P·S, S]
    patches = tall.unflatten(2, (boxes.shape[1], size)).transpose(1, 2)  # [N, P, C, S, S]
    return patches.to(image.dtype)
