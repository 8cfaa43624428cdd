"""A layer's weights on the CPU, and what kernels make of them, kept between calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rwm_fast.ops import _cpu, _layout
from rwm_fast.ops._cpu import address
from rwm_fast.ops._extension import DTYPE_CODES

if TYPE_CHECKING:
    from rwm_fast.ops.modulated_conv2d.winograd import Body

# Bytes of transformed weights kept between calls: all layers of a model of about ten million
# weights. A step of training meets each layer several times between two updates.
CACHE_BYTES = 512 << 20


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


def block(size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised. Not torch's memory: for large layers that is fresh pages every update."""
    memory = _cpu.module().Block(size * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype, count=size)


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

    def cached(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """make(), or what it gave before for the same key, tensor and state of the tensor."""
        if self.state is None:
            return make()
        kept = _cache.get(self.source)
        if kept is None or kept.state != self.state:
            kept = _cache[self.source] = _Kept(self.state)
        value = kept.values.get(key)
        if value is None:
            value = make()
            kept.add(key, value)
        return value

    @property
    def strides(self) -> tuple[int, int, int]:
        """From output to output, input to input, tap to tap."""
        i, taps = self.wide.shape[1], math.prod(self.wide.shape[2:])
        return (i * taps, 1, i) if _layout.is_channels_last(self.wide) else (i * taps, taps, 1)

    def squares(self) -> Tensor:
        """Q[o, i] = Σ_uv W²."""
        return self.cached(("squares", self.wide.dtype), self._squares)

    def _squares(self) -> Tensor:
        o, i, kh, kw = self.wide.shape
        q = self.wide.new_empty(o, i)
        _cpu.module().modulated_conv2d_squares(
            address(self.wide), address(q), o, i, kh * kw, self.strides, DTYPE_CODES[q.dtype]
        )
        return q
