"""Convolution, bias and activation without a style: the fused layer where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch
from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act import bias_act
from rwm_fast.ops.modulated_conv2d._convolution import convolution
from rwm_fast.ops.modulated_conv2d._geometry import Settings
from rwm_fast.ops.modulated_conv2d.autograd import OP, modulated_conv2d
from rwm_fast.ops.upfirdn2d import upfirdn2d


def conv2d_bias_act(
    x: Tensor,  # [N, I, H, W]
    weight: Tensor,  # [O, I, k, k]
    bias: Tensor | None,  # [O]
    *,
    weight_gain: float,
    borders: Sequence[int],
    down: int = 1,
    resample_filter: Tensor | None = None,
    activation: str = "linear",
    gain: float = 1.0,
) -> Tensor:
    r"""y = act(weight_gain·W ∗ x + bias)·gain, halved by `down=2`; weights and bias in any dtype.

    `borders` zeros are added before and after on both axes. `down=2` filters first if there is a
    `resample_filter`. The modulated layer with the style `weight_gain` everywhere computes the same
    in one kernel; it runs where a backend's `recommends_plain` says so, else torch's convolution.
    """
    settings = None if _is_traced() else _settings(borders, down, resample_filter, activation, gain)
    if settings is not None and _fused_is_faster(x, weight, resample_filter, settings):
        style = x.new_full((1, 1, x.shape[1]), weight_gain, dtype=accumulator(x.dtype))
        style = style.expand(len(x), -1, -1)
        tensors = (x, weight, style, None, None, None, None, bias, resample_filter)
        return modulated_conv2d(*tensors, *settings)
    before, after = borders
    padding, stride = [before, after, before, after], down
    if resample_filter is not None:
        # a 1×1 convolution commutes with the halving: filter only the pixels that are kept
        early = down if weight.shape[-1] == 1 else 1
        x = upfirdn2d(x, resample_filter, down=early, padding=padding)
        padding, stride = [0, 0, 0, 0], down // early
    w = (weight * weight_gain).to(x.dtype)
    arguments = [stride] * 2, [padding[0]] * 2, [1, 1], False, [0, 0], 1
    if activation == "linear" and gain == 1:
        bias = None if bias is None else bias.to(x.dtype)
        return convolution(x, w, arguments, bias)
    y = convolution(x, w, arguments)
    return bias_act(y, bias, activation=activation, gain=gain)


def _is_traced() -> bool:
    """By torch.compile or a torch.func transform: both know torch's convolution better."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.compiler.is_compiling() or transformed


def _settings(
    borders: Sequence[int], down: int, filter: Tensor | None, activation: str, gain: float
) -> Settings:
    """The modulated layer's: its padding comes on top of what its filter needs to stay centred."""
    before, after = borders
    if down > 1:
        taps = 1 if filter is None else len(filter)
        before, after = before - (taps - down + 1) // 2, after - (taps - down) // 2
    padding = (before, after, before, after)
    return Settings(1, down, padding, False, True, activation, 0.2, gain, None, 1e-8)


def _fused_is_faster(x: Tensor, weight: Tensor, filter: Tensor | None, settings: Settings) -> bool:
    """Whether the modulated layer's backend recommends it."""
    if x.ndim != 4:
        return False
    styles = x.new_empty((len(x), 1, x.shape[1]), dtype=accumulator(x.dtype))
    tensors = (x, weight, styles, *[None] * 5, filter)
    try:
        backend = _dispatch.choose(OP, tensors, settings=settings)
    except _dispatch.BackendError:  # a requested backend refuses: no modulated layer was promised
        return False
    recommends = getattr(backend, "recommends_plain", None)
    return recommends is not None and recommends(x, weight, filter, settings)
