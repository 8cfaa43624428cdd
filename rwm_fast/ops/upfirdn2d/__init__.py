"""upfirdn2d: upsample, filter, downsample an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _dispatch
from rwm_fast.ops.upfirdn2d import autograd as _autograd
from rwm_fast.ops.upfirdn2d import reference

BACKENDS = ("native", "triton", "reference")


def upfirdn2d(
    x: Tensor,
    filter: Tensor | None,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    r"""Upsample by zeros, pad or crop, filter, and keep every `down`-th sample of each channel.

    .. math:: y[p] = g \sum_q f[q]\, \tilde x[p \cdot down + (F - 1) - q]

    with x̃ the input with ``up − 1`` zeros after every sample, padded by zeros, F the number of taps
    and f counted backwards (a correlation) if `flip_filter`. Per axis, in this order:

    1. insert ``up − 1`` zeros after every sample;
    2. pad with zeros; a negative padding crops;
    3. convolve with the filter where it fits entirely, times `gain`;
    4. keep the first of every `down` samples.

    Parameters
    ----------
    x
        [N, C, H, W], float16, bfloat16, float32 or float64; any strides.
    filter
        [F], separable: it stands for its outer product with itself; or [FH, FW]; any floating
        dtype, rounded to x's; None = one tap of 1. Takes no gradient.
    up, down
        at least 1; one number, or (along x, along y).
    padding
        of the upsampled image: one number, [x, y], or [x before, x after, y before, y after].
    gain
        a factor on the result; up² keeps the brightness of an image upsampled by a filter of sum 1.

    Returns
    -------
    Tensor
        [N, C, (H·up + padding − FH) // down + 1, likewise W], x's dtype and memory format.

    Gradient to x, of every order: it is the same operator with `up` and `down` exchanged and the
    filter flipped. Deterministic.

    Raises
    ------
    TypeError, ValueError
        if an argument does not fit, no sample would be left, or the filter asks for a gradient.

    Source: upsample-FIR-downsample as in SciPy's `scipy.signal.upfirdn`, in two dimensions, with
    the conventions of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958).
    """
    op = "upfirdn2d"
    _check.floating(op, "x", x)
    _check.require(x.ndim == 4, op, "x must be [N, C, H, W]", x)
    check_filter(op, "filter", filter, x)
    up, down = pair(op, "up", up), pair(op, "down", down)
    padding = parse_padding(op, padding)
    size = reference.output_size(*x.shape[2:], filter, up, down, padding)
    rule = "the padded image must be at least as large as the filter"
    _check.require(size[0] > 0 and size[1] > 0, op, rule, x)
    if _dispatch.in_transform(op):
        return reference.upfirdn2d(x, filter, up, down, padding, flip_filter, gain)
    return _autograd.upfirdn2d(x, filter, up, down, padding, flip_filter, gain)


def check_filter(op: str, name: str, filter: Tensor | None, x: Tensor) -> None:
    """Raise unless the filter is None or taps on x's device that ask for no gradient."""
    if filter is None:
        return
    _check.floating(op, name, filter)
    shaped = filter.ndim in (1, 2) and filter.numel() > 0
    _check.require(shaped, op, f"{name} must be [F] or [FH, FW] with at least one tap", filter)
    _check.require(filter.device == x.device, op, f"{name} must be on {x.device}", filter)
    rule = f"{name} must not require a gradient: the operator gives none for it"
    _check.require(not filter.requires_grad, op, rule, filter)


def pair(op: str, name: str, value: int | Sequence[int]) -> list[int]:
    """A factor along x and along y."""
    values = list(value) if isinstance(value, Sequence) else [value, value]
    fits = len(values) == 2 and all(isinstance(v, int) and v >= 1 for v in values)
    if not fits:  # said only when needed: a traced number has no text
        _check.require(False, op, f"{name} must be one or two numbers of at least 1", str(value))
    return values


def parse_padding(op: str, padding: int | Sequence[int]) -> list[int]:
    """Padding as [x before, x after, y before, y after]."""
    values = list(padding) if isinstance(padding, Sequence) else [padding] * 4
    if len(values) == 2:
        values = [values[0], values[0], values[1], values[1]]
    fits = len(values) == 4 and all(isinstance(v, (int, torch.SymInt)) for v in values)
    if not fits:
        _check.require(False, op, "padding must be 1, 2 or 4 whole numbers", str(padding))
    return values
