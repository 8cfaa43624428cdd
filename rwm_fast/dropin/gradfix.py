"""Convolutions and samplings that other projects wrap to get a second derivative on old torch.

torch's convolutions have every order since 1.11, so they are handed on. Its grid_sample has the
first alone, so that one is completed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.dropin._offer import Alternatives


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """torch.nn.functional.conv2d."""
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """torch.nn.functional.conv_transpose2d."""
    return F.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Changes nothing, as in the originals since torch 1.11: torch itself computes no weight
    gradient that torch.autograd.grad was not asked for."""
    yield


NAMES: dict[str, Alternatives] = {
    "conv2d": (("input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1", conv2d),),
    "conv_transpose2d": (
        (
            "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
            conv_transpose2d,
        ),
    ),
    "no_weight_gradients": (("disable=True", no_weight_gradients), ("", no_weight_gradients)),
}
SWITCHES: dict[str, Any] = {"enabled": False, "weight_gradients_disabled": False}


class GridSample(torch.autograd.Function):
    """Bilinear sampling where only the image takes a gradient: linear in it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = input.shape
        return F.grid_sample(input, grid, "bilinear", "zeros", False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        (grid,) = ctx.saved_tensors
        return GridScatter.apply(dy, grid, ctx.shape), None


class GridScatter(torch.autograd.Function):
    """The adjoint of GridSample, and the other way round."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        backward = torch.ops.aten.grid_sampler_2d_backward
        image = dy.new_zeros(shape)
        return backward(dy, image, grid, 0, 0, False, (True, False))[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return GridSample.apply(u, grid), None, None


def gathered(input: Tensor, grid: Tensor) -> Tensor:
    """The same sampling of [N, C, H, W] at [N, h, w, 2] by four gathers."""
    n, c, height, width = input.shape
    x = (grid[..., 0] + 1) * (width / 2) - 0.5  # [N, h, w], in pixels
    y = (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    flat = input.flatten(2)  # [N, C, H·W]
    result = input.new_zeros(n, c, *x.shape[1:])
    for column, row in ((0, 0), (1, 0), (0, 1), (1, 1)):
        i, j = left + column, top + row
        weight = (1 - (x - i).abs()) * (1 - (y - j).abs())
        inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
        place = (j.clamp(0, height - 1) * width + i.clamp(0, width - 1)).long().flatten(1)
        pixels = flat.gather(2, place[:, None].expand(-1, c, -1)).reshape(n, c, *x.shape[1:])
        result = result + pixels * (weight * inside)[:, None]
    return result
