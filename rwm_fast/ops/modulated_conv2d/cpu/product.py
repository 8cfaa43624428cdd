"""1×1 layers with one style as a matrix product with the weights of each image, W·s."""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops._memory import LAST, Epilogue
from rwm_fast.ops.modulated_conv2d.cpu import passes
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs


def _rows(x: Tensor) -> Tensor:
    """A channels_last tensor as [N, HW, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _weights(layer: Layer) -> Tensor:
    """W·s [N, O, I] in the images' dtype."""
    return (layer.body.weights.wide[:, :, 0, 0] * layer.styles).to(layer.x.dtype)


def forward(layer: Layer, epilogue: Epilogue) -> Tensor:
    """y = epilogue(x·(W·s)ᵀ)."""
    u = torch.bmm(_rows(layer.x), _weights(layer).mT)  # [N, HW, O]
    y = torch.empty(layer.result, dtype=u.dtype, memory_format=LAST)
    return passes.finish(layer, u, epilogue, y)


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """dx = du·(W·s); dW and ds from duᵀ·x of each image."""
    g, x = _rows(du), _rows(layer.x)  # [N, HW, O], [N, HW, I]
    dx = ds = dw = None
    if needs.x:
        dx = torch.empty_like(layer.x)
        torch.bmm(g, _weights(layer), out=_rows(dx))
    if needs.styles or needs.weight:
        products = torch.bmm(g.mT, x).to(layer.wide)  # [N, O, I]
        if needs.styles:
            ds = (products * layer.body.weights.wide[:, :, 0, 0]).sum(1, keepdim=True)
        if needs.weight:
            dw = (products * layer.styles).sum(0)[:, :, None, None]
            dw = passes.with_demodulation(layer, dw, scale)
    return Gradients(dx, dw, ds)
