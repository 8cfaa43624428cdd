"""A modulated 1×1 convolution to at most four channels, as one kernel each way (to RGB).

y_o(p) = act(Σ_i W[o, i]·a_i(p)·x_i(p) + bias_o)·gain, without demodulation and noise. Such a layer
moves x and next to nothing else, so reading x once is all there is to gain. `convolve` and `in_one`
ask `serves` and come here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import (
    DTYPE_CODES,
    activation_record,
    addresses,
    blend_record,
    epilogue_record,
    place,
)
from rwm_fast.ops.modulated_conv2d.cuda.sums import sum_rows
from rwm_fast.ops.modulated_conv2d.layer import Layer, Needs

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


def serves_backward(layer: Layer, needs: Needs) -> bool:
    """Up to two styles, and no gradient to the regions."""
    return layer.styles.shape[1] <= _STYLES and not needs.regions_in


def _chunks(n: int, pixels: int) -> int:
    """Pieces of an image: enough for a GPU, each with enough pixels to be worth its start."""
    return min(-(-pixels // 256), -(-1024 // n))


def _weight(layer: Layer) -> Tensor:
    return layer.weight.to(layer.wide).flatten(1).contiguous()  # [O, I]


def forward(layer: Layer) -> Tensor:
    """y, channels_last."""
    n, i, h, w = layer.x.shape
    o = layer.weight.shape[0]
    weight, y = _weight(layer), layer.x.new_empty((n, h, w, o))
    module = _extension.cuda()
    module.modulated_conv2d_to_rgb(
        module.Images(n, h * w, i, DTYPE_CODES[y.dtype]),
        *addresses(layer.x, weight, y),
        *(o, _chunks(n, h * w)),
        blend_record(module, layer.styles, layer.regions_in),
        epilogue_record(module, layer.epilogue(None)._replace(regions=None)),
        *place(y),
    )
    return y.permute(0, 3, 1, 2)


def backward(layer: Layer, dy: Tensor, y: Tensor, needs: Needs) -> list[Tensor | None]:
    """dx; dW and ds from Σ_p r_k·dv_o·x_i; dbias."""
    (n, i, h, w), k, o = layer.x.shape, layer.styles.shape[1], layer.weight.shape[0]
    chunks, weight = _chunks(n, h * w), _weight(layer)
    dx = torch.empty_like(layer.x, memory_format=torch.channels_last) if needs.x else None
    products = weight.new_empty((n, chunks, k * o * i)) if needs.weight or needs.styles else None
    bias_sums: Any = weight.new_empty((1, n * chunks, o)) if needs.bias else None
    plain = not layer.settings.act.reads_y
    module = _extension.cuda()
    module.modulated_conv2d_to_rgb_backward(
        module.Images(n, h * w, i, DTYPE_CODES[dy.dtype]),
        *addresses(dy, None if plain else y, layer.x, weight),
        blend_record(module, layer.styles, layer.regions_in),
        activation_record(module, layer.settings.act),
        module.RgbSums(o, *addresses(dx, products, bias_sums), chunks),
        *place(dy),
    )
    dw = ds = None
    if products is not None:
        sums = sum_rows(products).view(n, k, o, i)
        if needs.weight:
            dw = (sums * layer.styles[:, :, None]).sum((0, 1))[:, :, None, None]
        ds = (sums * weight).sum(2) if needs.styles else None
    dbias = sum_rows(bias_sums)[0] if needs.bias else None
    return [dx, dw, ds, None, None, None, None, dbias]
