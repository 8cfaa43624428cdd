"""conv2d_bias_act: convolution, bias, activation; by the modulated layer where that is faster."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check, _dispatch
from rwm_fast.ops._check import accumulator
from rwm_fast.ops._registry import without_autocast
from rwm_fast.ops._torch_private import dispatch_modes
from rwm_fast.ops.conv2d_bias_act import reference
from rwm_fast.ops.modulated_conv2d.autograd import modulated_conv2d
from rwm_fast.ops.modulated_conv2d.geometry import Settings, Size, prepared
from rwm_fast.ops.modulated_conv2d.layer import without_style

OP = "conv2d_bias_act"
Activated = tuple[str, float, float, float | None]  # activation, slope, gain, clamp


def conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int | Sequence[int] = 0,
    down: int = 1,
    resample_filter: Tensor | None = None,
    weight_gain: float = 1.0,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    r"""Convolution with everything that follows it in a discriminator or an encoder.

    .. math::
        y = \mathrm{clamp}(\mathrm{act}(weight\_gain \cdot W * x + b) \cdot gain)

    It is `modulated_conv2d` with one constant style and without demodulation, and runs on its
    kernels where the backend says that they are faster than torch's convolution and `bias_act`. A
    backend that was asked for and refuses the modulated layer refuses this one.

    Parameters
    ----------
    x
        [N, I, H, W], float16, bfloat16, float32 or float64; any strides.
    weight
        [O, I, kh, kw], any floating dtype; rounded to x's.
    bias
        [O], any floating dtype; None = 0.
    padding
        zeros around x: one number, [x, y], or [x before, x after, y before, y after]; a negative
        one crops.
    down
        every down-th pixel of the result is computed.
    resample_filter
        [F] (separable) or [FH, FW], a low-pass before the reduction, so nothing with down = 1; what
        it needs is added to the padding, so that result and image stay centred. No gradient.
    weight_gain
        a factor on the weight: the equalised learning rate.
    activation, negative_slope, gain, clamp
        as in `bias_act`.

    Returns
    -------
    Tensor
        [N, O, H', W'] in x's dtype, channels_last if x is; H' = (H + padding − kh) // down + 1
        without a filter, and H // down for an odd kernel with padding kh // 2 and a filter.

    Gradients to x, weight and bias, of every order, each in its argument's dtype. Deterministic as
    torch's convolution.

    Raises
    ------
    TypeError, ValueError
        if an argument does not fit.

    Source: the layers of StyleGAN2's discriminator (Karras et al., CVPR 2020, arXiv 1912.04958).
    """
    _check_tensors(x, weight, bias)
    taps = _check.taps(OP, "resample_filter", resample_filter, x)
    act = _check.activation(OP, activation, negative_slope, gain, clamp, x.dtype)
    down = _check.whole(OP, "down", down)
    borders = _check.padding(OP, padding)
    weight_gain = _check.finite(OP, "weight_gain", weight_gain)
    if down == 1:
        resample_filter, taps = None, (1, 1)
    # torch.compile and the transforms of torch.func know torch's convolution better, and traced
    # sizes pass no cache
    n, _, h, w = x.shape
    left, right, top, bottom = borders
    spread = down - 1 if resample_filter is not None else 0
    kernel = weight.shape[2:]
    if h + top + bottom - spread < kernel[0] or w + left + right - spread < kernel[1]:
        _check.require(False, OP, "the padded image must be at least as large as the kernel", x)
    known = type(n) is type(h) is type(w) is int and not torch.compiler.is_compiling()
    if known and not _dispatch.in_transform(OP, (x, weight, bias)):
        settings = _settings(borders, down, resample_filter, act)
        if _modulated_is_faster(x, weight, resample_filter, taps, settings):
            shape, wide = (x.shape[0], 1, x.shape[1]), accumulator(x.dtype)
            # what a mode sees (fake tensors) is neither taken from the cache nor kept there
            constant = _constant.__wrapped__ if dispatch_modes() else _constant
            style = constant(shape, weight_gain, wide, x.device)
            tensors = (x, weight, style, None, None, None, None, bias, resample_filter)
            return modulated_conv2d(*tensors, *settings)
    about = (borders, down, resample_filter, weight_gain, act)
    with without_autocast(x.device):
        return reference.conv2d_bias_act(x, weight, bias, *about)


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check.floating(OP, "x", x)
    if x.ndim != 4:
        _check.require(False, OP, "x must be [N, I, H, W]", x)
    if x.shape[2] == 0 or x.shape[3] == 0:
        _check.require(False, OP, "x must have at least one pixel", x)
    _check.floating(OP, "weight", weight)
    inputs = x.shape[1]
    fits = weight.ndim == 4 and weight.shape[1] == inputs and weight.numel() > 0
    if not fits or weight.device != x.device:
        rule = f"weight must be [O, {inputs}, kh, kw] on {x.device} for x {list(x.shape)}"
        _check.require(False, OP, rule, weight)
    if bias is None:
        return
    _check.floating(OP, "bias", bias)
    if tuple(bias.shape) != (weight.shape[0],) or bias.device != x.device:
        rule = f"bias must be [{weight.shape[0]}], one number a channel, on {x.device}"
        _check.require(False, OP, rule, bias)


@functools.lru_cache(256)
def _constant(
    shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """One style for all images, as a batch without a stride."""
    with torch.inference_mode(False):  # may be met by autograd later
        return torch.full((1, *shape[1:]), value, dtype=dtype, device=device).expand(shape)


def _settings(borders: Sequence[int], down: int, filter: Tensor | None, act: Activated) -> Settings:
    """The modulated layer's, which would centre a filter of one tap too."""
    left, right, top, bottom = borders
    if filter is None:
        first, last = (2 - down) // 2, (1 - down) // 2
        left, right, top, bottom = left - first, right - last, top - first, bottom - last
    return Settings(1, down, (left, right, top, bottom), False, True, *act, 1e-8)


def _modulated_is_faster(
    x: Tensor, weight: Tensor, filter: Tensor | None, taps: Size, settings: Settings
) -> bool:
    """Whether the backend that would serve the modulated layer says so."""
    kernel, size = tuple(weight.shape[2:]), tuple(x.shape[2:])
    geometry = prepared(1, settings.down, settings.padding, kernel, taps, size)
    layer = without_style(x, weight, filter, settings, geometry)
    return _dispatch.choose(OP, layer).serves_plain(x.dtype)
