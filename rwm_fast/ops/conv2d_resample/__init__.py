"""conv2d_resample: a convolution of an image that is enlarged before or reduced after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _dispatch
from rwm_fast.ops._registry import without_autocast
from rwm_fast.ops.conv2d_bias_act import conv2d_bias_act
from rwm_fast.ops.conv2d_resample import reference
from rwm_fast.ops.modulated_conv2d.geometry import geometry, prepared

OP = "conv2d_resample"


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    r"""Convolution between upsampling and downsampling, as one linear system.

    .. math:: y = \downarrow_{down} f * (W * (up^2\, f * \uparrow_{up} x))

    with the filter only where the image is enlarged or reduced: `upfirdn2d` and a convolution in
    the cheapest order; where nothing is enlarged, in one group, one operator.

    Parameters
    ----------
    x
        [N, I, H, W], float16, bfloat16, float32 or float64; any strides.
    w
        [O, I / groups, kh, kw], any floating dtype; rounded to x's.
    f
        [F] (separable) or [FH, FW], a low-pass of sum 1; any floating dtype; no gradient. None is
        one tap of 1.
    up, down
        factors, at least 1: zeros between the pixels before the convolution, and every down-th
        pixel after it.
    padding
        zeros around the enlarged image: one number, [x, y], or [x before, x after, y before, y
        after]; a negative one crops. What keeps image and result centred under f is added.
    groups
        I and O in as many parts, which do not meet.
    flip_weight
        True: correlation, as torch's convolution. False: the weight is turned over.
    flip_filter
        False: convolution by f, as in `upfirdn2d`. True: correlation.

    Returns
    -------
    Tensor
        [N, O, H', W'] in x's dtype and memory format. H' = H·up // down for an odd kernel with
        padding kh // 2; other paddings add to it or crop.

    Gradients to x and w, of every order, each in its argument's dtype. Deterministic as torch's
    convolution. Several groups are torch's convolution on every backend.

    Raises
    ------
    TypeError, ValueError
        if an argument does not fit, or no pixel would be left.

    Source: the resampled convolution of StyleGAN2-ADA's networks (Karras et al., NeurIPS 2020,
    arXiv 2006.06676), its names and its order of arguments.
    """
    up, down = _check.whole(OP, "up", up), _check.whole(OP, "down", down)
    groups = _check.whole(OP, "groups", groups)
    flip_weight = _check.flag(OP, "flip_weight", flip_weight)
    flip_filter = _check.flag(OP, "flip_filter", flip_filter)
    _check_tensors(x, w, groups)
    taps = _check.taps(OP, "f", f, x)
    borders = tuple(_check.padding(OP, padding))
    # as in `modulated_conv2d`: traced sizes pass no cache
    known = type(x.shape[2]) is type(x.shape[3]) is int and not torch.compiler.is_compiling()
    about = (up, down, borders, (w.shape[2], w.shape[3]), taps, (x.shape[2], x.shape[3]))
    if not min((prepared if known else geometry)(*about).chain[-1]) > 0:
        _check.require(False, OP, "padding must leave at least one pixel", str(padding))
    f = f.flip(list(range(f.ndim))) if flip_filter and f is not None else f
    try:
        return _composed(x, w, f, up, down, borders, groups, flip_weight, known)
    except _dispatch.BackendError as error:  # of an operator that this one is made of
        raise _dispatch.BackendError(f"{OP}: {str(error).split(': ', 1)[1]}") from None


def _composed(
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    borders: Sequence[int],
    groups: int,
    flip_weight: bool,
    known: bool,
) -> Tensor:
    if groups > 1:
        _dispatch.by_torch(OP, "a convolution in groups is torch's")
    elif up == 1 and known and not _dispatch.in_transform(OP, (x, w)):
        return _reduced(x, w if flip_weight else w.flip((2, 3)), f, down, borders)
    with without_autocast(x.device):
        return reference.conv2d_resample(x, w, f, up, down, borders, groups, flip_weight)


def _reduced(x: Tensor, w: Tensor, f: Tensor | None, down: int, borders: Sequence[int]) -> Tensor:
    """Without enlarging: `conv2d_bias_act`, which does not centre a filter that is not there."""
    if f is None:
        before, after = (2 - down) // 2, (1 - down) // 2
        left, right, top, bottom = borders
        borders = left + before, right + after, top + before, bottom + after
    return conv2d_bias_act(x, w, padding=borders, down=down, resample_filter=f)


def _check_tensors(x: Tensor, w: Tensor, groups: int) -> None:
    _check.floating(OP, "x", x)
    if x.ndim != 4 or x.shape[2] == 0 or x.shape[3] == 0:
        _check.require(False, OP, "x must be [N, I, H, W] with at least one pixel", x)
    _check.floating(OP, "w", w)
    inputs = x.shape[1]
    if inputs % groups:
        rule = f"groups must divide the {inputs} channels of x"
        _check.require(False, OP, rule, groups)
    fits = w.ndim == 4 and w.shape[1] * groups == inputs and w.numel() > 0
    if not fits or w.shape[0] % groups or w.device != x.device:
        several = f" and O a multiple of {groups}" if groups > 1 else ""
        rule = f"w must be [O, {inputs // groups}, kh, kw] on {x.device} for x {list(x.shape)}"
        _check.require(False, OP, rule + several, w)
