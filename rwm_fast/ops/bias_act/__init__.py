"""bias_act: bias, activation, gain and clamp in one pass."""

from __future__ import annotations

from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops._torch_private import any_autocast
from rwm_fast.ops.bias_act import autograd as _autograd


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""Add a bias per channel, apply an activation and a gain, and clamp.

    Without more arguments it adds the bias alone, as the function of this name does elsewhere.

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
        above 0; None = the activation's own: 1 for ``"linear"``, √2 for ``"lrelu"``.
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
    if any_autocast():
        x, bias = _check.mixed(x, bias)
    _check.bias(op, bias, x, x.shape[1])
    act = _check.activation(op, activation, negative_slope, gain, clamp, x.dtype)
    return _autograd.bias_act(x, bias, *act)
