"""Which backend of modulated_conv2d serves a layer on a GPU: the fused Triton kernels, or torch's
convolution (cuDNN) between the fused CUDA passes of `native`. One readable table.

Nothing has been timed on a GPU: the table is a model's answer, every row a guess to be measured.
The model: a fused convolution wins where the share of the tensor cores that a Triton kernel of its
shape can be expected to reach is above the share at which it takes as long as cuDNN at 80 % and one
more pass over the result. That is where three things hold: the sum over a kernel's taps is long, so
the loop outweighs its start; there are tiles for every multiprocessor; the arithmetic is that of
the tensor cores at full rate. `use_backend` overrules the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _triton
from rwm_fast.ops.modulated_conv2d._geometry import Settings


class Row(NamedTuple):
    """Layers that Triton serves before `native`."""

    capability: int  # major
    dtypes: tuple[torch.dtype, ...]
    kernel: int
    inputs: int  # channels, at least
    outputs: int  # channels, at least
    tiles: int  # of 128 pixels by up to 256 channels, at least


HALF = (torch.bfloat16, torch.float16)
TABLE = (
    # H100, H200: 32 pixels and up at the model's widths (batch 16); 132 multiprocessors. Layers of
    # 16 pixels, 1×1 layers, few channels, strided convolutions and float32 stay with cuDNN.
    Row(9, HALF, kernel=3, inputs=128, outputs=128, tiles=132),
    # 8.x and 10.x: the model says nothing, so cuDNN stays in front.
)


def prefer(
    names: tuple[str, ...], tensors: Sequence[Tensor | None], *, settings: Settings
) -> tuple[str, ...]:
    """The backends' names in the order in which this call should try them."""
    x, weight = tensors[:2]
    first = x.is_cuda and fused_first(
        _triton.capability(x.device), x.dtype, x.shape, weight.shape, settings
    )
    order = ("triton", "native") if first else ("native", "triton")
    return (*[n for n in order if n in names], *[n for n in names if n not in order])


def fused_first(
    capability: tuple[int, int],
    dtype: torch.dtype,
    shape: Sequence[int],  # N, I, h, w
    kernel: Sequence[int],  # O, I, kh, kw
    settings: Settings,
) -> bool:
    """Whether the table gives this layer to Triton."""
    n, inputs, h, w = shape
    outputs = kernel[0]
    pixels = n * h * w * settings.up**2
    tiles = -(-pixels // 128) * -(-outputs // 256)
    return settings.down == 1 and any(
        row.capability == capability[0]
        and dtype in row.dtypes
        and tuple(kernel[2:]) == (row.kernel, row.kernel)
        and inputs >= row.inputs
        and outputs >= row.outputs
        and tiles >= row.tiles
        for row in TABLE
    )
