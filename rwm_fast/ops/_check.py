"""One wording for refusals: the operator, the rule, and what came."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(value: object) -> str:
    """What came, as short as it can be said: a tensor by shape, dtype and device."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{list(value.shape)} {dtype} on {value.device}"
    return repr(value) if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def require(condition: bool, op: str, rule: str, got: object) -> None:
    """Raise ``ValueError('op: rule, got …')`` unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: {rule}, got {got if isinstance(got, str) else describe(got)}")


def tensor(op: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless the value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {describe(value)}")


def floating(op: str, name: str, value: object) -> None:
    """Raise unless the value is a tensor of float16, bfloat16, float32 or float64."""
    tensor(op, name, value)
    if value.dtype not in FLOATS:
        require(False, op, f"{name} must be float16, bfloat16, float32 or float64", value)


def like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the value has the device and the dtype of another argument.

    float32 is welcome beside a half-precision input: parameters are kept in float32.
    """
    if value.device == other.device and value.dtype == other.dtype:
        return
    require(
        value.device == other.device,
        op,
        f"{name} must be on {other_name}'s device {other.device}",
        value,
    )
    half = other.dtype in (torch.float16, torch.bfloat16)
    require(
        value.dtype == other.dtype or (half and value.dtype == torch.float32),
        op,
        f"{name} must have {other_name}'s dtype {str(other.dtype).removeprefix('torch.')}"
        + (" or float32" if half else ""),
        value,
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over many elements are kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
