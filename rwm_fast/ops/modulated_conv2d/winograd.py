"""3×3 layers on the CPU by Winograd's algorithm (csrc/modulated_conv2d): which, and their weights.

F(4×4, 3×3) multiplies 36 times where the definition multiplies 144 times. A halving or doubling is
a 3×3 correlation on phases, with the filter folded into the weights, so it costs no filter pass.
The result is off the float64 truth by about twice what torch's float32 convolution is off (largest
error 1e-6 to 3e-6 of the largest value, for 32 to 512 channels).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rwm_fast.ops import _cpu
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES
from rwm_fast.ops.modulated_conv2d._geometry import Settings

# Set to False where results must be as close as torch's own convolution.
enabled = True

# Bytes of transformed weights kept between calls: all layers of a model of about ten million
# weights. A step of training meets each layer several times between two updates.
CACHE_BYTES = 512 << 20


class Fold(NamedTuple):
    """A layer as a 3×3 correlation on phases."""

    in_step: int  # phases of the input along an axis: 2 halves the size
    out_step: int  # phases of the output: 2 doubles it
    off_y: int  # where a patch starts, in pixels of a phase
    off_x: int
    taps_y: tuple[tuple[tuple[float, ...], ...], ...] | None  # [2, 3, 3] for each phase, or None
    taps_x: tuple[tuple[tuple[float, ...], ...], ...] | None

    def adjoint(self) -> Fold:
        """Of the transposed correlation; its kernels are turned over as well."""
        turned = [t and tuple(m[::-1] for m in t) for t in (self.taps_y, self.taps_x)]
        return Fold(self.out_step, self.in_step, -2 - self.off_y, -2 - self.off_x, *turned)


def fold(settings: Settings, weight: Tensor, filter: Tensor | None) -> Fold | None:
    """The layer's fold; None if it has none (other kernels, factors, long or uneven filters)."""
    if tuple(weight.shape[2:]) != (3, 3) or max(settings.up, settings.down) > 2:
        return None
    if settings.up == settings.down == 2:
        return None
    px, _, py, _ = settings.padding
    if settings.up == settings.down == 1:
        return Fold(1, 1, -py, -px, None, None)
    taps = _factors(filter)
    if taps is None:
        return None
    y, x = (_fold_axis(f, p, settings.up) for f, p in zip(taps, (py, px), strict=True))
    if y is None or x is None:
        return None
    (off_y, taps_y), (off_x, taps_x) = y, x
    return Fold(settings.down, settings.up, off_y, off_x, taps_y, taps_x)


def _factors(filter: Tensor | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Taps along y and x if the filter is an outer product of at most 4 taps each."""
    if filter is None:
        return (1.0,), (1.0,)
    if max(filter.shape) > 4:
        return None
    if filter.ndim == 1:
        taps = tuple(filter.tolist())
        return taps, taps
    f = filter.double()
    at = int(f.abs().argmax())
    row, column = divmod(at, f.shape[1])
    y, x = f[:, column] / f[row, column], f[row]
    exact = bool(((y.outer(x) - f).abs() <= 1e-7 * f.abs().max()).all())
    return (tuple(y.tolist()), tuple(x.tolist())) if exact else None


@functools.lru_cache(maxsize=256)
def _fold_axis(filter: tuple[float, ...], padding: int, up: int):
    """The offset and the 3×3 matrix of each phase along one axis; None if 3 taps do not hold them.

    Kernel and filter together are the correlation g[j + k] = f[F − 1 − j]·w[k]. Doubling: outputs
    p = 2t + φ meet inputs i where g's index m = 2i − p + pad. Halving: outputs t meet inputs
    2i + φ where m = 2i + φ − 2t + pad. Either way every second m, and i moves by one for each.
    """
    size = len(filter)
    if up == 2:
        pad, sign = padding + (size + 1) // 2, -1
    else:
        pad, sign = padding + (size - 1) // 2, 1
    gain = float(up)
    starts = [(pad + sign * phase) % 2 for phase in (0, 1)]  # the first m of each phase
    offsets = [(start - pad - sign * phase) // 2 for phase, start in enumerate(starts)]
    offset = min(offsets)
    matrices = []
    for start, own in zip(starts, offsets, strict=True):
        matrix = [[0.0] * 3 for _ in range(3)]
        for m in range(start, size + 2, 2):
            row = (m - start) // 2 + own - offset
            for k in range(3):
                if 0 <= m - k < size and (value := gain * filter[size - 1 - (m - k)]):
                    if row > 2:
                        return None
                    matrix[row][k] += value
        matrices.append(tuple(map(tuple, matrix)))
    return offset, tuple(matrices)


def pays(fold: Fold, weight: Tensor, batch: int, size: Sequence[int]) -> bool:
    """Whether a layer with this output size has tiles enough to earn back its weights' transform.

    Nanoseconds for each pair of channels, measured on one Zen 3 core: 0.24 a pixel by definition,
    1.1 a tile and 20 a transformed kernel here.
    """
    phases = (fold.in_step * fold.out_step) ** 2
    h, w = (-(-s // fold.out_step) for s in size)  # pixels of a phase
    tiles = batch * -(-h // 4) * -(-w // 4)
    return 0.24 * batch * h * w * min(phases, 2) > 1.1 * tiles * phases + 20 * phases


@functools.lru_cache(maxsize=256)
def _matrices(taps, dtype: torch.dtype) -> Tensor | None:
    return None if taps is None else torch.tensor(taps, dtype=dtype)  # [2, 3, 3]


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


def cached(source: Tensor, key: object, make: Callable[[], Tensor]) -> Tensor:
    """make(), or what it gave before for the same key, tensor and values of the tensor.

    Results that are not parameters change all the time and are not kept.
    """
    if not source.is_leaf or not source.is_contiguous():
        return make()
    # not the version counter: writing through .data leaves that as it is
    state = _cpu.module().modulated_conv2d_fingerprint(address(source), source.nbytes)
    kept = _cache.get(source)
    if kept is None or kept.state != state:
        kept = _cache[source] = _Kept(state)
    value = kept.values.get(key)
    if value is None:
        value = make()
        kept.add(key, value)
    return value


class Weights(NamedTuple):
    """A layer's weights in the accumulator's dtype, and what they are cached under."""

    source: Tensor  # [O, I, kh, kw], as it came
    wide: Tensor  # [O, I, kh, kw], contiguous
    fold: Fold | None
    flip: bool  # the kernels are read backwards

    def squares(self) -> Tensor:
        """Q[o, i] = Σ_uv W²."""

        def make() -> Tensor:
            o, i, kh, kw = self.wide.shape
            q = self.wide.new_empty(o, i)
            code = DTYPE_CODES[q.dtype]
            _cpu.module().modulated_conv2d_squares(
                address(self.wide), address(q), o * i, kh * kw, code
            )
            return q

        return cached(self.source, ("squares", self.wide.dtype), make)

    def transformed(self, adjoint: bool) -> Tensor:
        """G w Gᵀ of every kernel, in the order the products read them."""
        fold = self.fold.adjoint() if adjoint else self.fold
        # without phases, turning the kernels over is the whole adjoint
        flip = self.flip != (adjoint and fold.taps_y is None)
        key = (adjoint, fold, flip, self.wide.dtype, _cpu.module().isa())
        return cached(self.source, key, lambda: self._transform(fold, flip, adjoint))

    def _transform(self, fold: Fold, flip: bool, adjoint: bool) -> Tensor:
        module, wide, code = _cpu.module(), self.wide, DTYPE_CODES[self.wide.dtype]
        o, i = wide.shape[:2]
        ins, outs, near, far = (o, i, 9 * i, 9) if adjoint else (i, o, 9, 9 * i)
        steps = (fold.in_step, fold.out_step)
        size = module.modulated_conv2d_winograd_weights_size(ins, outs, *steps, code)
        u = wide.new_empty(size)
        taps = [_matrices(t, wide.dtype) for t in (fold.taps_y, fold.taps_x)]
        module.modulated_conv2d_winograd_weights(
            *map(address, (wide, u)), near, far, ins, outs, *steps, flip, *map(address, taps), code
        )
        return u


def _extents(fold: Fold, x: Tensor, y_shape: Sequence[int]) -> tuple[int, ...]:
    n, i, h, w = x.shape
    return (n, h, w, i, *y_shape[2:], y_shape[1], *fold[:4])


def forward(
    x: Tensor,  # [N, I, h, w], channels_last
    y: Tensor,  # [N, O, H, W], channels_last, written
    weights: Weights,
    a: Tensor,  # [N, K, I]
    regions_in: Tensor | None,
    epilogue: Sequence[object],
) -> None:
    """y = clamp(act(b·conv(W, a·x) + noise + bias)·gain); see native_cpu_layer.Epilogue."""
    u = weights.transformed(adjoint=False)
    b, regions_out, styles, *rest = epilogue
    _cpu.module().modulated_conv2d_winograd(
        _extents(weights.fold, x, y.shape),
        *map(address, (x, u, y, a, regions_in)), b, regions_out, styles, *rest,
        DTYPE_CODES[x.dtype],
    )  # fmt: skip


def input_gradient(
    du: Tensor,  # [N, O, H, W], channels_last
    x: Tensor,  # [N, I, h, w], channels_last
    weights: Weights,
    a: Tensor,  # [N, K, I]
    regions_in: Tensor | None,
    dx: Tensor | None,  # like x, written
    da: Tensor | None,  # [N, K, I], written
) -> None:
    """With dz = convᵀ(du): dx = a·dz, da_k = Σ_p r_k x·dz."""
    u = weights.transformed(adjoint=True)
    _cpu.module().modulated_conv2d_winograd_input_gradient(
        _extents(weights.fold.adjoint(), du, x.shape),
        *map(address, (du, u, dx, x, da, a, regions_in)), a.shape[1], DTYPE_CODES[x.dtype],
    )  # fmt: skip


def weight_gradient(
    x: Tensor,  # [N, I, h, w], channels_last
    du: Tensor,  # [N, O, H, W], channels_last
    weights: Weights,
    a: Tensor,  # [N, K, I]
    regions_in: Tensor | None,
    scale: Tensor | None,  # [O, I]
) -> Tensor:
    """dW [O, I, 3, 3] = the adjoint of conv(W, a·x) in W, + 2 W·scale."""
    fold, wide = weights.fold, weights.wide
    dw = torch.empty_like(wide)
    taps = [_matrices(t, wide.dtype) for t in (fold.taps_y, fold.taps_x)]
    _cpu.module().modulated_conv2d_winograd_weight_gradient(
        _extents(fold, x, du.shape),
        *map(address, (x, a, regions_in)), a.shape[1], address(du), weights.flip,
        *map(address, (*taps, wide, scale, dw)), DTYPE_CODES[x.dtype],
    )  # fmt: skip
    return dw
