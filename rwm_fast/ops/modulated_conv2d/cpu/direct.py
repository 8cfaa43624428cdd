"""Convolutions by definition in C++ (csrc/modulated_conv2d/direct.h), of any kernel and stride.

They round like torch's own. Halvings and small images are where they are faster than those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import LAST, Epilogue, addresses
from rwm_fast.ops.modulated_conv2d.cpu import passes
from rwm_fast.ops.modulated_conv2d.cpu.operands import Shape, block
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs


def plan(shape: Shape) -> Any:
    """The DirectPlan: from behind the filter before the convolution to its result."""
    p, chain = shape.geometry.passes, shape.geometry.chain
    sizes = chain[p.before is not None], chain[-1]
    batch = shape.x[0]
    return _extension.cpu().DirectPlan(shape.kernels(), batch, *sizes, p.stride, p.padding)


def _packed(layer: Layer, adjoint: bool) -> Tensor:
    """The kernels in the order that the products read."""
    weights, module, flip = layer.body.weights, _extension.cpu(), layer.settings.flip_weight

    def make() -> Tensor:
        kernels, wide = weights.kernels, weights.wide
        u = block(module.modulated_conv2d_direct_weights_size(kernels, adjoint), wide.dtype)
        module.modulated_conv2d_direct_weights(kernels, *addresses(wide, u), adjoint)
        return u

    return weights.cached(("direct", adjoint, flip, layer.wide, module.isa()), make)


def _input(layer: Layer) -> tuple[Tensor, Tensor | None]:
    """What is convolved: the input after the filter before the convolution, and the scale that is
    still to be applied. That of regions comes before the filter, and so does one style's, which is
    then the same to the last bit as a region everywhere; a constant needs no pass of its own.
    """
    x, before = layer.x, layer.geometry.passes.before
    a: Tensor | None = layer.styles
    if layer.regions_in is not None or not (before is None or layer.constant):
        x, a = passes.scaled(layer), None
    return (x if before is None else passes.fir(x, layer.filter, before)), a


def forward(layer: Layer, epilogue: Epilogue) -> Tensor:
    """y = epilogue(conv(W, a·z))."""
    z, a = _input(layer)
    packed = _packed(layer, adjoint=False)
    u = torch.empty(layer.result, dtype=z.dtype, memory_format=LAST)
    _extension.cpu().modulated_conv2d_direct(layer.body.records.plan, *addresses(z, packed, u, a))
    return passes.finish(layer, u, epilogue)


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """dz = convᵀ(W, du), and dW of (a·z, du)."""
    module, plan, weights = _extension.cpu(), layer.body.records.plan, layer.body.weights
    dx = ds = dw = None
    if needs.x or needs.styles:
        p, chain = layer.geometry.passes, layer.geometry.chain
        shape = (*layer.x.shape[:2], *chain[p.before is not None])
        dz = torch.empty(shape, dtype=du.dtype, memory_format=LAST)
        last = not needs.styles and layer.regions_in is None  # nobody asks for dz without the scale
        packed, a = _packed(layer, adjoint=True), layer.styles if last else None
        module.modulated_conv2d_direct_input_gradient(plan, *addresses(du, packed, dz, a))
        if last:
            dx = passes.before_filter(layer, dz)
        else:
            dx, ds = passes.unscaled(layer, dz, needs)
    if needs.weight:
        z, a = _input(layer)
        dw = torch.empty_like(weights.wide)
        module.modulated_conv2d_direct_weight_gradient(
            plan, *addresses(z, a, du, weights.wide, scale, dw)
        )
    return Gradients(dx, dw, ds)
