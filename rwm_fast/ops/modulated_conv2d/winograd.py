"""3×3 layers on the CPU by Winograd's algorithm (csrc/modulated_conv2d): which, and their weights.

F(4×4, 3×3) multiplies 36 times where the definition multiplies 144 times; a doubling 81 times, with
the filter in a pass of its own (folded into the weights it would take 144 again). The result is off
the float64 truth by about twice what torch's float32 convolution is off, that of a doubling by
three to four times (largest error 1e-6 to 4e-6 of the largest value, for 32 to 512 channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _cpu
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d._geometry import Settings
from rwm_fast.ops.modulated_conv2d._weights import Weights, block

# Set to False where results must be as close as torch's own convolution.
enabled = True


class Body(NamedTuple):
    """A layer as the kernels run it: a 3×3 correlation, with the filter in a pass of its own."""

    stride: int  # 0: none; 1: the output is twice as large; 2: half as large, the adjoint of that
    off_y: int = 0  # stride 0: where a patch starts, in pixels
    off_x: int = 0

    def adjoint(self) -> Body:
        """Of the transposed correlation."""
        return (
            Body((0, 2, 1)[self.stride])
            if self.stride
            else Body(0, -2 - self.off_y, -2 - self.off_x)
        )

    def flips(self, flip_weight: bool, adjoint: bool) -> bool:
        """Whether the kernels are read backwards; a doubling scatters, so turns them over."""
        if self.stride:
            return flip_weight == (self.stride == UP)
        return (not flip_weight) != adjoint


UP, DOWN = 1, 2


def body(settings: Settings, weight: Tensor) -> Body | None:
    """The layer's body; None if it has none (other kernels and factors)."""
    if tuple(weight.shape[2:]) != (3, 3) or settings.down > 1 or settings.up > 2:
        return None
    if settings.up == 2:
        return Body(UP)
    px, _, py, _ = settings.padding
    return Body(0, -py, -px)


def pays(body: Body, weight: Tensor, batch: int, size: Sequence[int]) -> bool:
    """Whether a layer with this output size has tiles enough to earn back its weights' transform.

    Nanoseconds for each pair of channels, measured on one Zen 3 core: 0.24 a pixel by definition,
    1.1 a tile and 20 a transformed kernel here. For fewer inputs than a vector holds, as of a
    network's first layer, the definition is faster.
    """
    h, w = (-(-s // 2) if body.stride == UP else s for s in size)  # where the products are
    tiles = batch * -(-h // 4) * -(-w // 4)
    earned = 0.24 * batch * h * w - (2.5 if body.stride == UP else 1.1) * tiles
    return earned > 20 and weight.shape[1] >= 8


def transformed(weights: Weights, adjoint: bool) -> Tensor:
    """G w Gᵀ of every kernel, in the order the products read them."""
    body, wide = weights.body, weights.wide
    flip = body.flips(weights.flip_weight, adjoint)
    key = (adjoint, bool(body.stride), flip, wide.dtype, _cpu.module().isa())
    return weights.cached(key, lambda: _transform(weights, flip, adjoint))


def _transform(weights: Weights, flip: bool, adjoint: bool) -> Tensor:
    module, wide, code = _cpu.module(), weights.wide, DTYPE_CODES[weights.wide.dtype]
    ins, outs = wide.shape[:2] if adjoint else wide.shape[1::-1]
    u = block(module.modulated_conv2d_winograd_weights_size(ins, outs, code), wide.dtype)
    module.modulated_conv2d_winograd_weights(
        address(wide), address(u), weights.strides, adjoint, ins, outs,
        bool(weights.body.stride), flip, code,
    )  # fmt: skip
    return u


def _extents(body: Body, x: Tensor, y_shape: Sequence[int]) -> tuple[int, ...]:
    n, i, h, w = x.shape
    return (n, h, w, i, *y_shape[2:], y_shape[1], *body)


def forward(
    x: Tensor,  # [N, I, h, w], channels_last
    y: Tensor,  # [N, O, H, W], channels_last, written
    weights: Weights,
    a: Tensor | None,  # [N, K, I]
    regions_in: Tensor | None,
    epilogue: Sequence[object],
) -> None:
    """y = clamp(act(b·conv(W, a·x) + noise + bias)·gain); see native_cpu_layer.Epilogue.

    A doubling gives conv(W, a·x) alone: its filter comes next. A halving takes no regions: its
    filter came before.
    """
    u = transformed(weights, adjoint=False)
    b, regions_out, styles, *rest = epilogue
    _cpu.module().modulated_conv2d_winograd(
        _extents(weights.body, x, y.shape),
        *map(address, (x, u, y, a, regions_in)), b, regions_out, styles, *rest,
        DTYPE_CODES[x.dtype],
    )  # fmt: skip


def input_gradient(
    du: Tensor,  # [N, O, H, W], channels_last
    x: Tensor,  # [N, I, h, w], channels_last
    weights: Weights,
    a: Tensor | None,  # [N, K, I]
    regions_in: Tensor | None,
    dx: Tensor | None,  # like x, written
    da: Tensor | None,  # [N, K, I], written
) -> None:
    """With dz = convᵀ(du): dx = a·dz, da_k = Σ_p r_k x·dz."""
    u = transformed(weights, adjoint=True)
    _cpu.module().modulated_conv2d_winograd_input_gradient(
        _extents(weights.body.adjoint(), du, x.shape),
        *map(address, (du, u, dx, x, da, a, regions_in)), 1 if a is None else a.shape[1],
        DTYPE_CODES[x.dtype],
    )  # fmt: skip


def weight_gradient(
    x: Tensor,  # [N, I, h, w], channels_last
    du: Tensor,  # [N, O, H, W], channels_last
    weights: Weights,
    a: Tensor | None,  # [N, K, I]
    regions_in: Tensor | None,
    scale: Tensor | None,  # [O, I]
) -> Tensor:
    """dW [O, I, 3, 3] = the adjoint of conv(W, a·x) in W, + 2 W·scale."""
    wide = weights.wide
    dw = torch.empty_like(wide)
    _cpu.module().modulated_conv2d_winograd_weight_gradient(
        _extents(weights.body, x, du.shape),
        *map(address, (x, a, regions_in)), 1 if a is None else a.shape[1], address(du),
        weights.body.flips(weights.flip_weight, False), weights.strides,
        *map(address, (wide, scale, dw)), DTYPE_CODES[x.dtype],
    )  # fmt: skip
    return dw
