"""crop_patches in plain torch, for any device and dtype."""

from __future__ import annotations

import torch

from rwm_fast.ops._backend import Call
from rwm_fast.ops._check import accumulator
from rwm_fast.ops.crop_patches.call import Adjoint, Crop
from rwm_fast.ops.crop_patches.reference import crop_patches, sampling_grid


def supports(call: Call) -> str | None:
    """Everything the operator takes."""
    return None


def forward(call: Crop) -> None:
    """The truth."""
    call.patches.copy_(crop_patches(call.image, call.boxes, call.patches.shape[-1]))


def adjoint(call: Adjoint) -> None:
    """torch's derivative of grid_sample on the same grid."""
    wide, size = accumulator(call.dtype), call.dpatches.shape[-1]
    grid = sampling_grid(call.boxes, size, wide)
    dtall = call.dpatches.transpose(1, 2).flatten(2, 3).to(wide)  # [N, C, P·S, S]
    shape_only = dtall.new_zeros(()).expand(call.dimage.shape)
    bilinear, zeros, needs = 0, 0, [True, False]
    grads = torch.ops.aten.grid_sampler_2d_backward(
        dtall, shape_only, grid, bilinear, zeros, False, needs
    )
    call.dimage.copy_(grads[0])
