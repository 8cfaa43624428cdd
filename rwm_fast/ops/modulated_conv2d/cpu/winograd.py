"""3×3 layers on the CPU by Winograd's algorithm (csrc/modulated_conv2d): which, and their weights.

F(4×4, 3×3) multiplies 36 times where the definition multiplies 144 times; a doubling 81 times, with
the filter in a pass of its own (folded into the weights it would take 144 again). The result is off
the float64 truth by about twice what torch's float32 convolution is off, that of a doubling by
three to four times (largest error 1e-6 to 4e-6 of the largest value, for 32 to 512 channels).

That error is one of the largest value that a tile of 6×6 pixels reads, at all of its 16 results,
where the definition's is one of what each result itself reads; and of a NaN or an infinity it makes
16 NaNs. So layers whose input (or, backward, gradient) is not finite, or has a value of more than
`MOST_UNEVEN` times the mean size of its numbers that are not 0, and those of weights that are not
finite, go by definition: what Winograd's algorithm serves is off by at most 1e-3 of that mean. To
look takes 0.14, 0.25 and 0.6 ms of forward passes of 7 to 8 ms (256 channels at 16 pixels, 128 at
32, 64 at 64; one thread of a 2.5 GHz Xeon, images not in its caches). RWM_FAST_EXACT=1 has all
layers go by definition.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _extension
from rwm_fast.ops._memory import LAST, NOTHING, Epilogue, addresses, blend_record, epilogue_record
from rwm_fast.ops.modulated_conv2d.cpu import passes
from rwm_fast.ops.modulated_conv2d.cpu.operands import Shape, Weights, block
from rwm_fast.ops.modulated_conv2d.layer import Gradients, Layer, Needs

# Set to False where results must be as close as torch's own convolution.
enabled = os.environ.get("RWM_FAST_EXACT", "") in ("", "0")
MOST_UNEVEN = 256.0  # images and gradients of the demo's networks had up to 64


def serves(shape: Shape) -> bool:
    """Whether a layer is one, and has tiles enough to earn back its weights' transform.

    Nanoseconds for each pair of channels, measured on one Zen 3 core: 0.24 a pixel by definition,
    1.1 a tile and 20 a transformed kernel here. For fewer inputs than a vector holds, as of a
    network's first layer, the definition is faster.
    """
    if tuple(shape.weight[2:]) != (3, 3) or shape.geometry.down > 1 or shape.geometry.up > 2:
        return False
    batch, (height, width) = shape.x[0], shape.geometry.chain[-1]
    h, w = (-(-side // shape.geometry.up) for side in (height, width))  # where the products are
    tiles = batch * -(-h // 4) * -(-w // 4)
    earned = 0.24 * batch * h * w - (2.5 if shape.geometry.up == 2 else 1.1) * tiles
    return earned > 20 and shape.weight[1] >= 8


def keeps_to_bound(layer: Layer, weights: Weights, images: Any, x: Tensor) -> bool:
    """Whether x, with the given record, and the weights are as even as the error's bound asks."""
    module = _extension.cpu()
    total = weights.cached("total", lambda: weights.wide.sum())  # finite if all of them are
    even = module.modulated_conv2d_is_even
    return math.isfinite(total.item()) and even(images, *addresses(x), MOST_UNEVEN)


def plan(shape: Shape) -> Any:
    """The WinogradPlan: a doubling's result is that before its filter."""
    px, _, py, _ = shape.geometry.padding
    offset = (0, 0) if shape.geometry.up == 2 else (-py, -px)
    size = shape.geometry.chain[1 if shape.geometry.up == 2 else -1]
    batch, inputs = shape.x[0], tuple(shape.x[2:])
    return _extension.cpu().WinogradPlan(
        shape.kernels(), batch, inputs, size, shape.geometry.up, offset
    )


def _transformed(layer: Layer, adjoint: bool) -> Tensor:
    """G w Gᵀ of every kernel, in the order the products read them."""
    weights, up, module = layer.body.weights, layer.settings.up, _extension.cpu()
    flip = layer.settings.flip_weight

    def make() -> Tensor:
        kernels, wide = weights.kernels, weights.wide
        u = block(module.modulated_conv2d_winograd_weights_size(kernels, adjoint), wide.dtype)
        module.modulated_conv2d_winograd_weights(kernels, *addresses(wide, u), up, adjoint)
        return u

    return weights.cached((adjoint, up, flip, layer.wide, module.isa()), make)


def forward(layer: Layer, epilogue: Epilogue) -> Tensor:
    """y = epilogue(conv(W, a·x)); a doubling's filter, and what follows it, come next."""
    x, after = layer.x, layer.geometry.passes.after
    module, u = _extension.cpu(), _transformed(layer, adjoint=False)
    before = blend_record(module, layer.styles, layer.regions_in)
    # in front of a doubling's filter; mere padding and cropping before it is the plan's offset
    size = layer.geometry.chain[-1 - len(after)]
    shape = (x.shape[0], layer.weight.shape[0], *size)
    y = torch.empty(shape, dtype=x.dtype, memory_format=LAST)
    inside = epilogue_record(module, NOTHING if after else epilogue)
    module.modulated_conv2d_winograd(layer.body.records.plan, *addresses(x, u, y), before, inside)
    return passes.finish(layer, passes.fir(y, layer.filter, after[0]), epilogue) if after else y


def gradients(layer: Layer, du: Tensor, scale: Tensor | None, needs: Needs) -> Gradients:
    """With dz = convᵀ(du): dx = a·dz, ds_k = Σ_p r_k x·dz; dW = convᵀ in W of (a·x, du)."""
    module, x = _extension.cpu(), layer.x
    plan, weights = layer.body.records.plan, layer.body.weights
    for f in layer.geometry.passes.after:
        du = passes.fir_adjoint(du, layer.filter, f, layer.geometry.chain[1])
    before = blend_record(module, layer.styles, layer.regions_in)
    dx = torch.empty_like(x) if needs.x else None
    ds = torch.empty_like(layer.styles) if needs.styles else None
    dw = None
    if needs.x or needs.styles:
        u = _transformed(layer, adjoint=True)
        module.modulated_conv2d_winograd_input_gradient(plan, *addresses(du, u, dx, x, ds), before)
    if needs.weight:
        dw = torch.empty_like(weights.wide)
        module.modulated_conv2d_winograd_weight_gradient(
            plan, *addresses(x, du), before, *addresses(weights.wide, scale, dw)
        )
    return Gradients(dx, dw, ds)
