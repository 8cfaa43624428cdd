"""One wording for refusals: the operator, the rule, and what came."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops._torch_private import any_autocast

_STRIDED = torch.strided
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
    if value.layout is not _STRIDED:
        require(False, op, f"{name} must be strided", f"{value.layout}")


def like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the value is a tensor of the device and the dtype of another argument.

    float32 is welcome beside a half-precision input: parameters are kept in float32.
    """
    if not isinstance(value, Tensor):
        tensor(op, name, value)
    if value.layout is not _STRIDED:
        require(False, op, f"{name} must be strided", f"{value.layout}")
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
    op: str,
    activation: str,
    slope: float,
    gain: float | None,
    clamp: float | None,
    dtype: torch.dtype,
) -> tuple[str, float, float, float | None]:
    """The four with numbers as Python's: the gain, if None, the activation's own, the clamp as
    results of the dtype hold it; raise unless the sign and the size of the result tell the
    derivative."""
    if gain is None:
        gain = SQRT2 if type(activation) is str and activation == "lrelu" else 1.0
    plain = type(activation) is str and type(slope) in _NUMBERS and type(gain) in _NUMBERS
    # the conditions also refuse NaN
    if (
        plain
        and activation in ACTIVATIONS
        and 0 <= slope < math.inf
        and 0 < gain < math.inf
        and (clamp is None or (type(clamp) in _NUMBERS and clamp > 0))
    ):
        return activation, slope, gain, clamp if clamp is None else rounded(clamp, dtype)
    known = isinstance(activation, str) and activation in ACTIVATIONS
    rule = f"activation must be one of {', '.join(ACTIVATIONS)}"
    require(known, op, rule, repr(activation))
    fits = is_number(slope) and 0 <= slope < math.inf
    require(fits, op, "negative_slope must be at least 0", slope)
    require(is_number(gain) and 0 < gain < math.inf, op, "gain must be above 0", gain)
    fits = clamp is None or (is_number(clamp) and clamp > 0)
    require(fits, op, "clamp must be None or above 0", clamp)
    clamp = None if clamp is None else rounded(real(clamp), dtype)
    return activation, real(slope), real(gain), clamp


_NUMBERS = (float, int)
_DIGITS = {torch.bfloat16: (8, -133), torch.float16: (11, -24)}  # and the exponent of the least


def rounded(value: float, dtype: torch.dtype) -> float:
    """The number as half precision holds it; in Python alone, which torch.compile follows."""
    if dtype not in _DIGITS or not math.isfinite(value):
        return value
    digits, least = _DIGITS[dtype]
    unit = 2.0 ** max(math.frexp(value)[1] - digits, least)
    return round(value / unit) * unit


def is_number(value: Any) -> bool:
    """Whether it is a real number of any type: a truth value is none, nor is a tensor, which a
    setting would have to wait for."""
    kinds = (numbers.Real, torch.SymFloat, torch.SymInt)
    return isinstance(value, kinds) and not isinstance(value, bool)


def real(number: Any) -> Any:
    """A number of any type as Python's: numpy's know no sign, or wrap around."""
    return number if isinstance(number, (torch.SymFloat, torch.SymInt)) else float(number)


def finite(op: str, name: str, value: Any) -> Any:
    """A finite number."""
    if type(value) is float and -math.inf < value < math.inf:
        return value
    if not (is_number(value) and -math.inf < value < math.inf):
        require(False, op, f"{name} must be a finite number", value)
    return real(value)


def flag(op: str, name: str, value: Any) -> Any:
    """A truth value, or 0 or 1 of any integer type."""
    if isinstance(value, (bool, torch.SymBool)):
        return value
    of_numpy = getattr(getattr(value, "dtype", None), "kind", "") == "b" and value.ndim == 0
    if not of_numpy and _integer(value) not in (0, 1):
        require(False, op, f"{name} must be True or False", value)
    return bool(value)


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


def whole(op: str, name: str, value: Any, least: int = 1) -> int:
    """A whole number of any integer type, at least 1 if nothing else is said."""
    number = value if type(value) is int else _integer(value)
    if number is None or number < least:
        require(False, op, f"{name} must be a whole number of at least {least}", value)
    return number


def _integer(value: Any) -> Any:
    """The number that a value of some integer type is, else None: a truth value is none, nor is a
    tensor, which a setting would have to wait for."""
    if isinstance(value, (bool, Tensor)):
        return None
    if isinstance(value, (int, torch.SymInt)):  # torch.compile cannot ask those for an attribute
        return value
    try:
        return operator.index(value)
    except TypeError:
        return None


def pair(op: str, name: str, value: int | Sequence[int]) -> list[int]:
    """A factor along x and along y."""
    values = _numbers(value) or [value, value]
    fits = len(values) == 2
    for i, number in enumerate(values):
        if type(number) is not int:
            values[i] = _integer(number)
            fits = fits and values[i] is not None
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
        if type(value) is not int:
            values[i] = _integer(value)
            fits = fits and values[i] is not None
    if not fits:
        require(False, op, "padding must be 1, 2 or 4 whole numbers", str(padding))
    return values


def _numbers(value: Any) -> list[Any]:
    """Those of a sequence or an array; none of what is one number."""
    if isinstance(value, (int, torch.SymInt)):  # torch.compile cannot ask those for an attribute
        return []
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return list(value) if several or getattr(value, "ndim", 0) == 1 else []
