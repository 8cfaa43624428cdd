"""A modulated 1×1 convolution to at most four channels, as one kernel each way (to RGB).

y_o(p) = act(Σ_i W[o, i]·a_i(p)·x_i(p) + bias_o)·gain, without demodulation and noise. Such a layer
moves x and next to nothing else, so reading x once is all there is to gain. `native_cuda` asks
`serves` and comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwm_fast.ops import _cuda
from rwm_fast.ops._cuda import address
from rwm_fast.ops._extension import DTYPE_CODES

if TYPE_CHECKING:
    from rwm_fast.ops.modulated_conv2d.native_cuda import Layer

_OUTPUTS = 4  # kOutputs in csrc/modulated_conv2d/kernel.cuh
_STYLES = 2  # the gradient's sums are in registers
_SHARED_BYTES = 48 * 1024  # what every GPU gives a block without being asked


def serves(layer: Layer) -> bool:
    """Whether this layer is one; weight and styles of an image must fit in shared memory."""
    o, i, kh, kw = layer.weight.shape
    settings = layer.settings
    plain = kh == kw == settings.up == settings.down == 1 and not any(settings.padding)
    numbers = (o + layer.styles.shape[1]) * i
    fits = o <= _OUTPUTS and numbers * layer.styles.element_size() <= _SHARED_BYTES
    return plain and fits and not settings.demodulate and layer.noise is None


def serves_backward(layer: Layer, needs: Sequence[bool]) -> bool:
    """Up to two styles, and no gradient to the regions."""
    return layer.styles.shape[1] <= _STYLES and not needs[3]


def _chunks(n: int, pixels: int) -> int:
    """Pieces of an image: enough for a GPU, each with enough pixels to be worth its start."""
    return min(-(-pixels // 256), -(-1024 // n))


def _weight(layer: Layer) -> Tensor:
    return layer.weight.to(layer.wide).flatten(1).contiguous()  # [O, I]


def forward(layer: Layer) -> Tensor:
    """y, channels_last."""
    n, i, h, w = layer.x.shape
    o, count = layer.weight.shape[0], layer.styles.shape[1]
    weight, y = _weight(layer), layer.x.new_empty((n, h, w, o))
    _cuda.module().modulated_conv2d_to_rgb(
        *map(address, (layer.x, weight, layer.styles, layer.regions_in, layer.bias, y)),
        *(n, h * w, i, _chunks(n, h * w), o, count),
        *layer.activation,
        DTYPE_CODES[y.dtype],
        *_cuda.place(y),
    )
    return y.permute(0, 3, 1, 2)


def backward(
    layer: Layer, dy: Tensor, y: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """dx; dW and ds from Σ_p r_k·dv_o·x_i; dbias."""
    from rwm_fast.ops.modulated_conv2d.native_cuda import _sum

    need_x, need_w, need_s, *_, need_bias = needs
    (n, i, h, w), k, o = layer.x.shape, layer.styles.shape[1], layer.weight.shape[0]
    chunks, weight = _chunks(n, h * w), _weight(layer)
    dx = torch.empty_like(layer.x, memory_format=torch.channels_last) if need_x else None
    products = weight.new_empty((n, chunks, k * o * i)) if need_w or need_s else None
    bias_sums = weight.new_empty((1, n * chunks, o)) if need_bias else None
    plain = layer.settings.activation == "linear" and layer.settings.clamp is None
    _cuda.module().modulated_conv2d_to_rgb_backward(
        *map(address, (dy, None if plain else y, layer.x, weight, layer.styles)),
        *map(address, (layer.regions_in, dx, products, bias_sums)),
        *(n, h * w, i, chunks, o, k),
        *layer.activation,
        DTYPE_CODES[dy.dtype],
        *_cuda.place(dy),
    )
    dw = ds = None
    if products is not None:
        sums = _sum(products).view(n, k, o, i)
        dw = (sums * layer.styles[:, :, None]).sum((0, 1))[:, :, None, None] if need_w else None
        ds = (sums * weight).sum(2) if need_s else None
    dbias = _sum(bias_sums)[0] if need_bias else None
    return dx, dw, ds, None, None, None, None, dbias
