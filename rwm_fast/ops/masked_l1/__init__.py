"""masked_l1: the content alignment distance, one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops._torch_private import any_autocast
from rwm_fast.ops.masked_l1 import autograd as _autograd


def masked_l1(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    r"""Mean absolute distance to one image inside a mask and to another outside it.

    .. math:: L = \frac{1}{|I|} \sum \bigl( |m|\,|h - g| + |1 - m|\,|h - a| \bigr)

    with h = hybrid, g = inside, a = outside, m = mask, and \|I\| the number of elements of h.

    Parameters
    ----------
    hybrid, inside, outside
        [N, C, H, W], one shape and one dtype: float16, bfloat16, float32 or float64; any strides.
    mask
        [N, 1, H, W] or [N, C, H, W], bool, or the images' dtype, or float32 beside half-precision
        images; 1 = compare with `inside`. Usually in [0, 1]; other values count by their absolute
        value.

    Returns
    -------
    Tensor
        the loss, a scalar of dtype float32 (float64 for float64 images); NaN for an empty batch, as
        `torch.nn.functional.l1_loss`.

    Gradients to all four arguments, of every order; the derivative of \|t\| at 0 is 0. Sums are
    kept in float32 or better and added in a fixed order: repeated calls agree bit for bit.

    Raises
    ------
    TypeError, ValueError
        if an argument is not a tensor, or a shape, dtype or device does not fit.

    Source: content alignment loss, You et al., ACM MM 2021 (arXiv 2108.08674): L_CA with h = I_h, g
    = I_g, a = I_A.
    """
    if any_autocast():
        tensors = _check.mixed(hybrid, inside, outside, mask, widest=True)
        hybrid, inside, outside, mask = tensors
    _validate(hybrid, inside, outside, mask)
    if mask.dtype == torch.bool:
        mask = mask.to(hybrid.dtype)
    save = torch.is_grad_enabled() and (
        hybrid.requires_grad or inside.requires_grad or outside.requires_grad or mask.requires_grad
    )
    return _autograd.masked_l1(hybrid, inside, outside, mask, save)[0]


def _validate(hybrid: Tensor, inside: Tensor, outside: Tensor, mask: Tensor) -> None:
    op = "masked_l1"
    _check.floating(op, "hybrid", hybrid)
    shape, dtype, device = hybrid.shape, hybrid.dtype, hybrid.device
    if len(shape) != 4:
        _check.require(False, op, "hybrid must be [N, C, H, W]", hybrid)
    for name, image in (("inside", inside), ("outside", outside)):
        _check.tensor(op, name, image)
        if image.shape != shape or image.dtype != dtype or image.device != device:
            rule = f"{name} must have hybrid's shape, dtype and device ({_check.describe(hybrid)})"
            _check.require(False, op, rule, image)
    _check.tensor(op, "mask", mask)
    if mask.shape != shape and mask.shape != (shape[0], 1, shape[2], shape[3]):
        rule = f"mask must be [N, 1, H, W] or [N, C, H, W] for images {list(shape)}"
        _check.require(False, op, rule, mask)
    if mask.dtype != torch.bool:
        _check.like(op, "mask", mask, "hybrid", hybrid)
    elif mask.device != device:
        _check.require(False, op, f"mask must be on {device}", mask)
