"""3×3 layers on the CPU by Winograd's algorithm (csrc/modulated_conv2d): which, and their weights.

F(4×4, 3×3) multiplies 36 times where the definition multiplies 144 times; a halving or doubling 81
times, with the filter in a pass of its own (folded into the weights it would take 144 again).
The result is off the float64 truth by about twice what torch's float32 convolution is off, that of
a halving or doubling by three to four times (largest error 1e-6 to 4e-6 of the largest value, for
32 to 512 channels).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rwm_fast.ops import _cpu, _layout
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d._geometry import Settings

# Set to False where results must be as close as torch's own convolution.
enabled = True

# Bytes of transformed weights kept between calls: all layers of a model of about ten million
# weights. A step of training meets each layer several times between two updates.
CACHE_BYTES = 512 << 20


class Body(NamedTuple):
    """A layer as the kernels run it: a 3×3 correlation, with the filter in a pass of its own."""

    stride: int  # 0: none; 1: the output is twice as large; 2: half as large
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
    up, down = settings.up, settings.down
    if tuple(weight.shape[2:]) != (3, 3) or max(up, down) > 2 or up == down == 2:
        return None
    if up == down == 1:
        px, _, py, _ = settings.padding
        return Body(0, -py, -px)
    return Body(UP if up == 2 else DOWN)


def pays(body: Body, weight: Tensor, batch: int, size: Sequence[int]) -> bool:
    """Whether a layer with this output size has tiles enough to earn back its weights' transform.

    Nanoseconds for each pair of channels, measured on one Zen 3 core: 0.24 a pixel by definition,
    1.1 a tile and 20 a transformed kernel here.
    """
    h, w = (-(-s // 2) if body.stride == UP else s for s in size)  # where the products are
    tiles = batch * -(-h // 4) * -(-w // 4)
    return 0.24 * batch * h * w > (2.5 if body.stride else 1.1) * tiles + 20


class _Kept:
    """What was made from one state of a tensor."""

    total = 0  # bytes of all

    def __init__(self, state: object) -> None:
        self.state, self.values, self.size = state, {}, 0

    def add(self, key: object, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if self.total + size <= CACHE_BYTES:
            self.values[key] = value
            self.size += size
            type(self).total += size

    def __del__(self) -> None:
        type(self).total -= self.size


_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _state(source: Tensor) -> object | None:
    """What tells one state of a parameter from another; None for what is not worth keeping.

    Results that are not parameters change all the time.
    """
    dense = source.is_contiguous() or _layout.is_channels_last(source)
    if not source.is_leaf or not dense:
        return None
    # not the version counter: writing through .data leaves that as it is
    hash = _cpu.module().modulated_conv2d_fingerprint(address(source), source.nbytes)
    return hash, source.stride()


def cached(source: Tensor, state: object, key: object, make: Callable[[], Tensor]) -> Tensor:
    """make(), or what it gave before for the same key, tensor and state of the tensor."""
    if state is None:
        return make()
    kept = _cache.get(source)
    if kept is None or kept.state != state:
        kept = _cache[source] = _Kept(state)
    value = kept.values.get(key)
    if value is None:
        value = make()
        kept.add(key, value)
    return value


class Weights:
    """A layer's weights in the accumulator's dtype, and what is made from them."""

    def __init__(self, source: Tensor, wide: Tensor, body: Body | None, flip_weight: bool) -> None:
        self.source = source  # [O, I, kh, kw], as it came
        self.wide = wide  # [O, I, kh, kw], contiguous or channels_last
        self.body = body
        self.flip_weight = flip_weight

    @functools.cached_property
    def state(self) -> object | None:
        """One hash serves the call."""
        return _state(self.source)

    @property
    def strides(self) -> tuple[int, int, int]:
        """From output to output, input to input, tap to tap."""
        i, taps = self.wide.shape[1], math.prod(self.wide.shape[2:])
        return (i * taps, 1, i) if _layout.is_channels_last(self.wide) else (i * taps, taps, 1)

    def squares(self) -> Tensor:
        """Q[o, i] = Σ_uv W²."""
        return cached(self.source, self.state, ("squares", self.wide.dtype), self._squares)

    def _squares(self) -> Tensor:
        o, i, kh, kw = self.wide.shape
        q = self.wide.new_empty(o, i)
        _cpu.module().modulated_conv2d_squares(
            address(self.wide), address(q), o, i, kh * kw, self.strides, DTYPE_CODES[q.dtype]
        )
        return q

    def transformed(self, adjoint: bool) -> Tensor:
        """G w Gᵀ of every kernel, in the order the products read them."""
        flip = self.body.flips(self.flip_weight, adjoint)
        key = (adjoint, bool(self.body.stride), flip, self.wide.dtype, _cpu.module().isa())
        return cached(self.source, self.state, key, lambda: self._transform(flip, adjoint))

    def _transform(self, flip: bool, adjoint: bool) -> Tensor:
        module, wide, code = _cpu.module(), self.wide, DTYPE_CODES[self.wide.dtype]
        ins, outs = wide.shape[:2] if adjoint else wide.shape[1::-1]
        size = module.modulated_conv2d_winograd_weights_size(ins, outs, code)
        # not torch's memory: for large layers that would be fresh pages after every update
        u = torch.frombuffer(module.Block(size * wide.itemsize), dtype=wide.dtype, count=size)
        module.modulated_conv2d_winograd_weights(
            address(wide), address(u), self.strides, adjoint, ins, outs,
            bool(self.body.stride), flip, code,
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
    u = weights.transformed(adjoint=False)
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
    """With dz = convᵀ(du): dx = a·dz, da_k = Σ_p r_k x·dz. Of a halving, dx = dz."""
    u = weights.transformed(adjoint=True)
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
