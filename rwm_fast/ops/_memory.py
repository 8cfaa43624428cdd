"""What kernels take: tensors dense in one memory order, by address, and what follows a convolution.

No address leaves Python but that of a tensor made beside the call, or of one that passed `dense`:
a wrong dtype, stride or size would read or write past a buffer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwm_fast.ops import _check, _torch_private

LAST = torch.channels_last
PLANES = torch.contiguous_format
STRIDED = torch.strided
# The codes of csrc/common/dtype.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def is_channels_last(x: Tensor) -> bool:
    """Whether a [N, C, H, W] tensor is dense in channels_last order only."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=LAST)


def channels_last(x: Tensor) -> Tensor:
    """The tensor channels_last; as it is where torch.func follows it, which knows no such order."""
    return x if _torch_private.in_func() else x.contiguous(memory_format=LAST)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the channels are adjacent (a slice of such a tensor too), else default.

    Where both orders describe the tensor (one channel, one pixel) it is the default.
    """
    if x.ndim != 4 or x.is_contiguous():
        return PLANES
    return LAST if x.stride(1) == 1 and x.shape[1] > 1 else PLANES


def empty(
    like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None, wanted: bool = True
) -> Tensor:
    """An uninitialised tensor on `like`'s device, in its memory format and (unless given) dtype.

    What is not wanted has no elements.
    """
    dtype = like.dtype if dtype is None else dtype
    if not wanted:
        return torch.empty(0, dtype=dtype, device=like.device)
    order = memory_format(like) if len(shape) == 4 else PLANES
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=order)


def in_own_order(op: str, name: str, x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The tensor dense in its own memory format (itself if it is), and that format."""
    if x.layout is not STRIDED:
        _check.require(False, op, f"{name} must be strided", f"{x.layout}")
    if x.is_contiguous() and not x.is_neg():
        return x, PLANES
    order = memory_format(x)
    return x.resolve_neg().contiguous(memory_format=order), order


def dense(
    op: str,
    name: str,
    x: Tensor,
    device: torch.device,
    shape: tuple[int, ...],
    dtypes: Sequence[torch.dtype],
    order: torch.memory_format = PLANES,
) -> Tensor:
    """The tensor in one dense memory order (itself if it is), or an error if it is not as said."""
    if (
        isinstance(x, Tensor)
        and x.shape == shape  # a tuple; a list comes to the same below
        and x.dtype in dtypes
        and x.device == device
        and x.layout is STRIDED
        and not x.is_neg()
    ):
        if x.is_contiguous() if order is PLANES else x.is_contiguous(memory_format=order):
            return x
        return x.contiguous(memory_format=order)
    _check.tensor(op, name, x)
    _check.require(x.device == device, op, f"{name} must be on {device}", x)
    _check.require(x.layout is torch.strided, op, f"{name} must be strided", f"{x.layout}")
    _check.require(tuple(x.shape) == tuple(shape), op, f"{name} must be {list(shape)}", x)
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    _check.require(x.dtype in dtypes, op, f"{name} must be {names}", x)
    return x.resolve_neg().contiguous(memory_format=order)


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where the data of dense tensors are; 0 stands for an absent tensor.

    Raises
    ------
    ValueError
        if a tensor has elements but no memory (fake and zero tensors).
    """
    found = []
    for t in tensors:
        found.append(0 if t is None else t.data_ptr())
    if 0 in found:
        for pointer, t in zip(found, tensors, strict=True):
            if not pointer and t is not None and t.numel():
                raise ValueError(f"a kernel needs a tensor with memory, got {type(t).__name__}")
    return found


def place(x: Tensor) -> tuple[int, int]:
    """Index of a CUDA tensor's device, and its current stream as an address.

    A kernel runs on that stream and nobody waits for it, so it can be captured in a CUDA graph.
    """
    index = x.device.index
    return index, _torch_private.raw_stream(index)


# ---- what follows a convolution or a filter, in the kernel that writes the result


class Activation(NamedTuple):
    """act(t)·gain, clamped."""

    kind: str  # "linear" or "lrelu"
    slope: float
    gain: float
    clamp: float | None

    @property
    def reads_y(self) -> bool:
        """Whether the derivative depends on the result."""
        return self.kind != "linear" or self.clamp is not None

    def numbers(self) -> tuple[float, float, float]:
        """Slope, gain and clamp as C++ and CUDA kernels read them: an infinite clamp is none."""
        clamp = math.inf if self.clamp is None else self.clamp
        return 1.0 if self.kind == "linear" else self.slope, self.gain, clamp


class Epilogue(NamedTuple):
    """clamp(act(b ⊙ u + strength·noise + bias)·gain), b = Σ_k r_k·scale_k; all tensors wide."""

    scale: Tensor | None = None  # [N, K, C]; None: b = 1
    regions: Tensor | None = None  # [N, K, H, W]; None: one style
    noise: Tensor | None = None  # [N or 1, 1, H, W]
    strength: Tensor | None = None  # []; None: 1
    bias: Tensor | None = None  # [C]
    activation: Activation = Activation("linear", 1.0, 1.0, None)

    @property
    def styles(self) -> int:
        """K."""
        return 1 if self.scale is None else self.scale.shape[1]

    @property
    def noise_step(self) -> int:
        """Numbers from the noise of one image to that of the next; 0: all share one map."""
        if self.noise is None or self.noise.shape[0] == 1:
            return 0
        return self.noise[0].numel()


NOTHING = Epilogue()


# ---- the same by address, for the C++ and the CUDA module: classes of
# csrc/modulated_conv2d/records.h. An address does not keep its tensor: that must outlive the call.


def blend_record(module: ModuleType, scale: Tensor | None, regions: Tensor | None) -> Any:
    """Σ_k r_k·scale_k."""
    return module.Blend(*addresses(scale, regions), 1 if scale is None else scale.shape[1])


def epilogue_record(module: ModuleType, e: Epilogue) -> Any:
    """What an epilogue reads."""
    scale, regions, noise, strength, bias = addresses(*e[:5])
    per_image = e.noise is not None and e.noise.shape[0] > 1
    blend = module.Blend(scale, regions, 1 if e.scale is None else e.scale.shape[1])
    activation = activation_record(module, e.activation)
    return module.Epilogue(blend, noise, per_image, strength, bias, activation)


@functools.lru_cache(256)
def activation_record(module: ModuleType, activation: Activation) -> Any:
    """Slope, gain and clamp."""
    slope, gain, _ = activation.numbers()
    return module.Activation(slope, gain, activation.clamp)
