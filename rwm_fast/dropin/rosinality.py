"""`op` of the StyleGAN2 port that most encoders and editors carry, and the swapping autoencoder's.

A padding of two numbers is (before, after) on both axes. `negative_slope` counts on every device
(the original's CPU branch takes 0.2 whatever is given).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwm_fast.dropin import _calls, gradfix, nvidia
from rwm_fast.dropin._offer import ROOT, Alternatives, Offer
from rwm_fast.ops.upfirdn2d import upfirdn2d as _upfirdn2d

SQRT2 = 2**0.5


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """Upsample by zeros, pad or crop, convolve with kernel [KH, KW], downsample.

    up, down: one number or (x, y). pad: (before, after) on both axes, or (x before, x after,
    y before, y after).
    """
    pad = tuple(pad) * 2 if len(pad) == 2 else tuple(pad)
    up, down = (tuple(v) if isinstance(v, Sequence) else v for v in (up, down))
    settings = {"up": up, "down": down, "padding": pad}
    return _calls.run("rosinality.upfirdn2d", _upfirdn2d, input, kernel, **settings)


def upfirdn2d_native(
    input, kernel, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1
):  # fmt: skip
    """The same with one number an argument."""
    pad = (pad_x0, pad_x1, pad_y0, pad_y1)
    return upfirdn2d(input, kernel, (up_x, up_y), (down_x, down_y), pad)


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=SQRT2):
    """leaky_relu(input + bias)·scale, bias along dimension 1."""
    bias = bias if bias is None or bias.ndim == 1 else bias.reshape(-1)  # [1, C, 1, 1]
    return nvidia.bias_act(input, bias, 1, "lrelu", negative_slope, scale)


class _Activation(nn.Module):
    """Bias along dimension 1, leaky ReLU, scale."""

    bias: Tensor | None

    def __init__(self, channels: int, bias: bool, negative_slope: float, scale: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


class FusedLeakyReLU(_Activation):
    """The layer of fused_leaky_relu; `bias` is a parameter [channel], zeros at first, or None."""

    def __init__(self, channel, bias=True, negative_slope=0.2, scale=SQRT2):
        super().__init__(channel, bias, negative_slope, scale)


class BiasedLeakyReLU(_Activation):
    """The older FusedLeakyReLU, which always has a bias: its slope is the second argument."""

    def __init__(self, channel, negative_slope=0.2, scale=SQRT2):
        super().__init__(channel, True, negative_slope, scale)


UPFIRDN2D = ("input, kernel, up=1, down=1, pad=(0, 0)", upfirdn2d)
NATIVE = (
    "input, kernel, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1",
    upfirdn2d_native,
)
_TAIL = f"negative_slope=0.2, scale={ROOT}"
FUSED: dict[str, Alternatives] = {
    "fused_leaky_relu": (
        (f"input, bias=None, {_TAIL}", fused_leaky_relu),
        (f"input, bias, {_TAIL}", fused_leaky_relu),
    ),
    "FusedLeakyReLU": (
        (f"channel, bias=True, {_TAIL}", FusedLeakyReLU),
        (f"channel, {_TAIL}", BiasedLeakyReLU),
    ),
}
_GRADFIX_PARTS = frozenset({"could_use_op", "ensure_tuple", "conv2d_gradfix"})
OFFERS = [
    offer
    for package in ("op", "stylegan2_op")
    for offer in (
        Offer("rosinality", f"{package}.fused_act", FUSED),
        Offer(
            "rosinality",
            f"{package}.upfirdn2d",
            {"upfirdn2d": (UPFIRDN2D,), "upfirdn2d_native": (NATIVE,)},
        ),
        Offer(
            "rosinality",
            f"{package}.conv2d_gradfix",
            gradfix.NAMES,
            gradfix.SWITCHES,
            _GRADFIX_PARTS,
        ),
    )
]
