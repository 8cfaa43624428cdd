"""What the C++ functions take beside images: records of a shape, and weights in their orders.

The records' classes are in csrc/modulated_conv2d/records.h; each checks its fields when it is made.
What kernels make of weights is kept between calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _extension, _memory
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._memory import DTYPE_CODES, addresses
from rwm_fast.ops.modulated_conv2d.geometry import Geometry

# Bytes of transformed weights kept between calls: all layers of a model of about ten million
# weights. A step of training meets each layer several times between two updates.
CACHE_BYTES = 512 << 20


class Shape(NamedTuple):
    """All that a body's choice and its records depend on."""

    x: torch.Size
    weight: torch.Size
    geometry: Geometry
    flip_weight: bool
    regions: bool
    channels_last: bool  # the weight
    dtype: torch.dtype  # of the images

    def kernels(self) -> Any:
        o, i, *size = self.weight
        code = DTYPE_CODES[accumulator(self.dtype)]
        return _extension.cpu().Kernels(
            o, i, tuple(size), self.channels_last, self.flip_weight, code
        )

    def images(self, channels: int, size: tuple[int, int]) -> Any:
        pixels = size[0] * size[1]
        return _extension.cpu().Images(self.x[0], pixels, channels, DTYPE_CODES[self.dtype])


class Records(NamedTuple):
    """A body, and the records of one shape."""

    by: ModuleType
    dtype: torch.dtype  # in which it computes
    plan: Any  # WinogradPlan or DirectPlan; None for the others
    kernels: Any
    input: Any  # Images of x
    output: Any  # Images of y


class _Kept:
    """What was made from one state of a tensor."""

    total = 0  # bytes of all

    def __init__(self, source: Tensor, state: object) -> None:
        self.source, self.state, self.size = weakref.ref(source), state, 0
        self.values: dict[object, Tensor] = {}
        weakref.finalize(source, _forget, id(source), weakref.ref(self))

    def add(self, key: object, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if self.total + size <= CACHE_BYTES:
            self.values[key] = value
            self.size += size
            type(self).total += size

    def __del__(self) -> None:
        type(self).total -= self.size


_cache: dict[int, _Kept] = {}  # by the identity of a tensor


def _forget(identity: int, kept: weakref.ref) -> None:
    if kept() is not None and _cache.get(identity) is kept():
        del _cache[identity]


def _state(source: Tensor) -> object | None:
    """What tells one state of a parameter from another; None for what is not worth keeping.

    Results that are not parameters change all the time.
    """
    if not source.is_leaf or not (source.is_contiguous() or _memory.is_channels_last(source)):
        return None
    # not the version counter: writing through .data leaves that as it is
    module, (pointer,) = _extension.cpu(), addresses(source)
    return module.modulated_conv2d_fingerprint(pointer, source.nbytes), source.stride()


def block(size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised. Not torch's memory: for large layers that is fresh pages every update."""
    memory = _extension.cpu().Block(size * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype, count=size)


class Weights:
    """A layer's weights in the accumulator's dtype, and what is made from them."""

    def __init__(
        self, source: Tensor, order: torch.memory_format, dtype: torch.dtype, kernels: Any
    ) -> None:
        wide = source if source.dtype == dtype else source.to(dtype)
        self.wide = _memory.dense(
            "modulated_conv2d", "weight", wide, source.device, source.shape, (dtype,), order
        )  # [O, I, kh, kw], contiguous or channels_last
        self.kernels = kernels  # the same in numbers
        # What was made of this state of the weights before; one hash serves the call.
        self.kept: _Kept | None = None
        state = _state(source)
        if state is not None:
            kept = _cache.get(id(source))
            if kept is None or kept.source() is not source or kept.state != state:
                kept = _cache[id(source)] = _Kept(source, state)
            self.kept = kept

    def cached(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """make(), or what it gave before for the same key, tensor and state of the tensor."""
        kept = self.kept
        if kept is None:
            return make()
        value = kept.values.get(key)
        if value is None:
            value = make()
            kept.add(key, value)
        return value

    def squares(self) -> Tensor:
        """Q[o, i] = Σ_uv W²."""
        return self.cached(("squares", self.wide.dtype), self._squares)

    def _squares(self) -> Tensor:
        q = self.wide.new_empty(self.wide.shape[:2])
        _extension.cpu().modulated_conv2d_squares(self.kernels, *addresses(self.wide, q))
        return q


class Body(NamedTuple):
    """What `prepare` made of a layer."""

    records: Records
    weights: Weights
    shape: Shape
