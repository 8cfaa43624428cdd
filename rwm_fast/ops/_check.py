"""One wording for refusals: the operator, the rule, and what came."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops._torch_private import any_autocast

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


def floating(op: str, name: str, value: Any) -> None:
    """Raise unless the value is a tensor of float16, bfloat16, float32 or float64."""
    if not isinstance(value, Tensor):
        tensor(op, name, value)
    if value.dtype not in FLOATS:
        require(False, op, f"{name} must be float16, bfloat16, float32 or float64", value)


def like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the value is a tensor of the device and the dtype of another argument.

    float32 is welcome beside a half-precision input: parameters are kept in float32.
    """
    if not isinstance(value, Tensor):
        tensor(op, name, value)
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


def mixed(*tensors: Any, widest: bool = False) -> tuple[Any, ...]:
    """Under torch.autocast, which makes mixtures: the tensors in the first one's dtype, or in the
    widest; beside a half-precision first one in float32, which all that bfloat16 holds fits.
    Elsewhere as they are."""
    if not any_autocast():
        return tensors
    found = [t.dtype for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    dtype = functools.reduce(torch.promote_types, found) if widest and found else None
    dtype = dtype or (found[0] if found else None)
    kept = (dtype, torch.bool)
    other = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return tuple(
        t.to(other) if isinstance(t, Tensor) and t.dtype not in kept else t for t in tensors
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over many elements are kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- arguments that several operators take

ACTIVATIONS = ("linear", "lrelu")
SQRT2 = math.sqrt(2)  # keeps the mean square of what a leaky ReLU lets through


def bias(op: str, bias: Tensor | None, x: Tensor, channels: int) -> None:
    """Raise unless the bias is None or one number a channel."""
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        tensor(op, "bias", bias)
    if tuple(bias.shape) != (channels,):
        require(False, op, f"bias must be [{channels}], one number a channel", bias)
    like(op, "bias", bias, "x", x)


def activation(
    op: str, activation: str, slope: float, gain: float | None, clamp: float | None
) -> float:
    """The gain, if None the activation's own; raise unless the sign and the size of the result tell
    the derivative."""
    if gain is None:
        gain = SQRT2 if activation == "lrelu" else 1.0
    # the conditions also refuse NaN
    if (
        activation in ACTIVATIONS
        and 0 <= slope < math.inf
        and 0 < gain < math.inf
        and (clamp is None or clamp > 0)
    ):
        return gain
    rule = f"activation must be one of {', '.join(ACTIVATIONS)}"
    require(activation in ACTIVATIONS, op, rule, repr(activation))
    require(0 <= slope < math.inf, op, "negative_slope must be at least 0", slope)
    require(0 < gain < math.inf, op, "gain must be above 0", gain)
    require(False, op, "clamp must be None or above 0", clamp)
    return gain


def taps(op: str, name: str, filter: Tensor | None, x: Tensor) -> tuple[int, int]:
    """How many along y and along x; raise unless they are on x's device and ask for no gradient."""
    if filter is None:
        return 1, 1
    floating(op, name, filter)
    if filter.ndim not in (1, 2) or not filter.numel():
        rule = f"{name} must be [F] or [FH, FW] with at least one tap"
        require(False, op, rule, filter)
    if filter.device != x.device:
        require(False, op, f"{name} must be on {x.device}", filter)
    if filter.requires_grad:
        rule = f"{name} must not require a gradient: the operator gives none for it"
        require(False, op, rule, filter)
    shape = filter.shape
    return shape[0], shape[-1]


def whole(op: str, name: str, value: Any) -> int:
    """A whole number of at least 1, of any integer type."""
    fits = isinstance(value, (int, torch.SymInt))
    if not fits and hasattr(value, "__index__"):
        value, fits = _index(value)
    if not fits or value < 1:
        require(False, op, f"{name} must be a whole number of at least 1", value)
    return value


def _index(value: Any) -> tuple[Any, bool]:
    try:
        return operator.index(value), True
    except TypeError:  # a tensor of several elements, or of a floating dtype
        return value, False


def pair(op: str, name: str, value: int | Sequence[int]) -> list[int]:
    """A factor along x and along y."""
    values = _numbers(value) or [value, value]
    fits = len(values) == 2
    for i, number in enumerate(values):
        if not isinstance(number, int):
            values[i], whole = _index(number)
            fits = fits and whole
    if not fits or values[0] < 1 or values[1] < 1:
        # said only when needed: a traced number has no text
        require(False, op, f"{name} must be one or two numbers of at least 1", str(value))
    return values


def padding(op: str, padding: int | Sequence[int]) -> list[int]:
    """Padding as [x before, x after, y before, y after]."""
    values = _numbers(padding) or [padding] * 4
    if len(values) == 2:
        values = [values[0], values[0], values[1], values[1]]
    fits = len(values) == 4
    for i, value in enumerate(values):
        if not isinstance(value, (int, torch.SymInt)):
            values[i], whole = _index(value)
            fits = fits and whole
    if not fits:
        require(False, op, "padding must be 1, 2 or 4 whole numbers", str(padding))
    return values


def _numbers(value: Any) -> list[Any]:
    """Those of a sequence or an array; none of what is one number."""
    if isinstance(value, (int, torch.SymInt)):  # torch.compile cannot ask those for an attribute
        return []
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if several or getattr(value, "ndim", 0) == 1 else []
