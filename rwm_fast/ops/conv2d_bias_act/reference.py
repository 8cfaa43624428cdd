"""The truth for conv2d_bias_act: torch's convolution between `upfirdn2d` and `bias_act`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rwm_fast.ops._check import accumulator
from rwm_fast.ops.bias_act import bias_act
from rwm_fast.ops.modulated_conv2d.torch_convolution import convolution
from rwm_fast.ops.upfirdn2d import upfirdn2d
from rwm_fast.ops.upfirdn2d.geometry import filter_size
from rwm_fast.ops.upfirdn2d.reference import pad


def conv2d_bias_act(
    x: Tensor,  # [N, I, H, W]
    weight: Tensor,  # [O, I, kh, kw]
    bias: Tensor | None,  # [O]
    padding: Sequence[int],  # x before, x after, y before, y after
    down: int,
    filter: Tensor | None,
    weight_gain: float,
    act: tuple[str, float, float, float | None],  # activation, slope, gain, clamp
) -> Tensor:
    """y = clamp(act(weight_gain·W ∗ x + bias)·gain); torch's own calls wherever they will do."""
    left, right, top, bottom = padding
    stride, inside = down, (top, left)
    if filter is not None:
        fh, fw = filter_size(filter)
        before, after = (fw - down + 1) // 2, (fw - down) // 2
        above, below = (fh - down + 1) // 2, (fh - down) // 2
        borders = [left + before, right + after, top + above, bottom + below]
        # a 1×1 convolution commutes with the reduction: filter only the pixels that are kept
        early = down if tuple(weight.shape[2:]) == (1, 1) else 1
        x = upfirdn2d(x, filter, down=early, padding=borders)
        stride, inside = down // early, (0, 0)
    elif (left, top) != (right, bottom) or min(left, top) < 0:
        x, inside = pad(x, padding), (0, 0)
    w = (weight * weight_gain).to(x.dtype)
    arguments = [stride] * 2, list(inside), [1, 1], False, [0, 0], 1
    activation, slope, gain, clamp = act
    if activation == "linear" and gain == 1 and clamp is None:
        return convolution(x, w, arguments, None if bias is None else bias.to(x.dtype))
    y = convolution(x, w, arguments)
    if bias is not None and bias.dtype != y.dtype:
        bias = bias.to(accumulator(y.dtype))
    return bias_act(y, bias, activation=activation, negative_slope=slope, gain=gain, clamp=clamp)
