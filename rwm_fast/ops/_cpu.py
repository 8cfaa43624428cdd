"""What every `native.py` needs to call a C++ kernel safely: the module, and addresses after checks.

The kernels check nothing: a wrong dtype, stride or size would read or write past a buffer. So no
address leaves Python but through `address`, of a tensor that passed `dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from rwm_fast.ops import _check, _extension


def module() -> ModuleType:
    """The C++ module; only after `why_not` said None."""
    return _extension.cpu()


def why_not() -> str | None:
    """None if C++ kernels can be called, else one sentence why not."""
    return _extension.why_not_cpu()


def dense(
    op: str,
    name: str,
    x: Tensor,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    order: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The tensor in one dense memory order (itself if it is), or an error if it is not as said."""
    fits = isinstance(x, Tensor) and x.shape == torch.Size(shape) and x.dtype in dtypes
    fits = fits and x.layout is torch.strided and x.is_cpu and not x.is_neg()
    if fits and x.is_contiguous(memory_format=order):
        return x
    _check.tensor(op, name, x)
    _check.require(x.device.type == "cpu", op, f"{name} must be on the CPU", x)
    _check.require(x.layout is torch.strided, op, f"{name} must be strided", f"{x.layout}")
    _check.require(tuple(x.shape) == tuple(shape), op, f"{name} must be {list(shape)}", x)
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    _check.require(x.dtype in dtypes, op, f"{name} must be {names}", x)
    return x.resolve_neg().contiguous(memory_format=order)


def address(x: Tensor | None) -> int:
    """Where a dense CPU tensor's data are; 0 stands for an absent tensor.

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
