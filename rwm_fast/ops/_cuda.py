"""What every `native_cuda.py` needs to launch a kernel: the module, the place, checked addresses.

A kernel runs on the current stream of its tensors' device. It allocates nothing and nobody waits
for it, so it can be captured in a CUDA graph. It checks nothing either: no address leaves Python
but that of a tensor made beside the call, or of one that passed `dense`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from rwm_fast.ops import _check, _extension


def module() -> ModuleType:
    """The CUDA module; only after `why_not` said None."""
    return _extension.cuda()


def why_not() -> str | None:
    """None if CUDA kernels can be launched, else one sentence why not."""
    return _extension.why_not_cuda()


def place(x: Tensor) -> tuple[int, int]:
    """Index of the tensor's device, and its current stream as an address."""
    index = x.device.index
    return index, _current_stream(index)


def _current_stream(index: int) -> int:
    # What torch's own generated code calls: ten times faster than building a Stream object.
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return raw(index) if raw is not None else torch.cuda.current_stream(index).cuda_stream


def dense(
    op: str,
    name: str,
    x: Tensor,
    device: torch.device,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    order: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The tensor in one dense memory order (itself if it is), or an error if it is not as said."""
    _check.tensor(op, name, x)
    _check.require(x.device == device, op, f"{name} must be on {device}", x)
    _check.require(x.layout is torch.strided, op, f"{name} must be strided", f"{x.layout}")
    _check.require(tuple(x.shape) == tuple(shape), op, f"{name} must be {list(shape)}", x)
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    _check.require(x.dtype in dtypes, op, f"{name} must be {names}", x)
    return x.resolve_neg().contiguous(memory_format=order)


def address(x: Tensor | None) -> int:
    """Where a dense tensor's data are; 0 stands for an absent tensor.

    Raises
    ------
    ValueError
        if the tensor has elements but no memory (fake and zero tensors).
    """
    if x is None:
        return 0
    pointer = x.data_ptr()
    if x.numel() and not pointer:
        raise ValueError(f"a kernel needs a tensor with memory, got {type(x).__name__}")
    return pointer


def ticket(x: Tensor) -> Tensor:
    """A zero that the blocks of one launch count in, and that the last of them sets back to zero.

    Launches on a stream follow one another and share it. A captured graph may be replayed on any
    stream: it gets a ticket of its own, and clears it.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=x.device)
    return _stream_ticket(x.device, place(x)[1])


@functools.cache
def _stream_ticket(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)
