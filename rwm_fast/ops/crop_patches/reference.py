"""The truth for crop_patches, in plain torch, and the raw functions of the reference backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops._layout import memory_format


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Any device, any dtype, any layout."""
    return None


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


def empty_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The result, not yet written: [N, P, C, S, S], each patch in the image's memory format."""
    n, c = image.shape[:2]
    shape = (n * boxes.shape[1], c, size, size)
    flat = torch.empty(
        shape, dtype=image.dtype, device=image.device, memory_format=memory_format(image)
    )
    return flat.unflatten(0, boxes.shape[:2])


def empty_image(dpatches: Tensor, height: int, width: int) -> Tensor:
    """The adjoint's result, not yet written: [N, C, H, W] in the patches' memory format."""
    n, _, c = dpatches.shape[:3]
    return torch.empty(
        (n, c, height, width),
        dtype=dpatches.dtype,
        device=dpatches.device,
        memory_format=memory_format(dpatches.flatten(0, 1)),
    )


def forward(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """patches[n, p, c, i, j] = image[n, c] sampled at the point (i, j) of box (n, p)."""
    patches = empty_patches(image, boxes, size)
    return patches.copy_(crop_patches(image, boxes, size)) if patches.numel() else patches


def adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """dimage[n, c, y, x] = Σ_pij (weight of pixel (y, x) at point (i, j) of box p) · dpatches."""
    dimage = empty_image(dpatches, height, width)
    if not dpatches.numel():
        return dimage.zero_()
    dtype = accumulator(dpatches.dtype)
    grid = sampling_grid(boxes, dpatches.shape[-1], dtype)
    dtall = dpatches.transpose(1, 2).flatten(2, 3).to(dtype)  # [N, C, P·S, S]
    shape_only = dtall.new_zeros(()).expand(dimage.shape)
    bilinear, zeros, needs = 0, 0, [True, False]
    grads = torch.ops.aten.grid_sampler_2d_backward(
        dtall, shape_only, grid, bilinear, zeros, False, needs
    )
    return dimage.copy_(grads[0])
