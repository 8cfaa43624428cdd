"""The registered operators behind crop_patches; knows no backend.

The crop A is linear in the image, so its derivative is its adjoint Aᵀ, and the derivative of Aᵀ is
A: two operators give every order.
"""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops import _dispatch
from rwm_fast.ops._registry import register
from rwm_fast.ops.crop_patches import gathered
from rwm_fast.ops.crop_patches.call import adjoint_call, crop_call, empty_image, empty_patches

OP = "crop_patches"

# ---- rwm_fast::crop_patches


def _forward(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    call = crop_call(image, boxes, size)
    backend = _dispatch.choose(OP, call)
    if call.patches.numel():
        backend.forward(call)
    return call.patches


def _save_forward(ctx, inputs, output) -> None:
    image, boxes, _ = inputs
    ctx.height, ctx.width = image.shape[2:]
    ctx.save_for_backward(boxes)


def _forward_derivative(ctx, dpatches: Tensor):
    (boxes,) = ctx.saved_tensors
    dimage = crop_patches_adjoint(dpatches, boxes, ctx.height, ctx.width)
    return dimage, None, None


crop_patches = register(
    "crop_patches(Tensor image, Tensor boxes, SymInt size) -> Tensor",
    _forward,
    empty_patches,
    backward=_forward_derivative,
    setup_context=_save_forward,
    truth=gathered.crop_patches,
)

# ---- rwm_fast::crop_patches_adjoint


def _adjoint(dpatches: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    call = adjoint_call(dpatches, boxes, height, width)
    backend = _dispatch.choose(OP, call)
    if call.dpatches.numel():
        backend.adjoint(call)
    else:
        call.dimage.zero_()
    return call.dimage


def _save_adjoint(ctx, inputs, output) -> None:
    dpatches, boxes, _, _ = inputs
    ctx.size = dpatches.shape[-1]
    ctx.save_for_backward(boxes)


def _adjoint_derivative(ctx, d_dimage: Tensor):
    (boxes,) = ctx.saved_tensors
    return crop_patches(d_dimage, boxes, ctx.size), None, None, None


crop_patches_adjoint = register(
    "crop_patches_adjoint(Tensor dpatches, Tensor boxes, SymInt height, SymInt width) -> Tensor",
    _adjoint,
    lambda dpatches, boxes, height, width: empty_image(dpatches, height, width),
    backward=_adjoint_derivative,
    setup_context=_save_adjoint,
    truth=gathered.adjoint,
)
