"""Convolutions by definition in C++ (csrc/modulated_conv2d/direct.h), of any kernel and stride.

They round like torch's own. Halvings and small images are where they are faster than those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _cpu
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d._geometry import Plan
from rwm_fast.ops.modulated_conv2d._weights import Weights, block


def _extents(z: Sequence[int], u: Sequence[int], weights: Weights, p: Plan) -> tuple[int, ...]:
    """The numbers of a DirectPlan, from two shapes."""
    (n, i, h, w), (_, o, *size) = z, u
    return (n, h, w, i, *size, o, *weights.wide.shape[2:], p.stride, *p.padding)


def _packed(weights: Weights, extents: tuple[int, ...], adjoint: bool) -> Tensor:
    """The kernels in the order that the products read."""
    module, wide = _cpu.module(), weights.wide
    flip, code = not weights.flip_weight, DTYPE_CODES[wide.dtype]

    def make() -> Tensor:
        u = block(module.modulated_conv2d_direct_weights_size(extents, adjoint, code), wide.dtype)
        module.modulated_conv2d_direct_weights(
            extents, address(wide), address(u), weights.strides, adjoint, flip, code
        )
        return u

    return weights.cached(("direct", adjoint, flip, wide.dtype, module.isa()), make)


def forward(
    z: Tensor,  # [N, I, h, w], channels_last
    u: Tensor,  # [N, O, H, W], channels_last, written
    weights: Weights,
    a: Tensor | None,  # [N, I]
    p: Plan,
) -> None:
    """u = conv(W, a·z)."""
    extents = _extents(z.shape, u.shape, weights, p)
    packed = _packed(weights, extents, adjoint=False)
    _cpu.module().modulated_conv2d_direct(
        extents, *map(address, (z, packed, u, a)), DTYPE_CODES[z.dtype]
    )


def input_gradient(
    du: Tensor,  # [N, O, H, W], channels_last
    dz: Tensor,  # [N, I, h, w], channels_last, written
    weights: Weights,
    a: Tensor | None,  # [N, I]
    p: Plan,
) -> None:
    """dz = a·convᵀ(W, du)."""
    extents = _extents(dz.shape, du.shape, weights, p)
    packed = _packed(weights, extents, adjoint=True)
    _cpu.module().modulated_conv2d_direct_input_gradient(
        extents, *map(address, (du, packed, dz, a)), DTYPE_CODES[du.dtype]
    )


def weight_gradient(
    z: Tensor,  # [N, I, h, w], channels_last
    du: Tensor,  # [N, O, H, W], channels_last
    weights: Weights,
    a: Tensor | None,  # [N, I]
    scale: Tensor | None,  # [O, I]
    p: Plan,
) -> Tensor:
    """dW [O, I, kh, kw] = the adjoint of conv(W, a·z) in W, + 2 W·scale."""
    dw = torch.empty_like(weights.wide)
    _cpu.module().modulated_conv2d_direct_weight_gradient(
        _extents(z.shape, du.shape, weights, p), *map(address, (z, a, du)),
        not weights.flip_weight, weights.strides, *map(address, (weights.wide, scale, dw)),
        DTYPE_CODES[z.dtype],
    )  # fmt: skip
    return dw
