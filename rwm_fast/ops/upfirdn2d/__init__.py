"""upfirdn2d: upsample, filter, downsample an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops.upfirdn2d import autograd as _autograd
from rwm_fast.ops.upfirdn2d.geometry import filter_size, output_size


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
        [N, C, H, W], float16, bfloat16, float32 or float64; any strides. Without pixels it is
        padding alone: zeros.
    filter
        [F], separable: it stands for its outer product with itself; or [FH, FW]; any floating
        dtype, rounded to x's; None = one tap of 1. Its taps are finite: what an infinite one makes
        of zeros between and around the samples depends on the backend. Takes no gradient.
    up, down
        at least 1; one number, or (along x, along y).
    padding
        of the upsampled image: one number, [x, y], or [x before, x after, y before, y after]. Two
        numbers are both sides along x and along y, as in NVIDIA's code, not before and after.
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
    shape = x.shape
    if len(shape) != 4:
        _check.require(False, op, "x must be [N, C, H, W]", x)
    _check.taps(op, "filter", filter, x)
    up, down = _check.pair(op, "up", up), _check.pair(op, "down", down)
    padding = _check.padding(op, padding)
    gain = _check.finite(op, "gain", gain)
    flip_filter = _check.flag(op, "flip_filter", flip_filter)
    h, w = output_size(shape[2], shape[3], filter_size(filter), up, down, padding)
    if h < 1 or w < 1:
        rule = "the padded image must be at least as large as the filter"
        _check.require(False, op, rule, x)
    return _autograd.upfirdn2d(x, filter, up, down, padding, flip_filter, gain)
