"""bias_act: bias, activation, gain and clamp in one pass."""

from __future__ import annotations

import math

from torch import Tensor

from rwm_fast.ops import _check, _dispatch
from rwm_fast.ops.bias_act import autograd as _autograd
from rwm_fast.ops.bias_act import reference

BACKENDS = ("native", "triton", "reference")
ACTIVATIONS = ("linear", "lrelu")


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "lrelu",
    negative_slope: float = 0.2,
    gain: float = 2**0.5,
    clamp: float | None = None,
) -> Tensor:
    r"""Add a bias per channel, apply an activation and a gain, and clamp.

    .. math:: y = \mathrm{clamp}(\mathrm{act}(x + b) \cdot g, -c, c)

    Parameters
    ----------
    x
        [N, C, …] of at least two dimensions; float16, bfloat16, float32 or float64; any strides.
    bias
        [C], x's dtype, or float32 beside a half-precision x; None = 0.
    activation
        ``"linear"``, or ``"lrelu"``: t where t > 0, negative_slope·t elsewhere.
    negative_slope
        at least 0; used by ``"lrelu"`` only.
    gain
        above 0.
    clamp
        c, above 0, rounded to x's dtype; None = no clamp.

    Returns
    -------
    Tensor
        x's shape, dtype and memory format; half precision is computed in float32, rounded once.

    Gradients to x and bias, of every order. They are read from the stored result: slope 1 where
    y > 0, negative_slope elsewhere; 0 where \|y\| ≥ c. The bias gradient is summed in float32 or
    better and comes in the bias's dtype. Deterministic.

    Raises
    ------
    TypeError, ValueError
        if an argument does not fit.

    Source: the fused activation of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958).
    """
    op = "bias_act"
    _check.floating(op, "x", x)
    _check.require(x.ndim >= 2, op, "x must be [N, C, ...]", x)
    check_bias(op, bias, x, x.shape[1])
    check_activation(op, activation, negative_slope, gain, clamp)
    settings = (activation, negative_slope, gain, clamp)
    if _dispatch.in_transform(op):
        return reference.bias_act(x, bias, *settings)
    return _autograd.bias_act(x, bias, *settings)


def check_bias(op: str, bias: Tensor | None, x: Tensor, channels: int) -> None:
    """Raise unless the bias is None or one number a channel."""
    if bias is None:
        return
    _check.tensor(op, "bias", bias)
    rule = f"bias must be [{channels}], one number a channel"
    _check.require(tuple(bias.shape) == (channels,), op, rule, bias)
    _check.like(op, "bias", bias, "x", x)


def check_activation(
    op: str, activation: str, slope: float, gain: float, clamp: float | None
) -> None:
    """Raise unless the sign and the size of the result tell the derivative."""
    rule = f"activation must be one of {', '.join(ACTIVATIONS)}"
    _check.require(activation in ACTIVATIONS, op, rule, repr(activation))
    # the conditions also refuse NaN
    _check.require(0 <= slope < math.inf, op, "negative_slope must be at least 0", slope)
    _check.require(0 < gain < math.inf, op, "gain must be above 0", gain)
    _check.require(clamp is None or clamp > 0, op, "clamp must be None or above 0", clamp)
