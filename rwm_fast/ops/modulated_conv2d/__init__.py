"""modulated_conv2d: a convolution whose channels a style scales, with all that follows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._torch_private import any_autocast
from rwm_fast.ops.modulated_conv2d import autograd as _autograd
from rwm_fast.ops.modulated_conv2d.geometry import geometry, prepared

OP = "modulated_conv2d"


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
    *,
    regions: Tensor | None = None,
    noise_strength: Tensor | float | None = None,
    bias: Tensor | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    r"""Convolution modulated by one style, or by several in their regions, with its epilogue.

    .. math::
        y = \mathrm{clamp}(\mathrm{act}(b \odot \mathrm{conv}(W, a \odot x)
            + strength \cdot noise + bias) \cdot gain)

    .. math::
        a_i(p) = \sum_k r_k(p)\, s_k[i], \quad b_o(p) = \sum_k r_k(p)\, d_k[o], \quad
        d_k[o] = \Bigl(\sum_i s_k[i]^2 \sum_{uv} W_{oiuv}^2 + \epsilon\Bigr)^{-1/2}

    With one style (r ≡ 1) this equals a convolution with the weights W·s/‖W·s‖ of each image. With
    several it equals, farther from a border of regions than the kernel reaches, running the layer
    once a style and selecting; it costs one convolution for any number of them.

    Parameters
    ----------
    x
        [N, I, h, w], float16, bfloat16, float32 or float64; any strides.
    weight
        [O, I, kh, kw], any kernel size. All tensors below have x's dtype, or float32 beside a
        half-precision x.
    styles
        [N, I], or [N, K, I] with `regions`.
    noise
        [N, 1, H, W], [1, 1, H, W] or [H, W] at the size of the result; one map for all channels.
    up, down
        the image is enlarged by `up` before the convolution (zeros, filter, gain up²) and reduced
        by `down` after it (filter, every down-th pixel). The border is that of one linear system on
        the image extended by zeros.
    padding
        of the enlarged image: one number, [x, y], or [x before, x after, y before, y after]; what
        the filter needs is added.
    resample_filter
        [F] (separable) or [FH, FW], normalised to sum 1; any floating dtype; no gradient. None is
        one tap, so no low-pass at all.
    demodulate
        False: b = 1.
    flip_weight
        True: correlation, as torch's convolution. False: the weight is turned over.
    fused_modconv
        accepted for compatibility; the result does not depend on it.
    regions
        [N, K, any H, any W], x's dtype, float32 or bool, r ≥ 0 of sum 1 over K. A mask M is
        regions (1 − M, M). Resampled to input and output size by area averaging.
    noise_strength
        a number or a tensor of one element; None = 1.
    bias
        [O].
    activation, negative_slope, gain, clamp
        as in `bias_act`.
    eps
        ε, at least 0.

    Returns
    -------
    Tensor
        [N, O, H, W] in x's dtype and memory format. H = h·up // down for an odd kernel of k taps
        with padding k // 2; other paddings add to it or crop.

    Gradients to every tensor but the filter, of every order, each in its argument's dtype. The
    convolution works in x's dtype, all else in float32 or better; under torch.autocast, too, where
    the other tensors may have any dtype. In float16 a demodulated layer is computed with weight and
    styles times powers of two that cancel, which keep the convolution finite for \|x\| up to 256
    and kernels of up to 65,000 weights an output channel; without demodulation a·x, W and the
    convolution itself must stay below 65504. Determinism is that of torch's convolution. On the CPU
    3×3 layers are off by up to 4e-6 of the largest a·x within a tile, by definition where x has
    outliers or RWM_FAST_EXACT=1 is set (`cpu/winograd.py`).

    Raises
    ------
    TypeError, ValueError
        if an argument does not fit, or no pixel would be left.

    Source: weight demodulation of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958, section
    2.2), regrouped as scales before and after a shared convolution.
    """
    if any_autocast():
        tensors = _check.mixed(x, weight, styles, noise, regions, noise_strength, bias)
        x, weight, styles, noise, regions, noise_strength, bias = tensors
    _check_tensors(x, weight, styles, regions)
    taps = _check.taps(OP, "resample_filter", resample_filter, x)
    if not (type(up) is type(down) is int and up > 0 and down > 0):
        up, down = _check.whole(OP, "up", up), _check.whole(OP, "down", down)
    if type(eps) is not float or not 0 <= eps < math.inf:
        fits = _check.is_number(eps) and 0 <= eps < math.inf
        _check.require(fits, OP, "eps must be at least 0", eps)
        eps = _check.real(eps)
    if not type(demodulate) is type(flip_weight) is bool:
        demodulate = _check.flag(OP, "demodulate", demodulate)
        flip_weight = _check.flag(OP, "flip_weight", flip_weight)
    act = _check.activation(OP, activation, negative_slope, gain, clamp, x.dtype)
    _check.bias(OP, bias, x, weight.shape[0])
    borders = tuple(_check.padding(OP, padding))
    shape, kernel = x.shape, weight.shape
    # traced sizes, and what torch.compile traces, must not pass a cache
    known = type(shape[2]) is type(shape[3]) is int and not torch.compiler.is_compiling()
    passes = prepared if known else geometry
    about = ((kernel[2], kernel[3]), taps, (shape[2], shape[3]))
    size = passes(up, down, borders, *about).chain[-1]
    if not min(size) > 0:
        _check.require(False, OP, "padding must leave at least one pixel", str(padding))
    noise = _as_map(noise, x, size)
    strength = None if noise is None else _as_scalar(noise_strength, x)
    return _autograd.modulated_conv2d(
        x, weight,
        styles[:, None] if styles.ndim == 2 else styles,  # [N, K, I]
        None if regions is None else _resampled(regions, x, x.shape[2:]),
        None if regions is None or not demodulate else _resampled(regions, x, size),
        noise, strength, bias, resample_filter,
        up, down, borders, demodulate, flip_weight,
        *act, eps,
    )  # fmt: skip


def _check_tensors(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    regions: Tensor | None,
) -> None:
    _check.floating(OP, "x", x)
    if x.ndim != 4:
        _check.require(False, OP, "x must be [N, I, H, W]", x)
    if x.shape[2] == 0 or x.shape[3] == 0:
        _check.require(False, OP, "x must have at least one pixel", x)
    n, i = x.shape[:2]
    _check.like(OP, "weight", weight, "x", x)
    _check.like(OP, "styles", styles, "x", x)
    if not (weight.ndim == 4 and weight.shape[1] == i and weight.numel() > 0):
        rule = f"weight must be [O, {i}, kh, kw] for x {list(x.shape)}"
        _check.require(False, OP, rule, weight)
    if regions is not None:
        _check_regions(x, styles, regions)
    elif tuple(styles.shape) not in ((n, i), (n, 1, i)):
        rule = f"styles must be [{n}, {i}] for x {list(x.shape)} ([N, K, I] goes with regions)"
        _check.require(False, OP, rule, styles)


def _check_regions(x: Tensor, styles: Tensor, regions: Tensor) -> None:
    # no text is made before it is needed: it would fix a traced size
    n, i = x.shape[:2]
    _check.tensor(OP, "regions", regions)
    k = styles.shape[1] if styles.ndim == 3 else 1
    if not (styles.ndim in (2, 3) and styles.shape[0] == n and styles.shape[-1] == i and k > 0):
        _check.require(False, OP, f"styles must be [{n}, K, {i}] beside regions", styles)
    shape = regions.shape
    if not (len(shape) == 4 and shape[0] == n and shape[1] == k and min(shape[2:]) > 0):
        _check.require(False, OP, f"regions must be [{n}, {k}, H, W] for {k} styles", regions)
    if regions.dtype != torch.bool or regions.layout is not torch.strided:
        _check.like(OP, "regions", regions, "x", x)
    elif regions.device != x.device:
        _check.require(False, OP, f"regions must be on {x.device}", regions)


def _resampled(regions: Tensor, x: Tensor, size: Any) -> Tensor:
    """Regions at another size, by area averaging."""
    if regions.dtype == torch.bool:
        regions = regions.to(accumulator(x.dtype))
    (h, w), (height, width) = regions.shape[2:], size
    if (h, w) == (height, width):
        return regions
    if h % height == 0 and w % width == 0:
        return F.avg_pool2d(regions, (h // height, w // width))
    return F.adaptive_avg_pool2d(regions, (height, width))


def _as_map(noise: Tensor | None, x: Tensor, size: Sequence[int]) -> Tensor | None:
    """Noise as [N or 1, 1, H, W]."""
    if noise is None:
        return None
    _check.like(OP, "noise", noise, "x", x)
    n, (h, w) = x.shape[0], size
    if tuple(noise.shape) not in ((n, 1, h, w), (1, 1, h, w), (h, w)):
        rule = f"noise must be [{n}, 1, {h}, {w}], [1, 1, {h}, {w}] or [{h}, {w}]"
        _check.require(False, OP, rule, noise)
    return noise if noise.ndim == 4 else noise[None, None]


def _as_scalar(strength: Tensor | float | None, x: Tensor) -> Tensor | None:
    """The strength of the noise as a tensor of no dimension."""
    if strength is None:
        return None
    rule = "noise_strength must be a number or a tensor of one element"
    if not isinstance(strength, Tensor):
        if type(strength) is not float:
            _check.require(_check.is_number(strength), OP, rule, strength)
        return torch.full((), _check.real(strength), dtype=accumulator(x.dtype), device=x.device)
    _check.require(strength.numel() == 1, OP, rule, strength)
    _check.like(OP, "noise_strength", strength, "x", x)
    return strength.reshape(())
